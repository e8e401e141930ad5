"""Every operation of an exported file alone: fed with the codes of the simulation, against the codes that it makes."""
from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmquant.export import tracing
from mmquant.export.executor.graph_executor import GraphExecutor
from mmquant.export.parts import Part
from mmquant.models import QuantizedModel

VALUES = 'quantize_dequantize'
NEAR_TIE = 1e-3  # of a step


@torch.no_grad()
def simulated_values(model: QuantizedModel, part: Part, inputs: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What each activation quantizer returned, and where it rounded a value near the middle of two codes; by calls."""
    found, operator = [], tracing.quantize_dequantize

    def note(x, scale, *args):
        x_hat, real = operator(x, scale, *args), x / scale
        found.append((x_hat.clone(), (real - real.floor() - 0.5).abs() < NEAR_TIE))  # sums may be written into it
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
    found = differences(model, part, file, inputs).values()
    return max((x.differing / x.size for x in found if x.size), default=0.0), max((x.step for x in found), default=0)


@dataclass(frozen=True)
class Difference:
    """Of one tensor: its codes, how many differ, how many of these where the simulation rounded near the middle of two
    codes (scales in small ratios make such values frequent, and each runtime rounds them its way), and by how much.
    """
    size: int
    differing: int
    ties: int
    step: int


def differences(model: QuantizedModel, part: Part, file: str | os.PathLike, inputs: Tensor) -> dict[str, Difference]:
    """Tensor in the file -> codes of each operation alone against those of the simulation."""
    executor = GraphExecutor(file)
    given = _codes(executor, simulated_values(model, part, inputs))
    codes = {name: x for name, (x, _) in given.items()}
    made = executor.run({executor.view.inputs[0].name: inputs.numpy()}, list(codes), codes)
    found = {}
    for name, (codes, near) in given.items():
        gap = np.abs(made[name].astype(np.int64) - codes.astype(np.int64))
        ties = int(((gap == 1) & near).sum())
        found[name] = Difference(gap.size, int((gap > 0).sum()), ties, int(gap.max(initial=0)))
    return found


def _codes(executor: GraphExecutor, values: list[tuple[Tensor, Tensor]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Tensor of codes in the file -> codes of the simulation, and where they are near a tie.

    The n-th quantizer became ``quantize_dequantize_n``.
    """
    found = {}
    for node in executor.view.nodes:
        name = node.outputs[0]
        number = name.removeprefix(VALUES).removeprefix('_')
        if node.op != 'DequantizeLinear' or not name.startswith(VALUES) or number and not number.isdigit():
            continue
        scale, zero = (executor.view.constants[i] for i in node.inputs[1:3])
        value, near = (x.numpy() for x in values[int(number or 0)])
        codes = (np.rint(value / scale) + zero).astype(zero.dtype)
        made = executor.view.maker[node.inputs[0]]
        while made.op in ('Reshape', 'Squeeze', 'Unsqueeze'):
            made = executor.view.maker[made.inputs[0]]
        if made.op in ('QuantizeLinear', 'Clip'):
            found[made.outputs[0]] = codes, near
    return found
