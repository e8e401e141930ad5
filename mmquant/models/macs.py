"""Multiply-accumulates of layers with weights, from the shapes that the data flow saw."""
from __future__ import annotations

from math import prod

from torch import nn

from mmquant.models.dataflow import Call, DataFlow
from mmquant.models.layers import TRANSPOSED_TYPES, num_outputs
from mmquant.models.units import layer_calls


def macs_of_calls(model: nn.Module, flow: DataFlow, batch: int = 1) -> list[tuple[Call, int]]:
    """Calls of layers with weights in execution order, and what each costs for one image.

    ``batch`` is the number of images in the recorded batch; windows and tokens then count for one image.
    """
    modules, found = dict(model.named_modules()), []
    for call in layer_calls(model, flow):
        layer, before, after = modules[call.name], flow.shapes[call.inputs[0]], flow.shapes[call.outputs[0]]
        if isinstance(layer, TRANSPOSED_TYPES):  # every element of the input meets all weights of its channel
            places = prod(before[1:]) // layer.in_channels
        else:
            places = prod(after[1:]) // num_outputs(layer)
        found.append((call, places * layer.weight.numel() * before[0] // batch))
    return found
