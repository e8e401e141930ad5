"""Where integer operations need quantizers beside those of a layer's input and a block's output.

A runtime computes an operation in integers when each input comes from codes and its output becomes codes. Layers read
codes already; what is left are the network's input, and tensors that convolutions hand to something else than the
activation whose result is quantized: operands and results of additions, concatenations, pools and resizes.
"""
from torch import nn

from mmquant.models.dataflow import MOVEMENT, Call, DataFlow, Op
from mmquant.models.layers import PerCall, QuantizedLayer
from mmquant.models.plan import Place, Plan
from mmquant.models.quantizer_index import quantizer_at
from mmquant.models.units import layer_calls
from mmquant.quantizers import Quantizer

EIGHT_BITS = dict(type='mmquant.UniformAffineQuantizer', bits=8)
# Operations on codes that only choose among them.
ON_CODES = MOVEMENT | {'max_pool2d_with_indices', 'max_pool2d', 'upsample_nearest2d'}
# Activations that the range of the codes stands for.
CLIPS = frozenset('relu clamp clamp_min hardtanh relu6 threshold'.split())
INTEGER = frozenset('add cat mean _adaptive_avg_pool2d adaptive_avg_pool2d avg_pool2d upsample_nearest2d'.split())


class CodeFlow:
    """Which tensors of a quantized model are codes.

    Args:
        model (nn.Module): The architecture.
        flow (DataFlow): Its latest record.
        plan (Plan): Its quantizers.
    """

    def __init__(self, model: nn.Module, flow: DataFlow, plan: Plan) -> None:
        self.model, self.flow, self.plan = model, flow, plan
        self.calls = layer_calls(model, flow)
        self.made: dict[int, Place] = {c.outputs[0]: p for p in plan.places if p.what == 'output'
                                       for c in flow.calls_of.get(p.name, ()) if c.outputs}
        self.reading = {name for p in plan.places if p.what == 'input' for name in p.readers}

    def source(self, value: int) -> Place | None:
        """The place of the output quantizer whose codes a tensor consists of."""
        while value not in self.made:
            op = self.flow.producer.get(value)
            if op is None or op.name not in ON_CODES or len(op.inputs) != 1:
                return None
            value = op.inputs[0]
        return self.made[value]

    def becomes_codes(self, value: int) -> bool:
        """Whether a tensor is quantized wherever it is read, itself or behind a clip."""
        if self.source(value) is not None:
            return True
        if value in self.flow.calls[0].outputs or value in self.flow.decoded:
            return False
        readers = self.flow.readers.get(value, ())
        return bool(readers) and all(self._taken_as_codes(op) for op in readers)

    def _taken_as_codes(self, op: Op) -> bool:
        layer = self.flow.layer_around(op)
        if layer is not None:
            return layer.name in self.reading
        outputs = op.outputs[:1] if op.name.startswith('max_pool') else op.outputs  # no indices
        return op.name in CLIPS | ON_CODES and len(op.inputs) == 1 and all(map(self.becomes_codes, outputs))

    def reads_codes(self, call: Call) -> bool:
        """Whether what a layer is given in a call consists of codes."""
        return call.name in self.reading or self.source(call.inputs[0]) is not None

    def input_quantizers(self, name: str) -> list[Quantizer | None]:
        """Of a layer: what makes the codes that each of its calls reads; None where it reads floats."""
        layer = self.model.get_submodule(name)
        own = layer.input_quantizer if isinstance(layer, QuantizedLayer) else None
        if own is not None:
            return list(own) if isinstance(own, PerCall) else [own]
        places = [self.source(c.inputs[0]) for c in self.calls if c.name == name]
        return [p and quantizer_at(self.model, p) for p in places]


def deploy_places(model: nn.Module, flow: DataFlow, plan: Plan, between: bool = True) -> tuple[Place, ...]:
    """Places to add to a plan, so that layers with quantized weights can run in integers; all 8 bits, per tensor.

    ``between``: as of :class:`DeployProfile`. Nothing is added behind layers that read floats, as the plan has them.
    Tensors that no module returns (sums inside a forward of a pyramid) have no place and stay float.
    """
    if all(place.what == 'weight' for place in plan.places):
        return ()  # weights alone: nothing could run in integers
    codes = CodeFlow(model, flow, plan)
    inputs = _network_inputs(codes)
    codes.reading.update(name for place in inputs for name in place.readers)
    return (*inputs, *_between(codes)) if between else inputs


def _network_inputs(codes: CodeFlow) -> tuple[Place, ...]:
    by_value: dict[int, list[str]] = {}
    for call in codes.calls:
        value = codes.flow.root(call.inputs[0])
        if value in codes.flow.weightless and call.name in codes.plan.weights and call.name not in codes.reading \
                and codes.source(value) is None:
            by_value.setdefault(value, []).append(call.name)
    names = (tuple(dict.fromkeys(readers)) for readers in by_value.values())
    return tuple(Place(readers[0], 'input', dict(EIGHT_BITS), readers) for readers in names)


def _between(codes: CodeFlow) -> list[Place]:
    flow, found = codes.flow, {}
    wanted = {c.outputs[0] for c in codes.calls if c.name in codes.plan.weights and codes.reads_codes(c)
              and not isinstance(codes.model.get_submodule(c.name), nn.Linear)}
    for op in flow.ops:  # in order, so that what an operation makes counts for the next one
        if op.name in INTEGER and flow.layer_around(op) is None and all(_capable(codes, v, wanted) for v in op.inputs):
            wanted.update((*op.inputs, *op.outputs))
    for value in sorted(wanted):
        if codes.becomes_codes(value) or _clipped(codes, value, wanted):
            continue
        module = _returning(codes, value)
        if module is not None and module not in found:
            found[module] = Place(module, 'output', dict(EIGHT_BITS))
            codes.made[value] = found[module]
    return list(found.values())


def _capable(codes: CodeFlow, value: int, wanted: set[int]) -> bool:
    """Whether a tensor consists of codes, or will."""
    while value not in wanted and codes.source(value) is None:
        op = codes.flow.producer.get(value)
        if op is None or op.name not in CLIPS | ON_CODES or len(op.inputs) != 1:
            return False
        value = op.inputs[0]
    return True


def _clipped(codes: CodeFlow, value: int, wanted: set[int]) -> bool:
    """Whether a tensor is read by clips alone, whose results get quantizers themselves."""
    readers = codes.flow.readers.get(value, ())
    return bool(readers) and all(op.name in CLIPS and wanted.issuperset(op.outputs)
                                 and _returning(codes, op.outputs[0]) is not None for op in readers)


def _returning(codes: CodeFlow, value: int) -> str | None:
    """The innermost module that returns a tensor in each of its calls and has no output quantizer."""
    taken = {p.name for p in codes.plan.places if p.what == 'output'}
    for call in reversed(codes.flow.returned_by.get(value, [])):
        calls = codes.flow.calls_of[call.name]
        layer = call.name in codes.flow.layers
        own = isinstance(codes.model.get_submodule(call.name), Quantizer)
        if call.bare and call.parent >= 0 and call.name not in taken and not own and (len(calls) == 1 or layer):
            return call.name
    return None
