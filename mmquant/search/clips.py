"""The coordinates of a search: one for each quantizer, in the order in which the network meets them."""
from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from torch import nn

from mmquant.models import QuantizedModel
from mmquant.models.cost import macs_of_calls
from mmquant.models.layers import PerCall, QuantizedLayer
from mmquant.models.matmul import QuantizedMatmulOwner
from mmquant.quantizers import Quantizer


@dataclass(frozen=True)
class Clip:
    """One quantizer; its clips are its values times one factor."""
    name: str  # 'weight of <layer>' or 'activation at <place>'
    tick: float  # where the data flow first meets it: what ended before does not depend on it
    quantizer: Quantizer
    layer: nn.Module | None = None  # of a weight quantizer


def find_clips(model: QuantizedModel) -> list[Clip]:
    """The quantizers of a model that are reached, in execution order; weights before inputs of the same layer."""
    calls = model.flow.calls_of
    met = defaultdict(list)  # quantizer -> ticks
    for name, module in model.architecture.named_modules():
        for call in calls.get(name, ()):
            if isinstance(module, QuantizedLayer) and module.input_quantizer is not None:
                source = module.input_quantizer
                met[source[call.occurrence] if isinstance(source, PerCall) else source].append(call.enter - 0.5)
            if isinstance(getattr(module, 'output_quantizer', None), Quantizer):
                met[module.output_quantizer].append(call.exit + 0.5)
            if isinstance(module, QuantizedMatmulOwner):
                for site in module.matmul_quantizers.values():
                    for q in site.values():
                        met[q].append(call.enter - 0.5)
    clips = [Clip(f'weight of {name}', calls[name][0].enter - 0.5, layer.weight_quantizer, layer)
             for name, layer in model.quantized_layers().items() if name in calls]
    clips += [Clip(f'activation at {name}', min(met[q]), q) for name, q in model.activation_quantizers().items()
              if q in met]
    return sorted(clips, key=lambda clip: clip.tick)


def shares_behind(model: QuantizedModel, ticks: list[float]) -> list[float]:
    """Share of the network's multiply-accumulates behind each tick, in 0..1."""
    macs = macs_of_calls(model.architecture, model.flow)
    total = sum(n for _, n in macs)
    return [sum(n for call, n in macs if call.enter > tick) / total for tick in ticks]
