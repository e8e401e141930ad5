"""Uniform affine quantization: ``scale * (clip(round(x / scale) + zero_point, q_min, q_max) - zero_point)``.

The clip is applied as ``clip(round(x / scale), q_min - zero_point, q_max - zero_point)``: the same number (all terms
are small integers, exact in float32) with two passes over memory less. ``round`` is half-to-even, as in
``torch.round``. Masks for the backward pass are kept as floats, because mixed float and bool arithmetic is five times
slower on a CPU.
"""
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import c_kernels, triton_kernels
from .elementwise import clamp, like, pieces


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, q_min: int, q_max: int) -> Tensor:
    """Integer codes as a float tensor (float64 for float64 ``x``, else float32) of what :func:`fake_quantize` takes; no
    gradient."""
    with torch.no_grad():
        dtype = _compute_dtype(x)
        zero_point = zero_point.to(dtype)
        steps = torch.div(x.to(dtype), scale.to(dtype)).round_()
        return clamp(steps, q_min - zero_point, q_max - zero_point, out=steps).add_(zero_point)


def dequantize(x_int: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Values of integer codes, ``scale * (x_int - zero_point)``, in ``scale``'s dtype; differentiable in ``scale``."""
    return torch.sub(x_int.to(scale.dtype), zero_point.detach()) * scale


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, q_min: int, q_max: int) -> Tensor:
    """Round ``x`` to its nearest representable value.

    Gradients: for ``x`` straight through, 1 inside the range and 0 where clipped; for ``scale``, if it requires one,
    that of LSQ (arXiv 1902.08153) without gradient scaling: ``round(x / scale) - x / scale`` inside,
    ``q_min - zero_point`` and ``q_max - zero_point`` where clipped; none for ``zero_point``.

    ``x`` is of any float dtype and memory format, which the result shares; arithmetic is in float32 (float64 for
    float64 ``x``). ``scale`` > 0 and the integers ``zero_point`` are broadcastable against ``x``.
    """
    if torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad):
        return _FakeQuantize.apply(x, scale, zero_point, q_min, q_max)
    return _write_values(x, scale, zero_point, q_min, q_max)


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor, zero_point: Tensor, q_min: int, q_max: int) -> Tensor:
        ctx.x_dtype, ctx.scale_dtype, ctx.scale_shape, ctx.grid = x.dtype, scale.dtype, scale.shape, None
        if scale.numel() == 1 and scale.dtype == torch.float32 and triton_kernels.dense(x):
            ctx.grid = scale, q_min - zero_point, q_max - zero_point
            ctx.save_for_backward(x)
            return triton_kernels.fake_quantize(x, *ctx.grid)
        if scale.numel() == 1 and x.numel() and c_kernels.usable(x) is not None:
            ctx.grid = _scalars(scale, zero_point, q_min, q_max)
            ctx.save_for_backward(x)
            return _write_values(x, scale, zero_point, q_min, q_max)
        dtype = _compute_dtype(x)
        inside = torch.empty_like(x, dtype=dtype) if ctx.needs_input_grad[0] else None
        residual = torch.empty_like(x, dtype=dtype) if ctx.needs_input_grad[1] else None
        ctx.save_for_backward(inside, residual)
        return _write_values(x, scale, zero_point, q_min, q_max, inside, residual)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grid is not None and grad.is_cuda:
            x, = ctx.saved_tensors
            grad_x, grad_scale = triton_kernels.fake_quantize_backward(x, *ctx.grid, like(grad, x))
            return grad_x, grad_scale.reshape(ctx.scale_shape).to(ctx.scale_dtype), None, None, None
        if ctx.grid is not None:
            return *_backward_natively(ctx, ctx.saved_tensors[0], grad), None, None, None
        inside, residual = ctx.saved_tensors
        grad_x = torch.mul(grad, inside).to(ctx.x_dtype) if inside is not None else None
        if residual is None:
            return grad_x, None, None, None, None
        if ctx.scale_shape.numel() == 1:
            parts = [torch.mul(g, r).sum() for g, r in pieces((grad, residual), ())]
            grad_scale = torch.stack(parts).sum().reshape(ctx.scale_shape)
        else:
            grad_scale = torch.mul(grad, residual).sum_to_size(ctx.scale_shape)
        return grad_x, grad_scale.to(ctx.scale_dtype), None, None, None


def _scalars(scale: Tensor, zero_point: Tensor, q_min: int, q_max: int) -> tuple[float, float, float]:
    zero = zero_point.item()
    return scale.item(), q_min - zero, q_max - zero


def _backward_natively(ctx, x: Tensor, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Gradients by the compiled kernel, one pass over ``x`` and ``grad``."""
    grad = like(grad, x)
    grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
    sums = c_kernels.chunk_sums(x.numel()) if ctx.needs_input_grad[1] else None
    results = (None if t is None else t.data_ptr() for t in (grad_x, sums))
    c_kernels.library().fake_quantize_backward(x.numel(), x.data_ptr(), grad.data_ptr(), *ctx.grid, *results)
    return grad_x, None if sums is None else sums.sum().reshape(ctx.scale_shape).to(ctx.scale_dtype)


def _write_values(x: Tensor, scale: Tensor, zero_point: Tensor, q_min: int, q_max: int, inside: Tensor | None = None,
                  residual: Tensor | None = None) -> Tensor:
    """The fake-quantized ``x``; fills ``inside`` (1 or 0) and ``residual`` (d x_hat / d scale) if given."""
    plain = inside is None and residual is None and scale.numel() == 1
    if plain and scale.dtype == torch.float32 and triton_kernels.dense(x):
        return triton_kernels.fake_quantize(x, scale, q_min - zero_point, q_max - zero_point)
    x_hat = torch.empty_like(x)
    if plain and x.numel():
        kernels = c_kernels.usable(x, x_hat)
        if kernels is not None:
            kernels.fake_quantize(x.numel(), x.data_ptr(), *_scalars(scale, zero_point, q_min, q_max), x_hat.data_ptr())
            return x_hat
    dtype = _compute_dtype(x)
    scale, zero_point = scale.to(dtype), zero_point.to(dtype)
    small = scale, q_min - zero_point, q_max - zero_point
    for x_part, out, is_in, slope, step, low, high in pieces((x, x_hat, inside, residual), small):
        steps = torch.div(x_part.to(dtype), step)
        rounded = torch.round(steps)
        clipped = clamp(rounded, low, high)
        if is_in is not None or slope is not None:
            kept = rounded.eq_(clipped)
            if is_in is not None:
                is_in.copy_(kept)
            if slope is not None:  # code - x / scale inside, code where clipped
                torch.sub(clipped, steps.mul_(kept), out=slope)
        torch.mul(clipped, step, out=out)
    return x_hat


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
