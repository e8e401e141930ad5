"""Where quantizers sit, derived from the data flow, and at how many bits.

A quantized layer quantizes its input; a block quantizes its output; a tensor is quantized once, where it is produced,
however many readers it has. For a ResNet these are BRECQ's points: behind each inner ReLU and behind add + ReLU.
"""
from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace

from torch import nn

from mmquant.models.dataflow import MOVEMENT, POOLING, Call, DataFlow
from mmquant.models.layers import has_own_weight, is_layer
from mmquant.models.policy import BitPolicy
from mmquant.models.units import find_blocks, first_layers, layer_calls

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
UNREACHED = 'not reached through its own forward by the observed batch'
NO_WEIGHT = 'its weight is computed in each forward pass (weight or spectral norm): remove the parametrization first'


@dataclass(frozen=True)
class LayerPlan:
    """One layer with weights. ``w_bits`` None: float; ``a_bits`` None: no input quantizer, ``note`` says why."""
    name: str
    w_bits: int | None
    a_bits: int | None
    note: str = ''
    shares: str | None = None  # layer whose input quantizer this one uses
    calls: int = 1  # input quantizers: one for each call where there are several, else one for all calls
    channels: int = 0  # scales of the input quantizer: one a channel of a depthwise convolution; 0: one in all


@dataclass(frozen=True)
class OutputPlan:
    """A module whose output is quantized."""
    name: str
    bits: int


@dataclass(frozen=True)
class MatmulPlan:
    """A module whose own matrix products are quantized: position -> kind."""
    name: str
    bits: int
    sites: dict[str, str]


@dataclass(frozen=True)
class Plan:
    """All quantizers of a model, as plain values that a checkpoint can hold."""
    layers: tuple[LayerPlan, ...] = ()
    outputs: tuple[OutputPlan, ...] = ()
    matmuls: tuple[MatmulPlan, ...] = ()
    folded: tuple[tuple[str, str], ...] = ()
    reparameterized: bool = False  # training-time branches were merged before
    split_attention: bool = False  # nn.MultiheadAttention got layers for its projections
    affine: tuple[str, ...] = ()  # layers with a factor and a bias for each output channel
    functional: dict[str, list[str]] = field(default_factory=dict)  # modules made to call layers they read weights of

    def to_dict(self) -> dict:
        """Plain containers, loadable with ``weights_only=True``."""
        return dict(layers=[vars(x) | {} for x in self.layers], outputs=[vars(x) | {} for x in self.outputs],
                    matmuls=[vars(x) | {} for x in self.matmuls], folded=[list(p) for p in self.folded],
                    reparameterized=self.reparameterized, split_attention=self.split_attention,
                    affine=list(self.affine), functional=self.functional)

    @classmethod
    def from_dict(cls, d: dict) -> 'Plan':
        """Inverse of :meth:`to_dict`."""
        return cls(tuple(LayerPlan(**x) for x in d['layers']), tuple(OutputPlan(**x) for x in d['outputs']),
                   tuple(MatmulPlan(**x) for x in d['matmuls']), tuple(tuple(p) for p in d['folded']),
                   d.get('reparameterized', False), d.get('split_attention', False),
                   tuple(d.get('affine', ())), d.get('functional', {}))


