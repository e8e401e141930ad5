"""Where quantizers sit, derived from the data flow, and which ones.

A quantized layer quantizes its input; a block quantizes its output; a tensor is quantized once, where it is produced,
however many readers it has. For a ResNet these are BRECQ's points: after each inner ReLU and after add + ReLU.
"""
from collections import defaultdict

from torch import nn

from mmquant.models.dataflow import MOVEMENT, POOLING, Call, DataFlow
from mmquant.models.layers import computed_parts, is_depthwise, is_layer
from mmquant.models.matmul import OPERANDS
from mmquant.models.plan import Place, Plan
from mmquant.models.policy import QuantizerPolicy
from mmquant.models.units import find_blocks, first_layers, last_layers, layer_calls

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
UNREACHED = 'not reached through its own forward by the observed batch'
COMPUTED = ('computed in each forward pass: make it permanent first (in torch.nn.utils: '
            'parametrize.remove_parametrizations, remove_weight_norm, prune.remove)')
BY_CONFIG = 'float weights by configuration'


class _Placer:

    def __init__(self, model: nn.Module, flow: DataFlow, policy: QuantizerPolicy) -> None:
        self.model, self.flow, self.policy = model, flow, policy
        self.modules = dict(model.named_modules())
        self.calls = layer_calls(model, flow)
        self.blocks = {c.outputs[0]: c for c in find_blocks(model, flow, policy.block_types)
                       if c.bare and len(c.outputs) == 1}
        self.first, self.last = first_layers(model, flow), last_layers(flow)
        self.of_first = self._values_of_first()
        self.outside = f'outside the scope ({", ".join(policy.scope or ())})'
        self.by_input = defaultdict(list)
        for call in self.calls:
            self.by_input[flow.root(call.inputs[0])].append(call)

    def _values_of_first(self) -> set[int]:
        """Values whose nearest layers are first layers, in one walk along the record."""
        of_first, of_any = set(), set()
        for op in self.flow.ops:
            layer = self.flow.layer_around(op)
            known = [v for v in op.inputs if v in of_any]
            weighted = self.flow.is_weighted(op)
            if layer and layer.name in self.first or not weighted and known and of_first.issuperset(known):
                of_first.update(op.outputs)
            if weighted or known:
                of_any.update(op.outputs)
        return of_first

    def _quantizer(self, value: int, readers: list[str]) -> dict | None:
        feeds_last = bool(readers) and set(readers) <= self.last
        return self.policy.activation(readers, from_first=value in self.of_first, into_last=feeds_last)

    def _readers(self, value: int, through=MOVEMENT) -> tuple[list[str], bool]:
        """Layers that read a tensor, and whether anything else does."""
        calls, others = self.flow.layers_reading(value, through)
        return list(dict.fromkeys(c.name for c in calls)), others

    def _producer(self, value: int) -> Call | None:
        """The innermost module, called once and no container, that returns the tensor itself."""
        calls = [c for c in self.flow.returned_by.get(value, ()) if c.bare and len(self.flow.calls_of[c.name]) == 1
                 and c.parent >= 0 and not isinstance(self.modules[c.name], CONTAINERS)]
        return calls[-1] if calls else None

    def place(self) -> Plan:
        """All quantizers: first those of blocks, then where layers read what no block made.

        What a block returns must be quantized there, whoever reads it: the shortcut of the next block then sees the
        same values as its convolutions.
        """
        outputs: dict[str, Place] = {}
        inputs: dict[str, tuple[dict, list[str]]] = {}  # owner -> quantizer, layers that share it
        owner_of: dict[str, str] = {}
        for value, block in self.blocks.items():
            readers, _ = self._readers(value, MOVEMENT | POOLING)
            if readers and (quantizer := self._quantizer(value, readers)) is not None:
                covered = filter(self.policy.covers, self._readers(value)[0])
                outputs[block.name] = Place(block.name, 'output', quantizer, tuple(covered))
        for value, calls in self.by_input.items():
            made_by_block = value in self.blocks and self.blocks[value].name in outputs
            names = list(dict.fromkeys(c.name for c in calls))
            if (made_by_block or value in self.flow.weightless
                    or (quantizer := self._quantizer(value, names)) is None):
                continue
            covered = list(filter(self.policy.covers, names))
            once = covered == names and all(len(self.flow.calls_of[n]) == 1 for n in names)
            alone = len(covered) == 1 and not self._readers(value)[1]
            producer = self._producer(value)
            if once and not alone and producer is not None:
                outputs[producer.name] = Place(producer.name, 'output', quantizer, tuple(covered))
                continue
            # a layer has one input quantizer: who shares with one of the readers shares with all
            owner = next((owner_of[n] for n in covered if n in owner_of), covered[0])
            _, sharers = inputs.setdefault(owner, (quantizer, []))
            sharers += [n for n in covered if n not in owner_of]
            owner_of |= {n: owner for n in covered if n not in owner_of}
        weights, float_layers = self._weights()
        own = (p for owner, found in inputs.items() for p in self._inputs(owner, *found))
        return Plan((*outputs.values(), *weights, *own, *self._operands()), tuple(float_layers))

    def _inputs(self, owner: str, quantizer: dict, readers: list[str]):
        """The place of an input quantizer; one for each call of its owner where the policy wants that."""
        shape = None
        if self.policy.depthwise_channels and all(is_depthwise(self.modules[n]) for n in readers):
            quantizer = dict(quantizer, granularity='channel')
            layer = self.modules[owner]
            shape = (1, layer.in_channels, *[1] * (layer.weight.dim() - 2))
        times = len(self.flow.calls_of[owner]) if self.policy.per_call else 1
        for call in range(times):
            yield Place(owner, 'input', quantizer, tuple(readers), call if times > 1 else None, shape=shape)

    def _weights(self) -> tuple[list[Place], list[tuple[str, str]]]:
        """Places of weights in execution order; layers that stay float, and why."""
        places, float_layers, reached = [], [], dict.fromkeys(c.name for c in self.calls)
        for name in reached:
            quantizer = self.policy.weight(name, name in self.first, name in self.last)
            if quantizer is not None:
                places.append(Place(name, 'weight', quantizer, (name, )))
            elif self.policy.covers(name):
                float_layers.append((name, BY_CONFIG))
            else:
                float_layers.append((name, self.outside))
        float_layers += [(n, _why_float(m)) for n, m in self.modules.items()
                         if is_layer(m) and n not in reached]
        return places, [*float_layers, *self._other_weights({name for name, _ in float_layers})]

    def _other_weights(self, named: set[str]):
        """Modules that are not ``named`` yet and hold float weights, and why."""
        for name, module in self.modules.items():
            own = [n for n, p in module._parameters.items() if p is not None and p.dim() > 1
                   and not (n == 'weight' and is_layer(module))]
            if own and name not in named:
                why = f'{", ".join(own)}: no weight of a convolution or linear layer'
                yield name, why if self.policy.covers(name) else self.outside

    def _operands(self):
        for name, sites in self.flow.matmuls.items():
            quantizer = self.policy.operand(name)
            for position, kind in sites.items() if quantizer else ():
                for role in OPERANDS[kind]:
                    yield Place(name, 'operand', quantizer, call=position, role=role)


def _why_float(layer: nn.Module) -> str:
    parts = computed_parts(layer)
    return f'its {" and ".join(parts)} is {COMPUTED}' if parts else UNREACHED


def place_quantizers(model: nn.Module, flow: DataFlow, policy: QuantizerPolicy) -> Plan:
    """Decide where quantizers of a (folded) float model sit, and which.

    With the policy's ``per_call``, a layer called several times (a head shared over pyramid levels) gets an input
    quantizer for each call instead of one for all. With ``depthwise_channels``, a tensor that depthwise convolutions
    alone read gets a scale for each channel: these multiply the weights' scales, so integer arithmetic stays exact,
    where a tensor-wide scale wastes most levels if channels differ. Raises a ConfigError if a part of the policy's
    scope, or a pattern, names no module; warns of a position, or a pattern, that selects no layer.
    """
    names = [name for name, _ in model.named_modules()]
    policy.check_scope(names)
    placer = _Placer(model, flow, policy)
    plan = placer.place()
    policy.check_patterns(names, [*plan.layers, *flow.matmuls])
    reached = {c.name for c in placer.calls}
    policy.check_matches(dict(first=placer.first, last=placer.last & reached), {*reached, *flow.matmuls})
    return plan
