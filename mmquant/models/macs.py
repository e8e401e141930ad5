"""Multiply-accumulates of layers with weights, from the shapes that the data flow saw."""
from __future__ import annotations

from math import prod

from torch import nn

from mmquant.models.dataflow import Call, DataFlow
from mmquant.models.layers import TRANSPOSED_TYPES, num_outputs
from mmquant.models.units import layer_calls


def _macs(layer: nn.Module, in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of one call for one image (shapes include the batch)."""
    if isinstance(layer, TRANSPOSED_TYPES):  # every element of the input meets all weights of its channel
        return prod(in_shape[1:]) // layer.in_channels * layer.weight.numel()
    return prod(out_shape[1:]) // num_outputs(layer) * layer.weight.numel()


def macs_of_calls(model: nn.Module, flow: DataFlow, batch: int = 1) -> list[tuple[Call, int]]:
    """Calls of layers with weights in execution order, and what each costs for one image.

    Args:
        model (nn.Module): The model the flow was recorded on.
        flow (DataFlow): Its record.
        batch (int): Images in the recorded batch; windows and tokens then count for one image.
    """
    modules, found = dict(model.named_modules()), []
    for call in layer_calls(model, flow):
        rows = flow.shapes[call.inputs[0]]
        found.append((call, _macs(modules[call.name], rows, flow.shapes[call.outputs[0]]) * rows[0] // batch))
    return found
