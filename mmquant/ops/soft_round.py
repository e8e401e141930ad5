"""AdaRound's relaxation of rounding (arXiv 2004.10568): each weight moves continuously between its two grid neighbours.

``h(v) = clip((zeta - gamma) * sigmoid(v) + gamma, 0, 1)`` with gamma = -0.1, zeta = 1.1. These functions run once per
training step over all weights of a unit, so forward and backward are fused and mostly in place.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .clamp import clamp

GAMMA, ZETA = -0.1, 1.1
_hardtanh_backward = torch.ops.aten.hardtanh_backward  # (grad, x, low, high): grad if low < x < high, else exactly 0
_sigmoid_backward = torch.ops.aten.sigmoid_backward  # (grad, s): grad * s * (1 - s)


def rectified_sigmoid(v: Tensor, gamma: float = GAMMA, zeta: float = ZETA) -> Tensor:
    """``h(v)``, in [0, 1]; exactly 0 below and 1 above the saturation points (-/+ ln 11 by default)."""
    return torch.sigmoid(v).mul(zeta - gamma).add(gamma).clamp(0, 1)


def soft_weight(v: Tensor, base: Tensor, scale: Tensor, zero_point: Tensor, q_min: int, q_max: int,
                gamma: float = GAMMA, zeta: float = ZETA) -> Tensor:
    """``scale * (clip(base + h(v) + zero_point, q_min, q_max) - zero_point)``, with a gradient for ``v`` only.

    Args:
        v: Rounding variables, shape of the weight.
        base: ``floor(weight / scale)``, shape of the weight.
        scale: Broadcastable against the weight.
        zero_point: Broadcastable against the weight.
        q_min: Smallest code.
        q_max: Largest code.
        gamma: Lower stretch of the sigmoid, < 0.
        zeta: Upper stretch of the sigmoid, > 1.
    """
    return _SoftWeight.apply(v, base, scale, zero_point, q_min, q_max, gamma, zeta)


def rounding_regularizer(v: Tensor, beta: float, gamma: float = GAMMA, zeta: float = ZETA) -> Tensor:
    """``sum(1 - |2 h(v) - 1|^beta)``: a scalar, 0 when every ``h`` is 0 or 1 and ``v.numel()`` when every ``h`` is 1/2.

    Its gradient is exactly 0 where ``h`` is saturated.

    Args:
        v: Rounding variables, any shape.
        beta: Exponent, >= 1; high values (20) leave most variables free, low ones (2) push them to 0 or 1.
        gamma: Lower stretch of the sigmoid, < 0.
        zeta: Upper stretch of the sigmoid, > 1.

    Raises:
        ValueError: ``beta`` < 1.
    """
    if beta < 1:
        raise ValueError(f'beta={beta} is not supported: the regularizer needs an exponent >= 1 (usual: 20 to 2).')
    return _RoundingRegularizer.apply(v, beta, gamma, zeta)


class _SoftWeight(torch.autograd.Function):

    @staticmethod
    def forward(ctx, v: Tensor, base: Tensor, scale: Tensor, zero_point: Tensor, q_min: int, q_max: int, gamma: float,
                zeta: float) -> Tensor:
        s = torch.sigmoid(v)
        h = torch.mul(s, zeta - gamma).add_(gamma).clamp_(0, 1)
        free = _hardtanh_backward(s, h, 0, 1) if ctx.needs_input_grad[0] else None  # s, or 0 where h is saturated
        steps = h.add_(base)
        weight = clamp(steps, q_min - zero_point, q_max - zero_point)
        if free is not None:
            free.mul_(steps.eq_(weight))  # ... and 0 where clipped
            ctx.save_for_backward(free, torch.mul(scale, zeta - gamma))
        return weight.mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        free, factor = ctx.saved_tensors
        return (_sigmoid_backward(grad, free).mul_(factor), ) + (None, ) * 7


class _RoundingRegularizer(torch.autograd.Function):

    @staticmethod
    def forward(ctx, v: Tensor, beta: float, gamma: float, zeta: float) -> Tensor:
        s = torch.sigmoid(v)
        h = torch.mul(s, zeta - gamma).add_(gamma).clamp_(0, 1)
        signed = torch.mul(h, 2).sub_(1)  # 2 h - 1
        distance = signed.abs()
        power = torch.pow(distance, beta - 1)
        value = distance.mul_(power).neg_().add_(1).sum()
        if ctx.needs_input_grad[0]:  # -2 beta |2h - 1|^(beta - 1) sign(2h - 1) h'(v)
            slope = _hardtanh_backward(torch.copysign(power, signed, out=power), h, 0, 1)
            slope = _sigmoid_backward(slope, s).mul_(-2 * beta * (zeta - gamma))
            ctx.save_for_backward(slope)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        slope, = ctx.saved_tensors
        return slope * grad, None, None, None
