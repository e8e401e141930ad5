"""The plan of a quantized model: which tensors are quantized and how, and what was done to the float model before."""
from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property

from mmquant.models.edits import Edit, PlanError, edit_from_dict
from mmquant.utils.building import check_keys, plain

FORMAT = 2
WHAT = ('weight', 'input', 'output', 'operand')


@dataclass(frozen=True)
class Place:
    """One tensor that is quantized."""
    name: str  # path of the module that holds the quantizer
    what: str  # its 'weight', 'input' or 'output', or an 'operand' of one of its matrix products
    quantizer: dict  # whole config, with type and bits
    readers: tuple[str, ...] = ()  # layers (in the scope) that read the tensor; those of an 'input' share the quantizer
    call: int | None = None  # number of the call, if a layer has an input quantizer for each; of an operand's product
    role: str = ''  # of an operand: 'left', 'right', 'query', ...
    shape: tuple[int, ...] | None = None  # of an activation with more than one scale; channels lie on axis 1

    def __post_init__(self) -> None:
        if self.what not in WHAT:
            raise PlanError(f'place {self.name!r}: what must be one of {", ".join(WHAT)}, got {self.what!r}')
        if not isinstance(self.quantizer, dict) or not {'type', 'bits'} <= set(self.quantizer):
            raise PlanError(f'place {self.name!r} ({self.what}) has no quantizer: expected dict(type=..., bits=...), '
                            f'got {self.quantizer!r}')

    @property
    def bits(self) -> int:
        return self.quantizer['bits']

    def with_bits(self, bits: int) -> Place:
        return replace(self, quantizer={**self.quantizer, 'bits': bits})


@dataclass(frozen=True)
class Plan:
    """All quantizers of a model and its structural changes, as plain values that a checkpoint can hold."""
    places: tuple[Place, ...] = ()
    # modules with parameters of two or more axes that stay float, and why: prose for a table; a quantized layer may be
    # among them, for what it holds beside its weight
    float_layers: tuple[tuple[str, str], ...] = ()
    edits: tuple[Edit, ...] = ()  # in the order in which they were made

    @cached_property
    def weights(self) -> dict[str, Place]:
        """Layer -> place of its weights."""
        return {p.name: p for p in self.places if p.what == 'weight'}

    @cached_property
    def inputs(self) -> dict[str, Place]:
        """Layer -> place where its input is quantized; its own input quantizer counts before one at the producer."""
        return {name: p for what in ('output', 'input') for p in self.places if p.what == what for name in p.readers}

    @property
    def layers(self) -> tuple[str, ...]:
        """Every module with weights: layers with quantized ones, then what is float."""
        return tuple(dict.fromkeys((*self.weights, *(name for name, _ in self.float_layers))))

    def to_dict(self) -> dict:
        """Plain containers, loadable with ``weights_only=True``."""
        return plain(dict(format=FORMAT, places=[asdict(p) for p in self.places], float_layers=self.float_layers,
                          edits=[edit.to_dict() for edit in self.edits]))

    @classmethod
    def from_dict(cls, d: dict) -> Plan:
        """Inverse of :meth:`to_dict`; PlanError for a newer version, a place without quantizer, an unknown edit."""
        if d['format'] > FORMAT:
            raise PlanError(f'the plan has format {d["format"]}, this mmquant reads up to {FORMAT}; update mmquant')
        check_keys(d, ('format', 'places', 'float_layers', 'edits'), 'plan')
        places = tuple(Place(**{**p, 'readers': tuple(p['readers']), 'shape': p['shape'] and tuple(p['shape'])})
                       for p in d['places'])
        return cls(places, tuple((name, why) for name, why in d['float_layers']),
                   tuple(edit_from_dict(x) for x in d['edits']))
