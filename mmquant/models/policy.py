"""Which quantizer a tensor gets: a default, overridden by position (first, last) and by name pattern."""
import difflib
import json
import logging
import re

from mmengine.logging import print_log

from mmquant.registry import QUANTIZERS
from mmquant.utils.building import ConfigError, build, check_keys, closest

KEYS = ('weight', 'activation', 'matmul_bits', 'overrides', 'block_types', 'scope', 'per_call', 'depthwise_channels')
_SHORT = dict(w_bits='weight', a_bits='activation', in_bits='input', out_bits='output', matmul_bits='matmul')
_SELECTORS = dict(first=('weight', 'output'), last=('weight', 'input'), pattern=('weight', 'activation', 'matmul'))
_RULE_KEYS = ('position', 'pattern', *_SHORT, *_SHORT.values())


class QuantizerPolicy:
    """Answers which quantizer a weight, an activation or an operand gets: a whole config, or None for float.

    Every config that it can hand out is tried when it is made: the grid itself says which bits it takes.

    Args:
        quantizer (dict): ``weight`` and ``activation``: configs of quantizers; ``bits=None`` keeps that kind float.
            ``matmul_bits``: bits of the operands of products inside attention, default ``'same'`` as activations.

            ``overrides``: list of dicts, applied in order, later ones over earlier ones. Each has one selector:
            ``position='first'`` (layers that read the network's input, or what is made of it without weights; takes
            ``weight`` and ``output``: the tensor made from them), ``position='last'`` (layers that make its output;
            ``weight`` and ``input``: the tensor that theirs is made of) or ``pattern`` (a regular expression that must
            match a layer's whole name; ``weight``, ``activation``: its input, ``matmul``). Their values are configs,
            merged over what holds so far; another ``type`` replaces it. ``w_bits``, ``out_bits``, ``in_bits``,
            ``a_bits``, ``matmul_bits`` change the width alone; by position they leave alone what is float by default.

            ``scope``: paths of the parts to quantize, everything else is float; ``('backbone', 'neck')`` is the
            protocol of BRECQ's and QDrop's detection tables. Default: everything. ``block_types``: names of classes
            that are units beside those found by their residual add. ``per_call``, ``depthwise_channels``: see
            :func:`place_quantizers`.

    Raises a ConfigError, which names the place in the config, for an unknown key, type or position, bits that a grid
    does not take, or a pattern that is no regular expression.
    """

    def __init__(self, quantizer: dict) -> None:
        check_keys(quantizer, KEYS, 'quantizer')
        scope = quantizer.get('scope')
        if isinstance(scope, str) or (scope is not None and not all(isinstance(x, str) for x in scope)):
            raise ConfigError('quantizer.scope must be a list of module paths such as ["backbone", "neck"], got '
                              f'{scope!r}')
        self.scope = None if scope is None else tuple(scope)
        blocks = quantizer.get('block_types', ())
        if not isinstance(blocks, (list, tuple)) or not all(isinstance(x, str) for x in blocks):
            raise ConfigError(f'quantizer.block_types must be a list of class names, got {blocks!r}')
        self.block_types = tuple(blocks)
        self.per_call = quantizer.get('per_call', False)
        self.depthwise_channels = quantizer.get('depthwise_channels', False)
        self.weights = _default(quantizer, 'weight')
        self.activations = _default(quantizer, 'activation')
        bits = quantizer.get('matmul_bits', 'same')
        self.operands = self.activations if bits == 'same' else \
            whole_config({**self.activations, 'bits': bits}, 'quantizer.matmul_bits')
        overrides = quantizer.get('overrides', ())
        if not isinstance(overrides, (list, tuple)):
            raise ConfigError(f'quantizer.overrides must be a list of dicts, got {overrides!r}')
        bases = dict(weight=self.weights, activation=self.activations, input=self.activations,
                     output=self.activations, matmul=self.operands)
        self.rules = [_Rule(rule, f'quantizer.overrides[{i}]', bases) for i, rule in enumerate(overrides)]

    def covers(self, name: str) -> bool:
        """Whether a module lies inside the scope."""
        return self.scope is None or any(name == part or name.startswith(f'{part}.') for part in self.scope)

    def check_scope(self, names: list[str]) -> None:
        """Raise ConfigError for a part of the scope that is none of the modules ``names``."""
        for part in self.scope or ():
            if part not in names:
                near = difflib.get_close_matches(part, names, 1)
                top = ', '.join(n for n in names if n and '.' not in n)
                raise ConfigError(f'quantizer.scope: the model has no module {part!r}' +
                                  (f'; did you mean {near[0]!r}?' if near else f'; its parts: {top}'))

    def check_block_types(self, classes: set[str]) -> None:
        """Raise ConfigError for a declared block that is none of the classes of a model's modules."""
        for name in self.block_types:
            if name not in classes:
                raise ConfigError(f'quantizer.block_types: the model has no module of the class {name!r}; '
                                  f'{closest(name, classes)}')

    def check_patterns(self, names: list[str], layers: list[str]) -> None:
        """Raise ConfigError for a pattern that matches none of the modules ``names``; it names the closest layer."""
        for rule in self.rules:
            if rule.pattern is not None and not any(map(rule.pattern.fullmatch, names)):
                near = difflib.get_close_matches(rule.pattern.pattern.replace('\\', ''), layers, 1, 0.4)
                raise ConfigError(f'{rule.where}: the pattern {rule.pattern.pattern!r} matches no layer (it must match '
                                  f'the whole name, such as {(near or layers)[0]!r}); correct it or take it out')

    def check_matches(self, positions: dict[str, set[str]], layers: set[str]) -> None:
        """Warn of rules that select nothing: ``positions`` are layers by position, ``layers`` what can be selected."""
        for rule in self.rules:
            if rule.position and not positions[rule.position]:
                makes = dict(first="reads the network's input", last="makes the network's output")[rule.position]
                print_log(f'{rule.where}: position={rule.position!r} selects nothing, as no layer that can be '
                          f'quantized {makes} without other weights in between; name the layers by a pattern',
                          'current', logging.WARNING)
            if rule.pattern is not None and not any(map(rule.pattern.fullmatch, layers)):
                print_log(f'{rule.where}: the pattern {rule.pattern.pattern!r} matches modules but selects nothing, as '
                          'none of them is a layer or a product that can be quantized (the plan tells why)', 'current',
                          logging.WARNING)

    def weight(self, name: str, first: bool, last: bool) -> dict | None:
        """Quantizer of a layer's weights."""
        cfg = self.weights
        for rule in self.rules:
            if rule.selects(name) or {'first': first, 'last': last}.get(rule.position):
                cfg = rule.over(cfg, 'weight')
        return _bits_or_none(cfg, name) if self.covers(name) else None

    def activation(self, readers: list[str], from_first: bool, into_last: bool) -> dict | None:
        """Quantizer of a tensor read by the layers ``readers``.

        Where several readers in the scope wish different ones by their patterns, a wish for float wins, else the one
        with the widest bits (among equals the first reader's); readers without a pattern have no say.
        """
        readers = [name for name in readers if self.covers(name)]
        cfg, wishes = self.activations, []
        for rule in self.rules:
            if rule.position == 'first' and from_first:
                cfg = rule.over(cfg, 'output')
            if rule.position == 'last' and into_last:
                cfg = rule.over(cfg, 'input')
        for name in readers:
            wish = cfg
            for rule in self.rules:
                wish = rule.over(wish, 'activation') if rule.selects(name) else wish
            wishes += [_bits_or_none(wish, name)] if wish is not cfg else []
        if not readers or None in wishes:
            return None
        return max(wishes, key=lambda wish: wish['bits']) if wishes else _bits_or_none(cfg, readers[0])

    def operand(self, name: str) -> dict | None:
        """Quantizer of the operands of a module's own matrix products."""
        cfg = self.operands
        for rule in self.rules:
            if rule.selects(name):
                cfg = rule.over(cfg, 'matmul' if 'matmul' in rule.changes else 'activation')
        return _bits_or_none(cfg, name) if self.covers(name) else None


