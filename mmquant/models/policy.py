"""Bit widths: a default, overridden by position (first, last) and by name pattern."""
from __future__ import annotations

import difflib
import re

from mmquant.structures import IntegerGrid

_KEYS = ('position', 'pattern', 'w_bits', 'a_bits', 'in_bits', 'out_bits', 'matmul_bits')


class BitPolicy:
    """Answers how many bits a weight or an activation gets; ``None`` means float.

    Args:
        w_bits (int | None): Default bits of weights, 2..16.
        a_bits (int | None): Default bits of activations, 2..16.
        matmul_bits (int | None | 'same'): Bits of the operands of products inside attention; ``'same'`` as ``a_bits``.
        overrides (sequence[dict]): Applied in order, the last match wins. Each has one selector, ``position``
            (``'first'`` layers read the network's input, ``'last'`` ones make its output) or ``pattern`` (a regular
            expression that must match the layer's whole name), and any of ``w_bits``, ``a_bits`` (its input, for
            patterns), ``out_bits`` (with ``position='first'``: the tensor made from the first layer), ``in_bits`` (with
            ``position='last'``: the tensor that the last layer's input is made of), ``matmul_bits`` (patterns).
        scope (sequence[str] | None): Paths of the parts to quantize, everything else is float; ``('backbone', 'neck')``
            is the protocol of BRECQ's and QDrop's detection tables. Default: everything.

    Raises:
        ValueError: For bits outside 2..16, an unknown key or position, or a pattern that is no regular expression.
    """

    def __init__(self, w_bits, a_bits, matmul_bits='same', overrides=(), scope=None) -> None:
        if not isinstance(overrides, (list, tuple)):
            raise ValueError(f'overrides must be a list of dicts, got {overrides!r}')
        if isinstance(scope, str) or (scope is not None and not all(isinstance(x, str) for x in scope)):
            raise ValueError(f'scope must be a list of module paths such as ["backbone", "neck"], got {scope!r}')
        self.scope = None if scope is None else tuple(scope)
        self.w_bits, self.a_bits = _checked(w_bits, 'w_bits'), _checked(a_bits, 'a_bits')
        self.matmul = self.a_bits if matmul_bits == 'same' else _checked(matmul_bits, 'matmul_bits')
        self.overrides = [_checked_override(o, i) for i, o in enumerate(overrides)]
        self.used: set[int] = set()

    def covers(self, name: str) -> bool:
        """Whether a module lies inside the scope."""
        return self.scope is None or any(name == part or name.startswith(f'{part}.') for part in self.scope)

    def check_scope(self, names: list[str]) -> None:
        """Raise ValueError for a part of the scope that is none of the modules ``names``."""
        for part in self.scope or ():
            if part not in names:
                near = difflib.get_close_matches(part, names, 1)
                top = ', '.join(n for n in names if n and '.' not in n)
                raise ValueError(f'quantizer.scope: the model has no module {part!r}' +
                                 (f'; did you mean {near[0]!r}?' if near else f'; its parts: {top}'))

    def _matching(self, name: str, first: bool, last: bool):
        for i, rule in enumerate(self.overrides):
            position = rule.get('position')
            if (position == 'first' and first) or (position == 'last' and last) \
                    or ('pattern' in rule and re.fullmatch(rule['pattern'], name)):
                self.used.add(i)
                yield rule

    def weight_bits(self, name: str, first: bool, last: bool) -> int | None:
        """Bits of a layer's weights."""
        bits = self.w_bits
        for rule in self._matching(name, first, last):
            bits = rule.get('w_bits', bits)
        return bits if self.covers(name) else None

    def activation_bits(self, readers: list[str], from_first: bool, into_last: bool) -> int | None:
        """Bits of a tensor read by the layers ``readers``; the widest wish of any reader in the scope wins."""
        bits = self.a_bits
        readers = [name for name in readers if self.covers(name)]
        if not readers:
            return None
        for rule in self.overrides:
            if (rule.get('position') == 'first' and from_first) and 'out_bits' in rule:
                bits = rule['out_bits']
            if (rule.get('position') == 'last' and into_last) and 'in_bits' in rule:
                bits = rule['in_bits']
        wishes = [rule['a_bits'] for name in readers for rule in self._matching(name, False, False) if 'a_bits' in rule]
        if None in wishes:
            return None
        return max(wishes) if wishes else bits

    def matmul_bits(self, name: str) -> int | None:
        """Bits of the operands of a module's own matrix products."""
        bits = self.matmul
        for rule in self._matching(name, False, False):
            bits = rule.get('matmul_bits', rule.get('a_bits', bits))
        return bits if self.covers(name) else None

    def unused_patterns(self) -> list[str]:
        """Patterns that matched nothing so far."""
        return [r['pattern'] for i, r in enumerate(self.overrides) if 'pattern' in r and i not in self.used]


def _checked(bits, key: str):
    if bits is None:
        return None
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise ValueError(f'{key} must be a whole number from 2 to 16, or None for float, got {bits!r}')
    return IntegerGrid(bits).bits


def _checked_override(rule: dict, index: int) -> dict:
    where = f'quantizer.overrides[{index}]'
    if not isinstance(rule, dict):
        raise ValueError(f'{where} must be a dict such as dict(position="first", w_bits=8), got {rule!r}')
    for key, value in rule.items():
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, 1)
            raise ValueError(f'{where} has the unknown key {key!r}' + (f'; did you mean {near[0]!r}?' if near else
                                                                      f'; known keys: {", ".join(_KEYS)}'))
        if key.endswith('bits'):
            _checked(value, f'{where}.{key}')
    if ('position' in rule) == ('pattern' in rule):
        raise ValueError(f'{where} needs exactly one of the selectors "position" and "pattern", got {dict(rule)}')
    if 'position' in rule and rule['position'] not in ('first', 'last'):
        raise ValueError(f'{where}.position must be "first" or "last", got {rule["position"]!r}')
    try:
        re.compile(rule.get('pattern', ''))
    except re.error as error:
        raise ValueError(f'{where}.pattern {rule["pattern"]!r} is no regular expression: {error}') from error
    return dict(rule)
