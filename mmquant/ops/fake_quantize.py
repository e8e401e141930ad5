"""Uniform affine quantization: ``scale * (clip(round(x / scale) + zero_point, q_min, q_max) - zero_point)``.

The clip is applied as ``clip(round(x / scale), q_min - zero_point, q_max - zero_point)``: the same number (all terms
are small integers, exact in float32) with two passes over memory less. ``round`` is half-to-even, as in
``torch.round``. Masks for the backward pass are kept as floats, because mixed float and bool arithmetic is five times
slower on a CPU.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .clamp import clamp


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, q_min: int, q_max: int) -> Tensor:
    """Integer codes of ``x`` as a float tensor (float32, or float64 for float64 ``x``); no gradient.

    Args:
        x: Float tensor of any shape.
        scale: Positive, broadcastable against ``x``.
        zero_point: Integers, broadcastable like ``scale``.
        q_min: Smallest code.
        q_max: Largest code.
    """
    with torch.no_grad():
        x, scale, zero_point = _common_dtype(x, scale, zero_point)
        steps = torch.div(x, scale).round_()
        return clamp(steps, q_min - zero_point, q_max - zero_point, out=steps).add_(zero_point)


def dequantize(x_int: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Values of integer codes, ``scale * (x_int - zero_point)``, in ``scale``'s dtype; differentiable in ``scale``."""
    return torch.sub(x_int.to(scale.dtype), zero_point.detach()) * scale


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, q_min: int, q_max: int) -> Tensor:
    """Round ``x`` to its nearest representable value.

    Gradients: for ``x`` straight through, 1 inside the range and 0 where clipped; for ``scale``, if it requires one,
    that of LSQ (arXiv 1902.08153) without gradient scaling: ``round(x / scale) - x / scale`` inside,
    ``q_min - zero_point`` and ``q_max - zero_point`` where clipped; none for ``zero_point``.

    Args:
        x: Float tensor of any shape, dtype and memory format; arithmetic is in float32 (float64 for float64 ``x``).
        scale: Positive, broadcastable against ``x``.
        zero_point: Integers, broadcastable like ``scale``.
        q_min: Smallest code.
        q_max: Largest code.

    Returns:
        Tensor of ``x``'s shape, dtype and memory format.
    """
    if torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad):
        return _FakeQuantize.apply(x, scale, zero_point, q_min, q_max)
    wide, scale, zero_point = _common_dtype(x, scale, zero_point)
    steps = torch.div(wide, scale).round_()
    return clamp(steps, q_min - zero_point, q_max - zero_point, out=steps).mul_(scale).to(x.dtype)


class _FakeQuantize(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor, zero_point: Tensor, q_min: int, q_max: int) -> Tensor:
        ctx.x_dtype, ctx.scale_dtype, ctx.scale_shape = x.dtype, scale.dtype, scale.shape
        wide, scale, zero_point = _common_dtype(x, scale, zero_point)
        steps = torch.div(wide, scale)
        rounded = steps.round()
        clipped = clamp(rounded, q_min - zero_point, q_max - zero_point)
        inside = rounded.eq_(clipped)
        residual = None
        if ctx.needs_input_grad[1]:  # LSQ: code - x / scale inside, code where clipped
            residual = torch.sub(clipped, steps.mul_(inside), out=steps)
        ctx.save_for_backward(inside if ctx.needs_input_grad[0] else None, residual)
        return clipped.mul_(scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        inside, residual = ctx.saved_tensors
        grad_x = torch.mul(grad, inside).to(ctx.x_dtype) if inside is not None else None
        grad_scale = None
        if residual is not None:
            grad_scale = torch.mul(grad, residual)
            grad_scale = grad_scale.sum() if not ctx.scale_shape else grad_scale.sum_to_size(ctx.scale_shape)
            grad_scale = grad_scale.to(ctx.scale_dtype)
        return grad_x, grad_scale, None, None, None


def _common_dtype(x: Tensor, scale: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.to(dtype), scale.to(dtype), zero_point.to(dtype)
