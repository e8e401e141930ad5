"""Triton versions of the elementwise chains of roundings and fake quantization: one launch instead of up to thirty.

Triton comes with CUDA builds of torch. Where it is missing, or the tensors are not dense float32 of one memory order,
:func:`usable` returns False and the callers use tensor operations instead.
"""
from functools import lru_cache

import torch
from torch import Tensor

from .elementwise import one_order

BLOCK = 1024


@lru_cache(maxsize=1)
def _kernels():
    """The kernels ``(soft_weight, combine, fake_quantize)``, compiled on use, or None without Triton."""
    try:
        import triton
        import triton.language as tl
    except ImportError:
        return None

    @triton.jit
    def soft_weight(v_ptr, base_ptr, scale_ptr, low_ptr, high_ptr, beta_ptr, weight_ptr, slope_ptr, pull_ptr, sum_ptr,
                    numel, length, per_row, gamma, width, REGULARIZED: tl.constexpr, SIZE: tl.constexpr):
        index = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
        mask = index < numel
        row = (index // length) * per_row
        scale = tl.load(scale_ptr + row, mask=mask, other=1.0)
        low = tl.load(low_ptr + row, mask=mask, other=0.0)
        high = tl.load(high_ptr + row, mask=mask, other=0.0)
        v = tl.load(v_ptr + index, mask=mask, other=0.0)
        base = tl.load(base_ptr + index, mask=mask, other=0.0)
        s = 1.0 / (1.0 + tl.exp(-v))
        raw = s * width + gamma
        h = tl.minimum(tl.maximum(raw, 0.0), 1.0)
        rise = tl.where((raw > 0.0) & (raw < 1.0), s * (1.0 - s) * width, 0.0)
        level = base + h
        tl.store(weight_ptr + index, tl.minimum(tl.maximum(level, low), high) * scale, mask=mask)
        tl.store(slope_ptr + index, tl.where((level >= low) & (level <= high), rise * scale, 0.0), mask=mask)
        if REGULARIZED:
            beta = tl.load(beta_ptr)
            signed = 2.0 * h - 1.0
            distance = tl.abs(signed)
            power = tl.where(distance > 0.0, tl.exp((beta - 1.0) * tl.log(distance + 1e-30)), 0.0)
            pull = -2.0 * beta * tl.where(signed < 0.0, -power, power) * rise
            tl.store(pull_ptr + index, pull, mask=mask)
            tl.store(sum_ptr + tl.program_id(0), tl.sum(tl.where(mask, 1.0 - distance * power, 0.0), axis=0))

    @triton.jit
    def combine(slope_ptr, grad_ptr, pull_ptr, factor_ptr, numel, SIZE: tl.constexpr):
        index = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
        mask = index < numel
        value = tl.load(slope_ptr + index, mask=mask) * tl.load(grad_ptr + index, mask=mask)
        value += tl.load(pull_ptr + index, mask=mask) * tl.load(factor_ptr)
        tl.store(slope_ptr + index, value, mask=mask)

    @triton.jit
    def fake_quantize(x_ptr, scale_ptr, low_ptr, high_ptr, grad_ptr, out_ptr, sum_ptr, numel, BACKWARD: tl.constexpr,
                      SIZE: tl.constexpr):
        index = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
        mask = index < numel
        scale, low, high = tl.load(scale_ptr), tl.load(low_ptr), tl.load(high_ptr)
        x = tl.load(x_ptr + index, mask=mask, other=0.0).to(tl.float32)
        steps = tl.div_rn(x, tl.zeros_like(x) + scale)
        near = tl.minimum(tl.maximum(steps, low - 1.0), high + 1.0)
        level = (near + 12582912.0) - 12582912.0  # 1.5 * 2^23: rounds half to even
        code = tl.minimum(tl.maximum(level, low), high)
        if BACKWARD:
            grad = tl.load(grad_ptr + index, mask=mask, other=0.0).to(tl.float32)
            inside = level == code
            tl.store(out_ptr + index, tl.where(inside, grad, 0.0), mask=mask)
            tl.store(sum_ptr + tl.program_id(0), tl.sum(grad * (code - tl.where(inside, steps, 0.0)), axis=0))
        else:
            tl.store(out_ptr + index, code * scale, mask=mask)

    return soft_weight, combine, fake_quantize


@lru_cache(maxsize=1)
def _works() -> bool:
    """Whether Triton is there and can build for this GPU (it needs a C compiler on the machine)."""
    if _kernels() is None:
        return False
    try:
        x, one = torch.zeros(2, 2, device='cuda'), torch.ones((), device='cuda')
        _, slope, pull, _ = soft_weight(x, x, one, one, one, -0.1, 1.1, one)
        combine(slope, x, pull, one)
        torch.cuda.synchronize()
    except Exception:  # whatever a compiler may raise: the tensor operations do the same, slower
        return False
    return True


def usable(*tensors: Tensor) -> bool:
    """Whether all tensors are float32 on one GPU, dense and of one memory order, and Triton is there."""
    return all(t.dtype == torch.float32 for t in tensors) and dense(*tensors)


def dense(*tensors: Tensor) -> bool:
    """As :func:`usable`, of any floating-point type."""
    fitting = all(t.is_cuda and t.is_floating_point() for t in tensors) and one_order(*tensors)
    return bool(fitting and tensors[0].numel() and _works())


def soft_weight(v: Tensor, base: Tensor, scale: Tensor, low: Tensor, high: Tensor, gamma: float, zeta: float,
                beta: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Weight, its slope by ``v``; with ``beta``, the exponent as a scalar tensor, the regularizer's slope and its sum.

    ``v`` and ``base`` are :func:`usable`; of the others there is one value, or one for each index of the first axis.
    """
    kernel = _kernels()[0]
    numel, grid = v.numel(), (-(-v.numel() // BLOCK), )
    weight, slope = torch.empty_like(v), torch.empty_like(v)
    pull, sums = (weight, weight) if beta is None else (torch.empty_like(v), v.new_empty(grid[0]))
    kernel[grid](v, base, scale.contiguous(), low.contiguous(), high.contiguous(), weight if beta is None else beta,
                 weight, slope, pull, sums, numel, numel // v.shape[0], int(scale.numel() > 1), gamma, zeta - gamma,
                 REGULARIZED=beta is not None, SIZE=BLOCK)
    return (weight, slope, None, None) if beta is None else (weight, slope, pull, sums.sum())


def combine(slope: Tensor, grad: Tensor, pull: Tensor, factor: Tensor) -> None:
    """``slope * grad + pull * factor``, into ``slope``; ``factor`` is a scalar."""
    _kernels()[1][(-(-slope.numel() // BLOCK), )](slope, grad, pull, factor, slope.numel(), SIZE=BLOCK)


def fake_quantize(x: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``scale * clip(round(x / scale), low, high)`` for scalar tensors ``scale``, ``low`` and ``high``."""
    out = torch.empty_like(x)
    _kernels()[2][(-(-x.numel() // BLOCK), )](x, scale, low, high, x, out, x, x.numel(), BACKWARD=False, SIZE=BLOCK)
    return out


def fake_quantize_backward(x: Tensor, scale: Tensor, low: Tensor, high: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`fake_quantize` by ``x`` and by ``scale`` (a scalar)."""
    grad_x, sums = torch.empty_like(x), scale.new_empty(-(-x.numel() // BLOCK), dtype=torch.float32)
    _kernels()[2][(len(sums), )](x, scale, low, high, grad, grad_x, sums, x.numel(), BACKWARD=True, SIZE=BLOCK)
    return grad_x, sums.sum()
