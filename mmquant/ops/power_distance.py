"""Sum of powers of differences: the reconstruction losses."""
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import native


def power_distance(x: Tensor, y: Tensor, p: float) -> Tensor:
    """``sum(|x - y|^p)``, a scalar; the gradient goes to ``x`` only, and is 0 where ``x == y``.

    Args:
        x: Float tensor.
        y: Tensor of the same shape.
        p: Exponent, >= 1.
    """
    if p >= 1 and x.shape == y.shape and x.numel() and native.usable(x, y) is not None:
        return _PowerDistance.apply(x, y, p)
    error = (x - y.detach()).float()
    return error.square().sum() if p == 2 else error.abs().sum() if p == 1 else error.abs().pow(p).sum()


class _PowerDistance(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, p: float) -> Tensor:
        slope, sums = torch.empty_like(x), native.chunk_sums(x.numel())
        native.library().power_distance(x.numel(), x.data_ptr(), y.data_ptr(), p, slope.data_ptr(), sums.data_ptr())
        ctx.save_for_backward(slope)
        return sums.sum().float()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        slope, = ctx.saved_tensors
        return slope.mul_(grad), None, None  # in place: a second backward is refused by autograd
