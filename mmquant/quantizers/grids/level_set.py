"""Levels of any spacing times one scale: what all non-uniform grids stand on."""
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from mmquant.ops import positive
from mmquant.registry import QUANTIZERS
from mmquant.structures import Granularity, IntegerGrid

from ..quantizer import Quantizer


@QUANTIZERS.register_module()
class LevelSetQuantizer(Quantizer):
    """Each value goes to the nearest of some levels times the scale of its tensor, channel or group.

    Codes are the ranks of the levels. Ties go to the level nearer to zero. A grid of its own overrides ``table``.

    Args:
        bits: Bit width, 2..16; at most ``2 ** bits`` levels. Default: 8.
        levels: Levels of a scale of 1, in any order. Default: ``2 ** bits - 1`` evenly spaced ones from -1 to 1, or
            ``2 ** bits`` from 0 to 1 without a sign.
        signed: Whether there are negative levels; None, the default: ``set_range`` decides by whether a range (of any
            scale) reaches below 0, so that after ReLU every code is of use. Given levels know it themselves.
        granularity, channel_axis, group_size, keep_mean: See ``Quantizer``.

    Attributes:
        scale: Buffer, one value per scale; what lies beyond the outermost level times it is clipped.
        table: Buffer, the levels, sorted.

    Raises:
        ValueError: Levels that are not finite, coincide, or are more than codes; a range that reaches below 0 on a grid
            without negative levels.
    """

    per_scale: ClassVar[dict[str, float]] = dict(scale=1.0)

    def __init__(self, bits: int = 8, levels: Sequence[float] | None = None, signed: bool | None = None,
                 granularity: str | dict | Granularity = 'tensor', channel_axis: int = 0,
                 group_size: int | None = None, keep_mean: bool = False) -> None:
        super().__init__(IntegerGrid(bits).bits, granularity, channel_axis, group_size, keep_mean)
        self.given = None if levels is None else tuple(levels)
        self.signed = signed if levels is None else min(self.given, default=0.0) < 0
        self.register_buffer('table', self._checked(bits, self.signed is not False))

    # ---- levels -----------------------------------------------------------------------------------------------------
    def make_levels(self, bits: int, signed: bool) -> Tensor:
        """Levels of a scale of 1 at a width, in any order; to be overridden."""
        if self.given is not None:
            return torch.tensor(self.given, dtype=torch.float64)
        return torch.linspace(-1, 1, 2**bits - 1) if signed else torch.linspace(0, 1, 2**bits)

    def _checked(self, bits: int, signed: bool) -> Tensor:
        levels = self.make_levels(IntegerGrid(bits).bits, signed).float().sort().values
        if not 2 <= len(levels) <= 2**bits or not bool(torch.isfinite(levels).all() & (levels.diff() > 0).all()):
            endless = int((~torch.isfinite(levels)).sum())
            raise ValueError(f'{len(levels)} levels, of which {endless} are not finite and '
                             f'{int((levels.diff() == 0).sum())} coincide with another: bits={bits} take 2..{2**bits} '
                             'different finite levels')
        return levels

    def _adopt_bits(self, bits: int) -> None:
        self.table = self._checked(bits, self.signed is not False).to(self.table)
        super()._adopt_bits(bits)

    def _table_for(self, low: Tensor) -> Tensor:
        """The levels for ranges that begin at ``low`` (num_scales,)."""
        below = bool((low < 0).any())
        if self.signed is False and below:
            raise ValueError(f'a range begins at {low.min():.4g}, but the grid has no negative levels: set signed=True,'
                             ' or None to let the range decide')
        if self.signed is not None or below == bool(self.table[0] < 0):
            return self.table
        return self._checked(self.bit_width, below).to(self.table)

    @property
    def code_range(self) -> tuple[int, int]:
        return 0, len(self.table) - 1

    def levels(self) -> Tensor:
        return self.table

    # ---- range ------------------------------------------------------------------------------------------------------
    def _scale_for(self, low: Tensor, high: Tensor, table: Tensor) -> Tensor:
        # A side without levels asks for nothing: what lies there is clipped.
        below = low / table[0] if table[0] < 0 else torch.zeros_like(low)
        above = high / table[-1] if table[-1] > 0 else torch.zeros_like(high)
        return positive(torch.maximum(below, above), -1)

    def _adopt_range(self, low: Tensor, high: Tensor) -> None:
        self.table = self._table_for(low)
        self.scale.copy_(self._scale_for(low, high, self.table).view_as(self.scale))

    def trial(self, rows: Tensor, low: Tensor, high: Tensor) -> Tensor:
        table = self._table_for(low)
        scale = self._scale_for(low, high, table)[:, None]
        return table[_ranks(rows / scale, table)] * scale

    # ---- values -----------------------------------------------------------------------------------------------------
    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``x`` in scales without a gradient, the scales, and the levels, in float32 (float64 for float64 ``x``)."""
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        scale = self.granularity.expand(self.scale, x.shape).to(dtype)
        return x.detach().to(dtype) / scale.detach(), scale, self.table.to(dtype)

    def nearest(self, x: Tensor) -> Tensor:
        """Nearest values; for ``x`` the gradient of the identity, 0 where clipped, for the scale that of LSQ."""
        steps, scale, table = self._parts(x)
        level = torch.where(steps.isnan(), steps, table[_ranks(steps, table)])
        values = level * scale
        if torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad):
            inside = (steps >= table[0]) & (steps <= table[-1])
            through = (x - steps * scale) * inside
            values = values + (through - through.detach())  # exactly 0: values are those without a gradient
        return values.to(x.dtype)

    def encode(self, x: Tensor) -> Tensor:
        """Ranks of the nearest levels.

        Raises:
            ValueError: ``x`` holds NaN.
        """
        steps, _, table = self._parts(x)
        if bool(steps.isnan().any()):
            raise ValueError(f'a tensor of shape {tuple(x.shape)} with {int(x.isnan().sum())} NaN has no codes')
        return _ranks(steps, table).to(IntegerGrid(self.bit_width).code_dtype)

    def decode(self, codes: Tensor) -> Tensor:
        return self.table[codes.long()] * self.granularity.expand(self.scale, codes.shape)

    @torch.no_grad()
    def neighbours(self, x: Tensor) -> tuple[Tensor, Tensor]:
        steps, scale, table = self._parts(x.float())
        below = torch.bucketize(steps.contiguous(), table, right=True) - 1
        ends = ((below + step).clamp_(0, len(table) - 1) for step in (0, 1))
        return tuple(torch.empty_like(x, dtype=table.dtype).copy_(table[rank] * scale) for rank in ends)

    # ---- for training and search ------------------------------------------------------------------------------------
    def sizes(self) -> list[Tensor]:
        return [self.scale]

    def _repr_parts(self) -> str:
        return f'bits={self.bit_width}, levels={len(self.table)}, signed={bool(self.table[0] < 0)}'


def _ranks(steps: Tensor, table: Tensor) -> Tensor:
    """Ranks of the nearest levels, int64, in the memory order of ``steps``; ties towards zero."""
    middle = (table[1:] + table[:-1]) / 2
    # bucketize keeps a tie below: right for positive values; just under the middle, negative ones go up.
    middle = torch.where(middle < 0, torch.nextafter(middle, torch.full_like(middle, -torch.inf)), middle)
    ranks = torch.bucketize(steps.contiguous(), middle)
    return ranks if steps.is_contiguous() else torch.empty_like(steps, dtype=ranks.dtype).copy_(ranks)
