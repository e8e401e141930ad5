"""Symmetric quantizer without a level at zero: values ``scale * (code + 1/2)``, the weight grid of LAPQ's code."""
from __future__ import annotations

from torch import Tensor

from mmquant.ops import dequantize, fake_quantize, quantize
from mmquant.registry import QUANTIZERS
from mmquant.structures import Granularity, IntegerGrid

from .uniform_affine import UniformAffineQuantizer


@QUANTIZERS.register_module()
class NoZeroQuantizer(UniformAffineQuantizer):
    """``2 ** bits`` evenly spaced levels from ``-alpha`` to ``alpha``: a zero becomes half a step.

    ``alpha = scale * (2 ** bits - 1) / 2``. For weights; a zero, as in padding or behind ReLU, is not representable.

    Args:
        bits: Bit width, 2..16. Default: 8.
        granularity, channel_axis, group_size, keep_mean: See ``UniformAffineQuantizer``.
    """

    def __init__(self, bits: int = 8, granularity: str | dict | Granularity = 'tensor', channel_axis: int = 0,
                 group_size: int | None = None, keep_mean: bool = False) -> None:
        super().__init__(bits, True, granularity, channel_axis, group_size, keep_mean)
        self._grid = IntegerGrid(bits, True, half_step=True)

    def encode(self, x: Tensor) -> Tensor:
        scale, zero_point = self.expanded(x.shape)
        codes = quantize(x - scale / 2, scale, zero_point, self._grid.q_min, self._grid.q_max)
        return codes.to(self._grid.code_dtype)

    def decode(self, codes: Tensor) -> Tensor:
        scale, zero_point = self.expanded(codes.shape)
        return dequantize(codes, scale, zero_point) + scale / 2

    def _nearest(self, x: Tensor) -> Tensor:
        scale, zero_point = self.expanded(x.shape)
        half = scale / 2
        return fake_quantize(x - half, scale, zero_point, self._grid.q_min, self._grid.q_max) + half

    def _adopt_bits(self, bits: int) -> None:
        self._grid = IntegerGrid(bits, True, half_step=True)
