"""Add, Mul, Concat and functions of one tensor on codes.

Add, with r_i = s_i / s_y:
    ort     rint(fma(r_A, q_A, fma(r_B, q_B, z - fma(r_A, z_A, r_B z_B)))), all in float32; without the innermost fma
            one pair of codes in 600000 comes out otherwise (measured, all pairs of 150 random scales)
    exact   rint((q_A - z_A) r_A + (q_B - z_B) r_B) + z in real arithmetic
    single  r_i as integers over a common power of two, one rounding
    double  classic TFLite: both terms on a grid 2^20 times as fine, three multiplications of gemmlowp
Functions of one tensor are tables of 256 codes, computed once in float: exact for any function.
"""
from fractions import Fraction
from math import ceil, log2

import numpy as np
import torch
from torch import Tensor

from mmquant.export.executor.arithmetic import Arithmetic
from mmquant.export.executor.graph_view import Node
from mmquant.export.executor.requantize import NEAR_TIE
from mmquant.export.executor.values import Quantized, Target


def add(node: Node, values: list[Quantized], target: Target, arithmetic: Arithmetic) -> Tensor:
    """Codes of A + B, with broadcasting."""
    a, b = values
    if arithmetic.mode == 'ort':
        return _add_float32(a, b, target)
    x, y = torch.broadcast_tensors(a.centred(), b.centred())
    scales = [a.scale.reshape(()), b.scale.reshape(()), target.scale]
    return target.codes(dict(exact=_add_exact, single=_add_single, double=_add_double)[arithmetic.mode](x, y, *scales))


def mul(node: Node, values: list[Quantized], target: Target, arithmetic: Arithmetic) -> Tensor:
    """Codes of A B, with broadcasting: round((q_A - z_A) (q_B - z_B) s_A s_B / s_y) + z_y.

    ONNX Runtime adds the zero point before it rounds: other codes at ties when it is odd.
    """
    a, b = values
    acc = a.centred() * b.centred()
    if arithmetic.mode == 'ort':
        real = acc.float() * (a.scale.reshape(()) * b.scale.reshape(()) / target.scale) + target.zero.float()
        return real.round_().clamp_(target.low, target.high).to(target.zero.dtype)
    return target.codes(arithmetic.rescale(acc, [a.scale.reshape(()), b.scale.reshape(())], [target.scale]))


def concat(node: Node, values: list[Quantized], target: Target, arithmetic: Arithmetic) -> Tensor:
    """Each part brought to the scale of the output."""
    return torch.cat([requantize(value, target, arithmetic) for value in values], node.attributes['axis'])


def requantize(value: Quantized, target: Target, arithmetic: Arithmetic) -> Tensor:
    """Codes at another scale and zero point."""
    if target.holds(value):
        return value.codes.clamp(target.low, target.high)
    if arithmetic.mode == 'ort':
        return target.quantize(value.dequantize())
    return target.codes(arithmetic.rescale(value.centred(), [value.along_axis(value.scale)], [target.scale]))


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """float32(a b + c), rounded once. In float64 the product is exact; the sum is rounded to odd before float32.

    Source of rounding to odd: Boldo and Melquiond, IEEE Transactions on Computers 57 (2008).
    """
    product, c = np.float64(a) * b, np.float64(c)
    total = product + c
    part = total - product
    error = (product - (total - part)) + (c - part)
    bits = np.asarray(total).view(np.int64)
    step = np.where((error > 0) == (total > 0), 1, -1)
    return np.where((error != 0) & (bits & 1 == 0), bits + step, bits).view(np.float64).astype(np.float32)


def _add_float32(a: Quantized, b: Quantized, target: Target) -> Tensor:
    """A table of all pairs of codes."""
    f32 = np.float32
    s_a, s_b, s = (f32(t.scale.item()) for t in (a, b, target))
    z_a, z_b, z = (f32(t.zero.item()) for t in (a, b, target))
    r_a, r_b = s_a / s, s_b / s
    shift = z - fma(r_a, z_a, r_b * z_b)
    codes = np.arange(256, dtype=f32)
    table = np.rint(fma(np.full((256, 1), r_a), codes[:, None], fma(np.full(256, r_b), codes, shift)[None]))
    table = torch.from_numpy(table.clip(target.low, target.high)).to(target.zero.dtype)
    return table.flatten()[a.codes.long() * 256 + b.codes.long()]


def _add_exact(x: Tensor, y: Tensor, s_a: Tensor, s_b: Tensor, s: Tensor) -> Tensor:
    real = (x.double() * s_a.double() + y.double() * s_b.double()) / s.double()
    result = real.round()
    close = ((real - real.floor()) - 0.5).abs() < NEAR_TIE
    pairs, back = torch.stack([x[close], y[close]]).unique(dim=1, return_inverse=True)
    r_a, r_b = (Fraction(part.item()) / Fraction(s.item()) for part in (s_a, s_b))
    result[close] = torch.tensor([float(round(i * r_a + j * r_b)) for i, j in pairs.T.tolist()],
                                 dtype=torch.float64)[back]
    return result.long()


def _add_single(x: Tensor, y: Tensor, s_a: Tensor, s_b: Tensor, s: Tensor) -> Tensor:
    ratios = [(part.double() / s.double()).item() for part in (s_a, s_b)]
    shift = 30 - max(0, ceil(log2(max(ratios))))
    whole = [round(ratio * 2**shift) for ratio in ratios]
    return (x * whole[0] + y * whole[1] + (1 << (shift - 1))) >> shift


def _add_double(x: Tensor, y: Tensor, s_a: Tensor, s_b: Tensor, s: Tensor) -> Tensor:
    double = Arithmetic('double')
    twice, one = 2 * torch.maximum(s_a, s_b).double(), torch.tensor(2.0**20)
    x, y = (double.rescale(part << 20, [scale], [twice]) for part, scale in ((x, s_a), (y, s_b)))
    return double.rescale(x + y, [twice], [one, s])
