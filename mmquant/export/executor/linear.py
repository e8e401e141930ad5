"""Conv, Gemm and MatMul on codes: integer sums plus the int32 bias, then codes by requantization or real numbers.

    acc = sum (q_x - z_x) (q_w - z_w) + b;    y = clip(round(acc s_x s_w / s_y) + z_y)   or   f32(acc) f32(s_x s_w)
"""
import numpy as np
import torch
from torch import Tensor

from mmquant.export.executor.accumulate import convolve, matmul
from mmquant.export.executor.arithmetic import Arithmetic
from mmquant.export.executor.graph_view import Node
from mmquant.export.executor.values import Quantized, Target


def conv(node: Node, values: list[Quantized], target: Target | None, arithmetic: Arithmetic) -> Tensor:
    """Codes (N, O, *spatial), or float32 without a target. ``values``: x, weights by output channel, perhaps a bias.

    Raises:
        OverflowError: A sum does not fit int32.
        ValueError: Attributes without an integer form; a bias that is not on the grid of s_x s_w.
    """
    x, weight, *bias = values
    acc = convolve(x.centred(), weight.centred(), node.attributes, arithmetic.carrier)
    macs = acc.numel() * weight.codes[0].numel()
    return _finish(node, acc, (x, weight, bias[0] if bias else None), target, arithmetic, (1, macs))


def gemm(node: Node, values: list[Quantized], target: Target | None, arithmetic: Arithmetic) -> Tensor:
    """A B or A B^T, with a bias of (N, ); see :func:`conv`. Leading axes of A stay: MatMul + Add comes here, too."""
    a, b, *bias = values
    factor = b.centred()
    if node.attributes.get('transB', 0):
        factor = factor.mT
    acc = matmul(a.centred(), factor, arithmetic.carrier)
    macs = acc.numel() * a.codes.shape[-1]
    return _finish(node, acc, (a, b, bias[0] if bias else None), target, arithmetic, (-1, macs))


def _finish(node: Node, acc: Tensor, values: tuple[Quantized, Quantized, Quantized | None], target: Target | None,
            arithmetic: Arithmetic, place: tuple[int, int]) -> Tensor:
    x, weight, bias = values
    axis, macs = place

    def along(parameter: Tensor) -> Tensor:
        shape = [1] * acc.dim()
        shape[axis] = -1
        return parameter.reshape(shape) if parameter.numel() > 1 else parameter.reshape(())

    if bias is not None:
        acc = acc + along(bias_codes(node, bias, x.scale * weight.scale))
    arithmetic.record(node.name, acc, macs)
    scales = [x.scale.reshape(()), along(weight.scale)]
    if target is None:
        return acc.float() * (scales[0] * scales[1])
    return target.codes(arithmetic.rescale(acc, scales, [target.scale]))


def bias_codes(node: Node, bias: Quantized | Tensor, grid: Tensor) -> Tensor:
    """Int32 codes of a bias, as int64. A float one is rounded to the grid, as ONNX Runtime does when it loads a file.

    Raises:
        ValueError: Codes of another scale than s_x s_w: an integer kernel adds them as they are.
    """
    if isinstance(bias, Tensor):
        rounded = torch.from_numpy(np.rint(bias.flatten().double().numpy() / grid.double().numpy()))
        return rounded.clamp(-2**31, 2**31 - 1).long()
    if not torch.allclose(bias.scale.flatten(), grid.flatten(), rtol=1e-5, atol=0) or bias.zero.any():
        raise ValueError(f'{node.name}: the scale of its bias must be s_x * s_w, {grid.flatten()[0]:.6g} at first, '
                         f'with zero point 0, got {bias.scale.flatten()[0]:.6g}')
    return bias.codes.flatten().long()
