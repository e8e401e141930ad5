"""Every operation of an exported file alone: fed with the codes of the simulation, against the codes that it makes."""
from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor

from mmquant.export import tracing
from mmquant.export.executor.graph_executor import GraphExecutor
from mmquant.export.parts import Part
from mmquant.models import QuantizedModel

VALUES = 'quantize_dequantize'


@torch.no_grad()
def simulated_values(model: QuantizedModel, part: Part, inputs: Tensor) -> list[Tensor]:
    """What each activation quantizer returned, in the order of calls."""
    found, operator = [], tracing.quantize_dequantize

    def note(*args):
        x_hat = operator(*args)
        found.append(x_hat.clone())  # sums may be written into it
        return x_hat

    tracing.quantize_dequantize = note
    try:
        with tracing.traceable(model, float_layers={}):
            part(inputs)
    finally:
        tracing.quantize_dequantize = operator
    return found


def alone(model: QuantizedModel, part: Part, file: str | os.PathLike, inputs: Tensor) -> tuple[float, int]:
    """(largest share of codes of a tensor that differ, largest difference in codes) over all operations."""
    executor = GraphExecutor(file)
    given = _codes(executor, simulated_values(model, part, inputs))
    found = executor.run({executor.view.inputs[0].name: inputs.numpy()}, list(given), given)
    share, step = 0.0, 0
    for name, codes in given.items():
        difference = np.abs(found[name].astype(np.int64) - codes.astype(np.int64))
        share, step = max(share, float((difference > 0).mean())), max(step, int(difference.max(initial=0)))
    return share, step


def _codes(executor: GraphExecutor, values: list[Tensor]) -> dict[str, np.ndarray]:
    """Tensor of codes in the file -> codes of the simulation; the n-th quantizer became ``quantize_dequantize_n``."""
    found = {}
    for node in executor.view.nodes:
        name = node.outputs[0]
        number = name.removeprefix(VALUES).removeprefix('_')
        if node.op != 'DequantizeLinear' or not name.startswith(VALUES) or number and not number.isdigit():
            continue
        scale, zero = (executor.view.constants[i] for i in node.inputs[1:3])
        value = values[int(number or 0)].numpy()
        codes = (np.rint(value / scale) + zero).astype(zero.dtype)
        made = executor.view.maker[node.inputs[0]]
        while made.op in ('Reshape', 'Squeeze', 'Unsqueeze'):
            made = executor.view.maker[made.inputs[0]]
        if made.op in ('QuantizeLinear', 'Clip'):
            found[made.outputs[0]] = codes
    return found
