"""What a quantized model costs: parameters, multiply-accumulates, bit operations, bytes."""
from collections import Counter
from dataclasses import asdict, dataclass
from math import prod

from torch import nn

from mmquant.models import QuantizedModel
from mmquant.models.dataflow import Call, DataFlow
from mmquant.models.layers import TRANSPOSED_TYPES, num_outputs
from mmquant.models.units import layer_calls

FLOAT_BITS = 32


@dataclass(frozen=True)
class LayerCost:
    """One layer with weights: multiply-accumulates for one image, bits of weights and input (32: float).

    ``note`` tells where its input is quantized, or why it is float: a column of a table, that nothing reads.
    """
    name: str
    params: int
    macs: int
    w_bits: int
    a_bits: int
    note: str = ''

    @property
    def bops(self) -> int:
        """Bit operations for one image: MACs times both widths."""
        return self.macs * self.w_bits * self.a_bits


@dataclass(frozen=True)
class ModelCost:
    """Sums over a model: all parameters after folding; MACs and bit operations of layers with weights, one image.

    ``size_mb`` is the packed size in 10**6 bytes: what the weight quantizers store, everything else at 32 bits;
    ``float_size_mb`` has all parameters at 32 bits.
    """
    params: int
    macs: int
    bops: int
    size_mb: float
    float_size_mb: float
    layers: tuple[LayerCost, ...] = ()

    def to_dict(self) -> dict:
        return asdict(self)


def macs_of_calls(model: nn.Module, flow: DataFlow, batch: int = 1) -> list[tuple[Call, int]]:
    """Calls of layers with weights in execution order, and what each costs for one image.

    ``batch`` is the number of images in the recorded batch; windows and tokens then count for one image.
    """
    found = []
    for call in layer_calls(model, flow):
        layer, before = model.get_submodule(call.name), flow.shapes[call.inputs[0]]
        if isinstance(layer, TRANSPOSED_TYPES):  # every element of the input meets all weights of its channel
            places = prod(before[1:]) // layer.in_channels
        else:
            places = prod(flow.shapes[call.outputs[0]][1:]) // num_outputs(layer)
        found.append((call, places * layer.weight.numel() * before[0] // batch))
    return found


def model_cost(model: QuantizedModel, batch: int = 1) -> ModelCost:
    """Cost of a model with quantizers whose data flow is recorded; ``batch`` as for :func:`macs_of_calls`."""
    macs = Counter()
    for call, count in macs_of_calls(model.architecture, model.flow, batch):
        macs[call.name] += count
    plan, reasons = model.plan, dict(model.plan.float_layers)
    order = {name: i for i, name in reversed([*enumerate(c.name for c in model.flow.calls)])}
    layers, bits_saved = [], 0
    for name in sorted(plan.layers, key=lambda n: order.get(n, len(order))):
        weight, source, layer = plan.weights.get(name), plan.inputs.get(name), model.architecture.get_submodule(name)
        own = sum(p.numel() for p in layer.parameters(recurse=False))
        layers.append(LayerCost(name, own, macs[name], weight.bits if weight else FLOAT_BITS,
                                source.bits if source else FLOAT_BITS, reasons.get(name) or _input_note(model, name)))
        if weight:
            count = layer._parameters['weight'].numel()
            stored = layer.weight_quantizer.stored_bits(count) + sum(x.stored_bits() for x in layer.adapters)
            bits_saved += count * FLOAT_BITS - stored
    params = sum(p.numel() for p in model.architecture.parameters())
    total_bits = params * FLOAT_BITS - bits_saved
    return ModelCost(params, sum(x.macs for x in layers), sum(x.bops for x in layers), total_bits / 8e6,
                     params * FLOAT_BITS / 8e6, tuple(layers))


def _input_note(model: QuantizedModel, name: str) -> str:
    """Where the input of a layer with quantized weights is quantized, if not by its own quantizer."""
    source, flow = model.plan.inputs.get(name), model.flow
    if source is not None:
        return f'quantized at {source.name}' if source.what == 'output' else ''
    reads = (c.inputs[0] for c in flow.calls_of.get(name, ()) if c.inputs)
    return '' if flow.weightless.isdisjoint(reads) else 'reads the network input'
