"""AdaRound's relaxation of rounding (arXiv 2004.10568): each weight moves continuously between its two grid neighbours.

``h(v) = clip((zeta - gamma) * sigmoid(v) + gamma, 0, 1)`` with gamma = -0.1, zeta = 1.1. These functions run once per
training step over all weights of a unit, so the forward pass computes the derivative too, in one trip through memory.
"""
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import c_kernels, triton_kernels
from .elementwise import clamp, like, pieces, power_

GAMMA, ZETA = -0.1, 1.1
_hardtanh_backward = torch.ops.aten.hardtanh_backward  # (grad, x, low, high): grad if low < x < high, else exactly 0
_sigmoid_backward = torch.ops.aten.sigmoid_backward  # (grad, s): grad * s * (1 - s)


def rectified_sigmoid(v: Tensor, gamma: float = GAMMA, zeta: float = ZETA) -> Tensor:
    """``h(v)``, in [0, 1]; exactly 0 below and 1 above the saturation points (-/+ ln 11 by default)."""
    return torch.sigmoid(v).mul(zeta - gamma).add(gamma).clamp(0, 1)


def soft_weight(v: Tensor, base: Tensor, scale: Tensor, zero_point: Tensor, q_min: int, q_max: int,
                gamma: float = GAMMA, zeta: float = ZETA) -> Tensor:
    """``scale * (clip(base + h(v) + zero_point, q_min, q_max) - zero_point)``, with a gradient for ``v`` only.

    ``v`` and ``base = floor(weight / scale)`` have the shape of the weight; ``scale`` and ``zero_point`` are
    broadcastable against it. ``gamma`` < 0 and ``zeta`` > 1 stretch the sigmoid.
    """
    return _SoftWeight.apply(v, base, scale, zero_point, q_min, q_max, gamma, zeta)


def rounding_regularizer(v: Tensor, beta: float | Tensor, gamma: float = GAMMA, zeta: float = ZETA) -> Tensor:
    """``sum(1 - |2 h(v) - 1|^beta)``: a scalar, 0 when every ``h`` is 0 or 1 and ``v.numel()`` when every ``h`` is 1/2.

    Its gradient is exactly 0 where ``h`` is saturated. High values of ``beta`` (20) leave most variables free, low ones
    (2) push them to 0 or 1; ValueError below 1, but a scalar tensor is not checked.
    """
    if not isinstance(beta, Tensor) and beta < 1:
        raise ValueError(f'beta={beta} is not supported: the regularizer needs an exponent >= 1 (usual: 20 to 2).')
    return _RoundingRegularizer.apply(v, beta, gamma, zeta)


def regularized_soft_weight(v: Tensor, base: Tensor, scale: Tensor, zero_point: Tensor, q_min: int, q_max: int,
                            beta: float | Tensor, gamma: float = GAMMA, zeta: float = ZETA) -> tuple[Tensor, Tensor]:
    """``soft_weight`` and ``rounding_regularizer`` of the same variables, in fewer trips through memory.

    Under bfloat16 autocast on a CPU the weight is bfloat16, as the layer would make it anyway.
    """
    trained = torch.is_grad_enabled() and v.requires_grad
    on_gpu = trained and _one_scale_a_row(v, scale) and triton_kernels.usable(v, base)
    on_cpu = trained and not isinstance(beta, Tensor) and beta >= 1 and _fusable(v, base, scale) is not None
    if not (on_gpu or on_cpu):
        weight = soft_weight(v, base, scale, zero_point, q_min, q_max, gamma, zeta)
        return weight, rounding_regularizer(v, beta, gamma, zeta)
    return _RegularizedSoftWeight.apply(v, base, scale, q_min - zero_point, q_max - zero_point, beta, gamma, zeta)


class _RegularizedSoftWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v: Tensor, base: Tensor, scale: Tensor, low: Tensor, high: Tensor, beta: float | Tensor,
                gamma: float, zeta: float) -> tuple[Tensor, Tensor]:
        if v.is_cuda:
            beta = torch.as_tensor(beta, dtype=v.dtype, device=v.device)
            weight, slope, pull, total = triton_kernels.soft_weight(v, base, scale, low, high, gamma, zeta, beta)
            ctx.save_for_backward(slope, pull)
            return weight, total
        rows = v.shape[0]
        weight, slope, pull = (torch.empty_like(v, dtype=_layer_dtype()) for _ in range(3))
        sums = torch.empty(rows, dtype=torch.float64)
        tensors = v, base, *(t.reshape(-1).expand(rows).contiguous() for t in (scale, low, high))
        c_kernels.kernel('soft_weight_regularized', weight.dtype)(
            rows, v.numel() // rows, *(t.data_ptr() for t in tensors), gamma, zeta, beta, weight.data_ptr(),
            slope.data_ptr(), pull.data_ptr(), sums.data_ptr())
        ctx.save_for_backward(slope, pull)
        return weight, sums.sum().to(v.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, factor: Tensor) -> tuple:
        slope, pull = ctx.saved_tensors
        grad = like(grad, slope)
        if slope.is_cuda:
            triton_kernels.combine(slope, grad, pull, factor)
            return (slope, ) + (None, ) * 7  # in place: a second backward is refused by autograd
        total = slope if slope.dtype == torch.float32 else torch.empty_like(slope, dtype=torch.float32)
        c_kernels.kernel('combine_slopes', slope.dtype)(slope.numel(), grad.data_ptr(), pull.data_ptr(), factor.item(),
                                                     slope.data_ptr(), total.data_ptr())
        return (total, ) + (None, ) * 7  # in place in float32, as above


