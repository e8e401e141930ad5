"""Observers that need the values themselves: an even, deterministic sample of bounded size."""
import math

import torch
from torch import Tensor

from mmquant.structures import Granularity, IntegerGrid

from .observer import Observer

GOLDEN_RATIO = (1 + math.sqrt(5)) / 2


class SampledObserver(Observer):
    """Keeps up to ``max_samples`` values per scale.

    Every tensor is sampled with the same stride. The stride shares no factor with the tensor's size, so that no channel
    or column is preferred; when the sample overflows, 1 / 1.618 of it is kept (an irrational step, for the same reason)
    and the stride grows accordingly. Up to ``max_samples`` values per scale, and always in ``range_of``, the sample is
    complete.

    Args:
        max_samples: Values kept per scale, > 0; None keeps all. Default: 2**19 (2 MiB).
        granularity: See ``Observer``.

    Raises:
        ValueError: ``max_samples`` < 1.
    """

    def __init__(self, max_samples: int | None = 2**19,
                 granularity: str | dict | Granularity = 'tensor') -> None:
        if max_samples is not None and max_samples < 1:
            raise ValueError(f'max_samples={max_samples} is not supported: expected an int > 0, or None for all.')
        self.max_samples = max_samples
        super().__init__(granularity)

    def reset(self, granularity: str | dict | Granularity | None = None) -> None:
        super().reset(granularity)
        self._chunks: list[Tensor] = []  # each (num_scales, n)
        self._stride = 1.0

    def range_of(self, x: Tensor, grid: IntegerGrid,
                 granularity: str | dict | Granularity | None = None) -> tuple[Tensor, Tensor]:
        max_samples, self.max_samples = self.max_samples, None
        try:
            return super().range_of(x, grid, granularity)
        finally:
            self.max_samples = max_samples

    @property
    def samples(self) -> Tensor:
        """What is kept, shape (num_scales, n), float32."""
        if len(self._chunks) > 1:
            self._chunks = [torch.cat(self._chunks, dim=1)]
        return self._chunks[0]

    def _collect(self, x: Tensor) -> None:
        rows, _ = self.granularity.to_groups(x)
        if self.max_samples is not None:
            self._stride = max(self._stride, rows.shape[1] / self.max_samples)
            rows = rows[:, ::_coprime_stride(self._stride, rows.shape[1])]
        # A copy: the caller may change x in place, and a view would keep the whole of it alive.
        self._chunks.append(rows.to(torch.float32, copy=True, memory_format=torch.contiguous_format))
        if self.max_samples is None:
            return
        while sum(chunk.shape[1] for chunk in self._chunks) > self.max_samples:
            self._chunks = [_thin(self.samples)]
            self._stride *= GOLDEN_RATIO


def _coprime_stride(stride: float, size: int) -> int:
    stride = math.ceil(stride)
    while math.gcd(stride, size) != 1:
        stride += 1
    return stride


def _thin(samples: Tensor) -> Tensor:
    """Keep about 62 % of the columns: those at multiples of the golden ratio."""
    keep = max(1, int(samples.shape[1] / GOLDEN_RATIO))
    index = torch.arange(keep, dtype=torch.float64).mul_(GOLDEN_RATIO).long()
    return samples[:, index.to(samples.device)]
