"""Uniform affine quantizer: ``scale * (clip(round(x / scale) + zero_point, q_min, q_max) - zero_point)``."""
from typing import ClassVar

import torch
from torch import Tensor

from mmquant.ops import affine_errors, affine_parameters, dequantize, fake_quantize, quantize
from mmquant.registry import QUANTIZERS
from mmquant.structures import Granularity, IntegerGrid

from .quantizer import PARAMETER_BITS, Quantizer
from .wide import wide_float

TINY = 1e-6  # scales below it are compared relative to the widest candidate


@QUANTIZERS.register_module()
class UniformAffineQuantizer(Quantizer):
    """Evenly spaced levels, one scale and zero point per tensor, channel or group.

    Args:
        bits: Bit width, 2..16. Default: 8.
        symmetric: Signed grid with zero point 0 instead of an unsigned grid with a zero point. Default: False.
        granularity, channel_axis, group_size, keep_mean: See ``Quantizer``.

    Attributes:
        grid: The integers in use.
        scale, zero_point: Buffers, one value per scale; the zero point is a float tensor holding integers.

    Raises:
        ValueError: Bits outside 2..16, or an unknown granularity.
    """

    per_scale: ClassVar[dict[str, float]] = dict(scale=1.0, zero_point=0.0)
    shift = 0.0  # how far levels lie above scale * (code - zero_point), in steps

    def __init__(self, bits: int = 8, symmetric: bool = False, granularity: str | dict | Granularity = 'tensor',
                 channel_axis: int = 0, group_size: int | None = None, keep_mean: bool = False) -> None:
        self.grid = IntegerGrid(bits, symmetric)
        super().__init__(bits, granularity, channel_axis, group_size, keep_mean)

    @property
    def code_range(self) -> tuple[int, int]:
        return self.grid.q_min, self.grid.q_max

    def _adopt_bits(self, bits: int) -> None:
        self.grid = IntegerGrid(bits, self.grid.symmetric)
        super()._adopt_bits(bits)

    # ---- range ------------------------------------------------------------------------------------------------------
    def _step_of(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return affine_parameters(low, high, self.grid)

    def _adopt_range(self, low: Tensor, high: Tensor) -> None:
        scale, zero_point = self._step_of(low, high)
        self.scale.copy_(scale.view_as(self.scale))
        self.zero_point.copy_(zero_point.view_as(self.zero_point))

    def trial(self, rows: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return self._values(rows, *(t[:, None] for t in self._step_of(low, high)))

    def errors(self, rows: Tensor, low: Tensor, high: Tensor, p: float, importance: Tensor | None = None) -> Tensor:
        if importance is not None:
            return super().errors(rows, low, high, p, importance)
        scale, zero_point = self._step_of(low, high)
        widest = scale.amax(0)
        unit = torch.where(widest < TINY, widest, 1)  # else powers of tiny scales are 0 for every candidate
        return affine_errors(rows, scale, zero_point, self.code_range, p, self.shift) * (scale / unit)**p

    # ---- values -----------------------------------------------------------------------------------------------------
    def expanded(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """``scale`` and ``zero_point``, broadcastable against a tensor of ``shape``; differentiable in ``scale``."""
        return self.granularity.expand(self.scale, shape), self.granularity.expand(self.zero_point, shape)

    def _values(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return fake_quantize(x, scale, zero_point, *self.code_range)

    def nearest(self, x: Tensor) -> Tensor:
        return self._values(x, *self.expanded(x.shape))

    def encode(self, x: Tensor) -> Tensor:
        return quantize(x, *self.expanded(x.shape), *self.code_range).to(self.grid.code_dtype)

    def decode(self, codes: Tensor) -> Tensor:
        return dequantize(codes, *self.expanded(codes.shape))

    def positions(self, x: Tensor) -> Tensor:
        scale, zero_point = self.expanded(x.shape)
        return wide_float(x) / scale + zero_point - self.shift

    @torch.no_grad()
    def neighbours(self, x: Tensor) -> tuple[Tensor, Tensor]:
        below = self.positions(x.float()).floor_()
        return tuple(self.decode((below + step).clamp_(*self.code_range)) for step in (0, 1))

    def affine_form(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, int, int] | None:
        return *self.expanded(shape), *self.code_range

    def integers(self) -> tuple[Tensor, Tensor]:
        scale, zero_point = self.expanded(self.codes.shape)
        parts = 2 if self.shift % 1 else 1  # of a step
        return (self.codes.to(scale.dtype) - zero_point + self.shift) * parts, scale / parts

    def levels(self) -> Tensor:
        first, last = self.code_range
        return torch.arange(first, last + 1) + self.shift

    def _bits_per_scale(self) -> int:
        return PARAMETER_BITS + self.bit_width  # a zero point is a code

    # ---- for training and search ------------------------------------------------------------------------------------
    def sizes(self) -> list[Tensor]:
        return [self.scale]

    def _repr_parts(self) -> str:
        return f'bits={self.bit_width}, symmetric={self.grid.symmetric}'