def _layer_dtype() -> torch.dtype:
    """What layers compute in on a CPU: float32, or bfloat16 under autocast."""
    half = torch.is_autocast_enabled('cpu') and torch.get_autocast_dtype('cpu') == torch.bfloat16
    return torch.bfloat16 if half else torch.float32


def _fusable(v: Tensor, base: Tensor, scale: Tensor):
    """The compiled kernels where they fit: one scale, or one a row."""
    return c_kernels.usable(v, base) if _one_scale_a_row(v, scale) else None


def _one_scale_a_row(v: Tensor, scale: Tensor) -> bool:
    """Whether all of ``v``, or each index of its first axis, shares a float32 scale."""
    rows = v.shape[0] if v.dim() and v.numel() else 0
    return rows > 0 and scale.dtype == torch.float32 and (
        scale.numel() == 1 or (scale.numel() == rows and scale.shape[0] == rows))


class _SoftWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v: Tensor, base: Tensor, scale: Tensor, zero_point: Tensor, q_min: int, q_max: int, gamma: float,
                zeta: float) -> Tensor:
        small = scale, q_min - zero_point, q_max - zero_point
        if ctx.needs_input_grad[0] and _one_scale_a_row(v, scale) and triton_kernels.usable(v, base):
            weight, slope, _, _ = triton_kernels.soft_weight(v, base, *small, gamma, zeta, None)
            ctx.save_for_backward(slope)
            return weight
        weight = torch.empty_like(v)
        slope = torch.empty_like(v) if ctx.needs_input_grad[0] else None  # d weight / d v
        kernels = _fusable(v, base, scale) if slope is not None else None
        if kernels is not None:
            rows = v.shape[0]
            tensors = v, base, *(t.reshape(-1).expand(rows).contiguous() for t in small)
            kernels.soft_weight(rows, v.numel() // rows, *(t.data_ptr() for t in tensors), gamma, zeta,
                                weight.data_ptr(), slope.data_ptr())
            ctx.save_for_backward(slope)
            return weight
        for v_part, out, slope_part, base_part, step, low, high in pieces((v, weight, slope, base), small):
            s = torch.sigmoid(v_part)
            h = torch.mul(s, zeta - gamma).add_(gamma).clamp_(0, 1)
            steps = torch.add(h, base_part)
            clamp(steps, low, high, out=out)
            if slope_part is not None:
                free = _hardtanh_backward(steps.eq_(out), h, 0, 1)  # 1 where neither clipped nor saturated, else 0
                torch.mul(_sigmoid_backward(free, s), step * (zeta - gamma), out=slope_part)
            out.mul_(step)
        ctx.save_for_backward(slope)
        return weight

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        slope, = ctx.saved_tensors
        return (slope.mul_(grad), ) + (None, ) * 7  # in place: a second backward is refused by autograd


class _RoundingRegularizer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v: Tensor, beta: float | Tensor, gamma: float, zeta: float) -> Tensor:
        slope = torch.empty_like(v) if ctx.needs_input_grad[0] else None  # d value / d v
        fits = slope is not None and v.numel() and not isinstance(beta, Tensor)
        kernels = c_kernels.usable(v, slope) if fits else None
        if kernels is not None:
            sums = c_kernels.chunk_sums(v.numel())
            kernels.rounding_regularizer(v.numel(), v.data_ptr(), beta, gamma, zeta, slope.data_ptr(), sums.data_ptr())
            ctx.save_for_backward(slope)
            return sums.sum().to(v.dtype)
        values = []
        for v_part, slope_part in pieces((v, slope), ()):
            s = torch.sigmoid(v_part)
            h = torch.mul(s, zeta - gamma).add_(gamma).clamp_(0, 1)
            signed = torch.mul(h, 2).sub_(1)  # 2 h - 1
            distance = signed.abs()
            power = power_(distance.clone(), beta - 1)
            if slope_part is not None:  # -2 beta |2h - 1|^(beta - 1) sign(2h - 1) h'(v)
                free = _hardtanh_backward(torch.copysign(power, signed), h, 0, 1)
                torch.mul(_sigmoid_backward(free, s), -2 * beta * (zeta - gamma), out=slope_part)
            values.append(power.mul_(distance).neg_().add_(1).sum())
        ctx.save_for_backward(slope)
        return torch.stack(values).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        slope, = ctx.saved_tensors
        return slope.mul_(grad), None, None, None  # in place, as above
