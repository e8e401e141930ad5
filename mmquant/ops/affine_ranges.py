"""Ranges of a uniform grid: to scale and zero point, decided here alone; errors of many, which searches compare."""
import torch
from torch import Tensor

from mmquant.structures import IntegerGrid

from . import c_kernels
from .elementwise import clamp, power_

SCALE_FLOOR = 1e-8
"""Scale of an all-zero tensor, and largest floor of a scale."""
RELATIVE_FLOOR = 2.0**-24
# Elements worked on at once: what a CPU core's cache holds; a GPU wants few large launches.
CHUNK_ELEMENTS = dict(cpu=2**16, cuda=2**24)


def positive(scale: Tensor, dim: int | None = None) -> Tensor:
    """Scales, those too small raised to a floor: what an all-zero channel gets.

    The floor is 2**-24 of the largest scale along ``dim`` (None: of all), at most ``SCALE_FLOOR``: a fixed one would be
    coarser than all values of some tensors, and turn them into zeros. All-zero scales become ``SCALE_FLOOR``.
    """
    largest = scale.abs().amax() if dim is None else scale.abs().amax(dim, keepdim=True)
    floor = (largest * RELATIVE_FLOOR).clamp_(torch.finfo(scale.dtype).tiny, SCALE_FLOOR)
    return torch.maximum(scale, torch.where(largest > 0, floor, SCALE_FLOOR))


def affine_parameters(low: Tensor, high: Tensor, grid: IntegerGrid) -> tuple[Tensor, Tensor]:
    """Scale and zero point that cover ``[low, high]`` and represent 0 exactly.

    Affine: ``scale = (high - low) / (q_max - q_min)``, ``zero_point = clamp(round(q_min - low / scale))``. Symmetric:
    ``scale = max(|low|, |high|) / q_max``, zero point 0.

    The ends (..., num_scales) are widened to 0. Returns scale (float32, see :func:`positive`) and zero_point (float32,
    holding integers in ``q_min..q_max``), shaped like ``low``.
    """
    low, high = low.float().clamp(max=0), high.float().clamp(min=0)
    if grid.symmetric:
        scale = positive(torch.maximum(-low, high) / grid.q_max, -1)
        return scale, torch.zeros_like(scale)
    scale = positive((high - low) / (grid.q_max - grid.q_min), -1)
    return scale, (grid.q_min - low / scale).round_().clamp_(grid.q_min, grid.q_max)


def affine_errors(x: Tensor, scale: Tensor, zero_point: Tensor, code_range: tuple[int, int], p: float,
                  half: float = 0.0) -> Tensor:
    """Mean of ``|(x - Q(x)) / scale|^p``, p > 0, of K candidates, shape (K, num_scales); no gradient.

    ``x`` is float32 (num_scales, n), ``scale`` and ``zero_point`` (K, num_scales); ``half`` is how far levels lie above
    ``scale * (code - zero_point)``, in steps.
    """
    low, high = code_range[0] - zero_point, code_range[1] - zero_point
    kernels = c_kernels.usable(x) if x.is_contiguous() and not half else None
    if kernels is not None:
        scale, low, high = (t.contiguous() for t in (scale, low, high))
        errors = torch.empty_like(scale)
        kernels.lp_errors(len(scale), *x.shape, x.data_ptr(), scale.data_ptr(), low.data_ptr(), high.data_ptr(), p,
                          errors.data_ptr())
        return errors
    rows = max(1, CHUNK_ELEMENTS.get(x.device.type, 2**20) // x.shape[1])
    chunks = zip(*(t.split(rows, dim=-2) for t in (x, scale[..., None], low[..., None], high[..., None])), strict=True)
    return torch.cat([_errors(*chunk, p, half) for chunk in chunks], dim=1)


def _errors(x: Tensor, scale: Tensor, low: Tensor, high: Tensor, p: float, half: float) -> Tensor:
    errors = torch.empty(scale.shape[:2], device=x.device)
    steps, codes = torch.empty_like(x), torch.empty_like(x)
    for i in range(len(scale)):
        torch.div(x, scale[i], out=steps)
        if half:
            steps.sub_(half)
        clamp(torch.round(steps, out=codes), low[i], high[i], out=codes)
        torch.mean(power_(codes.sub_(steps).abs_(), p), dim=1, out=errors[i])
    return errors
