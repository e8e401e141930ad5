"""From a range of values to scale and zero point: the one place where this is decided."""

import torch
from torch import Tensor

from mmquant.structures import IntegerGrid

SCALE_FLOOR = 1e-8
"""Smallest scale; what an all-zero tensor or channel gets."""


def affine_parameters(low: Tensor, high: Tensor, grid: IntegerGrid) -> tuple[Tensor, Tensor]:
    """Scale and zero point that cover ``[low, high]`` and represent 0 exactly.

    Affine: ``scale = (high - low) / (q_max - q_min)``, ``zero_point = clamp(round(q_min - low / scale))``. Symmetric:
    ``scale = max(|low|, |high|) / q_max``, zero point 0.

    The ends, of any shape, are widened to 0. Returns scale (float32, >= 1e-8) and zero_point (float32, holding integers
    in ``q_min..q_max``), shaped like ``low``.
    """
    low, high = low.float().clamp(max=0), high.float().clamp(min=0)
    if grid.symmetric:
        scale = (torch.maximum(-low, high) / grid.q_max).clamp_(min=SCALE_FLOOR)
        return scale, torch.zeros_like(scale)
    scale = ((high - low) / (grid.q_max - grid.q_min)).clamp_(min=SCALE_FLOOR)
    return scale, (grid.q_min - low / scale).round_().clamp_(grid.q_min, grid.q_max)