class _Placer:

    def __init__(self, model: nn.Module, flow: DataFlow, policy: BitPolicy, block_types: tuple[str, ...],
                 per_call: bool, depthwise_channels: bool) -> None:
        self.model, self.flow, self.policy, self.per_call = model, flow, policy, per_call
        self.depthwise_channels = depthwise_channels
        self.modules = dict(model.named_modules())
        self.calls = layer_calls(model, flow)
        self.blocks = {c.outputs[0]: c for c in find_blocks(model, flow, block_types)
                       if c.bare and len(c.outputs) == 1}
        self.first = first_layers(model, flow)
        self.last = self._sources((*flow.calls[0].outputs, *flow.decoded))
        self.of_first = self._values_of_first()
        self.by_input = defaultdict(list)
        for call in self.calls:
            self.by_input[flow.root(call.inputs[0])].append(call)

    def _layer_around(self, call: int) -> str | None:
        for around in self.flow.ancestors(call):
            if is_layer(self.modules[around.name]):
                return around.name
        return None

    def _sources(self, values) -> set[str]:
        """The nearest layers some tensors were computed from."""
        found, stack, seen = set(), list(values), set()
        while stack:
            op = self.flow.producer.get(stack.pop())
            if op is None or op.tick in seen:
                continue
            seen.add(op.tick)
            layer = self._layer_around(op.call)
            found |= {layer} if layer else set()
            stack += [] if layer else op.inputs
        return found

    def _values_of_first(self) -> set[int]:
        """Values whose nearest layers are first layers, in one walk along the record."""
        of_first, of_any = set(), set()
        for op in self.flow.ops:
            layer = self._layer_around(op.call)
            known = [v for v in op.inputs if v in of_any]
            if layer in self.first if layer else known and of_first.issuperset(known):
                of_first.update(op.outputs)
            if layer or known:
                of_any.update(op.outputs)
        return of_first

    def _bits(self, value: int, readers: list[str]) -> int | None:
        feeds_last = bool(readers) and set(readers) <= self.last
        return self.policy.activation_bits(readers, from_first=value in self.of_first,
                                           into_last=feeds_last)

    def _readers(self, value: int, through=MOVEMENT) -> tuple[list[str], bool]:
        """Layers that read a tensor, and whether anything else does."""
        ops = self.flow.final_readers(value, through)
        layers = [self._layer_around(op.call) for op in ops]
        return list(dict.fromkeys(x for x in layers if x)), None in layers or value in self.flow.calls[0].outputs

    def _producer(self, value: int) -> Call | None:
        """The innermost module, called once and no container, that returns the tensor itself."""
        calls = [c for c in self.flow.returned_by.get(value, ()) if c.bare and len(self.flow.calls_of[c.name]) == 1
                 and c.parent >= 0 and not isinstance(self.modules[c.name], CONTAINERS)]
        return calls[-1] if calls else None

    def place(self) -> Plan:
        """All quantizers: first behind blocks, then where layers read what no block made."""
        outputs, inputs, mixing = {}, {}, set()
        notes, shares = {}, {}
        for value, block in self.blocks.items():
            readers, _ = self._readers(value, MOVEMENT | POOLING)
            if readers and (bits := self._bits(value, readers)) is not None:
                outputs[block.name] = OutputPlan(block.name, bits)
                notes |= {r: f'quantized at {block.name}' for r in self._readers(value)[0]}
        for value, calls in self.by_input.items():
            names = list(dict.fromkeys(c.name for c in calls))
            if value in self.blocks and self.blocks[value].name in outputs:
                continue
            if value in self.flow.network_inputs:
                notes |= {n: 'reads the network input' for n in names}
                continue
            bits = self._bits(value, names)
            if bits is None:
                continue
            once = all(len(self.flow.calls_of[n]) == 1 and self.policy.covers(n) for n in names)
            names = [n for n in names if self.policy.covers(n)]
            alone = len(names) == 1 and not self._readers(value)[1]
            producer = self._producer(value)
            if once and not alone and producer is not None:
                outputs[producer.name] = OutputPlan(producer.name, bits)
                notes |= {n: f'quantized at {producer.name}' for n in names}
                continue
            owner = next((n for n in names if n in inputs), names[0])
            inputs.setdefault(owner, bits)
            if not all(map(self._is_depthwise, names)):
                mixing |= {owner}
            shares |= {n: owner for n in names if n != owner and n not in inputs}
        plans = self._layer_plans(inputs, notes, shares, mixing)
        return Plan(tuple(plans), tuple(outputs.values()), tuple(self._matmuls()))

    def _is_depthwise(self, name: str) -> bool:
        layer = self.modules[name]
        return getattr(layer, 'groups', 1) == getattr(layer, 'in_channels', 0) > 1

    def _layer_plans(self, inputs, notes, shares, mixing):
        reached = {c.name: c for c in self.calls}
        ordered = list(dict.fromkeys(c.name for c in self.calls))
        for name in ordered:
            w_bits = self.policy.weight_bits(name, name in self.first, name in self.last)
            note = notes.get(name, '') if w_bits is not None else 'float weights by configuration'
            if not self.policy.covers(name):
                note = f'outside the scope ({", ".join(self.policy.scope)})'
            shared = shares.get(name)
            a_bits = inputs.get(name, inputs.get(shared))
            calls = len(self.flow.calls_of[name]) if self.per_call and a_bits is not None else 1
            owner = shared or name
            own_scales = self.depthwise_channels and owner in inputs and owner not in mixing
            yield LayerPlan(name, w_bits, a_bits, note, shared, calls,
                            self.modules[name].in_channels if own_scales else 0)
        for name, module in self.modules.items():
            if is_layer(module) and name not in reached:
                yield LayerPlan(name, None, None, UNREACHED if has_own_weight(module) else NO_WEIGHT)

    def _matmuls(self):
        for name, sites in self.flow.matmuls.items():
            bits = self.policy.matmul_bits(name)
            if bits is not None:
                yield MatmulPlan(name, bits, {str(k): kind for k, kind in sites.items()})


def place_quantizers(model: nn.Module, flow: DataFlow, policy: BitPolicy, block_types: tuple[str, ...] = (),
                     before: Plan | None = None, per_call: bool = False, depthwise_channels: bool = False) -> Plan:
    """Decide where quantizers sit and their bits.

    Args:
        model (nn.Module): The (folded) float model.
        flow (DataFlow): Its record.
        policy (BitPolicy): Bits by default, by position and by name pattern.
        block_types (tuple[str, ...]): Further module classes that are blocks.
        before (Plan | None): What was already done to the model: folding and re-parameterization; kept in the plan.
        per_call (bool): A layer called several times (a head shared over pyramid levels) gets an input quantizer for
            each call. Default: one for all.
        depthwise_channels (bool): A tensor that depthwise convolutions alone read gets a scale for each channel. These
            multiply the weights' scales, so integer arithmetic stays exact; a tensor-wide scale wastes most levels
            where channels differ. Default: one scale a tensor.

    Raises:
        ValueError: If a part of the policy's scope names no module.
    """
    before = before or Plan()
    policy.check_scope([name for name, _ in model.named_modules()])
    plan = _Placer(model, flow, policy, block_types, per_call, depthwise_channels).place()
    return replace(plan, folded=before.folded,
                   reparameterized=before.reparameterized, split_attention=before.split_attention,
                   functional=before.functional)
