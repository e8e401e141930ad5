"""Sum of powers of differences: the reconstruction losses."""
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import c_kernels


def power_distance(x: Tensor, y: Tensor, p: float, count: int = 1) -> Tensor:
    """``sum(|x - y|^p) / count``, for float32 ``y`` and p >= 1; a gradient for ``x`` only, 0 where ``x == y``."""
    if p >= 1 and x.shape == y.shape and x.numel() and c_kernels.usable(y, half=x) is not None:
        return _PowerDistance.apply(x, y, p, count)
    error = (x - y.detach()).float()
    return (error.square().sum() if p == 2 else error.abs().sum() if p == 1 else error.abs().pow(p).sum()) / count


class _PowerDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, p: float, count: int) -> Tensor:
        slope, sums = torch.empty_like(x), c_kernels.chunk_sums(x.numel())
        kernel = c_kernels.kernel('power_distance', x.dtype)
        kernel(x.numel(), x.data_ptr(), y.data_ptr(), p, 1 / count, slope.data_ptr(), sums.data_ptr())
        ctx.save_for_backward(slope)
        return sums.sum().float() / count

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        slope, = ctx.saved_tensors
        if grad.item() != 1:
            slope.mul_(grad)  # in place: a second backward is refused by autograd
        return slope, None, None, None