def _bits_or_none(cfg: dict, name: str) -> dict | None:
    """A merged config with its bits, None where they are None."""
    cfg = whole_config(cfg, f'the quantizer of {name}')
    return None if cfg['bits'] is None else cfg


class _Rule:
    """One entry of ``overrides``: whom it selects, and by kind what it merges over the config so far."""

    def __init__(self, rule: dict, where: str, bases: dict[str, dict]) -> None:
        self.where = where
        if not isinstance(rule, dict):
            raise ConfigError(f'{where} must be a dict such as dict(position="first", w_bits=8), got {rule!r}')
        check_keys(rule, _RULE_KEYS, where)
        if ('position' in rule) == ('pattern' in rule):
            raise ConfigError(f'{where} needs exactly one of the selectors "position" and "pattern", got {dict(rule)}')
        self.position = rule.get('position')
        if 'position' in rule and self.position not in ('first', 'last'):
            raise ConfigError(f'{where}.position must be "first" or "last", got {self.position!r}')
        try:
            self.pattern = re.compile(rule['pattern']) if 'pattern' in rule else None
        except (re.error, TypeError) as error:
            raise ConfigError(f'{where}.pattern {rule["pattern"]!r} is no regular expression: {error}') from error
        self.changes: dict[str, dict] = {}
        takes = _SELECTORS[self.position or 'pattern']
        for key, value in rule.items():
            if key in ('position', 'pattern'):
                continue
            kind = _SHORT.get(key, key)
            if kind not in takes:
                valid = [k for k in (*_SHORT, *takes) if _SHORT.get(k, k) in takes]
                raise ConfigError(f'{where}: {key!r} says nothing with {"position" if self.position else "pattern"}='
                                  f'{rule.get("position", rule.get("pattern"))!r}, which takes {", ".join(valid)}')
            change = {'bits': value} if key in _SHORT else value
            if not isinstance(change, dict):
                raise ConfigError(f'{where}.{key}: expected dict(bits=..., ...), got {value!r}')
            if self.position and key in _SHORT and bases[kind]['bits'] is None:
                continue
            self.changes[kind] = {**self.changes.get(kind, {}), **change}
            whole_config(merged_config(bases[kind], self.changes[kind]), f'{where}.{key}')

    def selects(self, name: str) -> bool:
        """Whether the rule has a pattern, which matches the whole name."""
        return self.pattern is not None and self.pattern.fullmatch(name) is not None

    def over(self, cfg: dict, kind: str) -> dict:
        """``cfg`` with what this rule says about a kind of tensor; ``cfg`` itself if it says nothing."""
        return merged_config(cfg, self.changes[kind]) if kind in self.changes else cfg


