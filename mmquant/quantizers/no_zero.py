"""Symmetric quantizer without a level at zero: values ``scale * (code + 1/2)``, the weight grid of LAPQ's code."""
import torch
from torch import Tensor

from mmquant.ops import dequantize, fake_quantize, positive, quantize
from mmquant.registry import QUANTIZERS
from mmquant.structures import Granularity

from .uniform_affine import UniformAffineQuantizer
from .wide import wide_float


@QUANTIZERS.register_module()
class NoZeroQuantizer(UniformAffineQuantizer):
    """``2 ** bits`` evenly spaced levels from ``-alpha`` to ``alpha``: a zero becomes half a step.

    ``alpha = scale * (2 ** bits - 1) / 2``. For weights; a zero, as in padding or after ReLU, is not representable.

    Args:
        bits, granularity, channel_axis, group_size, keep_mean: As in ``UniformAffineQuantizer``.
    """

    shift = 0.5

    def __init__(self, bits: int = 8, granularity: str | dict | Granularity = 'tensor', channel_axis: int = 0,
                 group_size: int | None = None, keep_mean: bool = False) -> None:
        super().__init__(bits, True, granularity, channel_axis, group_size, keep_mean)

    def _step_of(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        scale = positive(torch.maximum(-low, high) / (self.grid.q_max + self.shift), -1)
        return scale, torch.zeros_like(scale)

    def _values(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        half = scale / 2
        return (fake_quantize(wide_float(x) - half, scale, zero_point, *self.code_range) + half).to(x.dtype)

    def encode(self, x: Tensor) -> Tensor:
        scale, zero_point = self.expanded(x.shape)
        return quantize(wide_float(x) - scale / 2, scale, zero_point, *self.code_range).to(self.grid.code_dtype)

    def decode(self, codes: Tensor) -> Tensor:
        scale, zero_point = self.expanded(codes.shape)
        return dequantize(codes, scale, zero_point) + scale / 2

    def affine_form(self, shape: tuple[int, ...]) -> None:
        return None