def merged_config(cfg: dict, change: dict) -> dict:
    """A child config over its base; another type shares no arguments with it."""
    return dict(change) if change.get('type', cfg['type']) != cfg['type'] else {**cfg, **change}


def whole_config(cfg: dict, where: str) -> dict:
    """A quantizer's config as plain values, with its bits; tried by building it, but for ``bits=None``.

    Raises a ConfigError if the grid refuses a value, or a checkpoint cannot hold one.
    """
    given = {k: v for k, v in cfg.items() if k != 'bits' or v is not None}
    bits = int(build(QUANTIZERS, given, where).bits)
    names = {cls: name for name, cls in QUANTIZERS.module_dict.items()}
    given['type'] = names.get(given['type'], given['type'])
    try:
        given = json.loads(json.dumps(given))
    except TypeError as error:
        raise ConfigError(f'{where}: {error}, so that a checkpoint could not hold it; give plain values') from error
    return {**given, 'bits': None if 'bits' in cfg and cfg['bits'] is None else bits}


def _default(quantizer: dict, key: str) -> dict:
    if not isinstance(quantizer.get(key), dict):
        raise ConfigError(f'quantizer.{key}: expected dict(type=..., bits=...), got {quantizer.get(key)!r}; write '
                          'bits=None to keep it float')
    return whole_config(quantizer[key], f'quantizer.{key}')
