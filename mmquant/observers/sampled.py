"""Observers that need the values themselves: an even, deterministic sample of bounded size."""
import math

import torch
from torch import Tensor

from mmquant.structures import Granularity

from .observer import Observer

GROWTH = math.exp(0.5)


class SampledObserver(Observer):
    """Keeps up to ``max_samples`` values per scale.

    Every tensor is sampled with the same stride; when the sample overflows, it is thinned and the stride grows, both by
    GROWTH. The strides are irrational, so that no channel, row or column of a tensor is preferred. The sample is
    complete up to ``max_samples`` values per scale, and always in ``range_of``.

    Args:
        max_samples: Values kept per scale, > 0; None keeps all. Default: 2**19 (2 MiB).
        granularity: See ``Observer``.

    Raises:
        ValueError: ``max_samples`` < 1.
    """

    def __init__(self, max_samples: int | None = 2**19, granularity: str | dict | Granularity = 'tensor') -> None:
        if max_samples is not None and max_samples < 1:
            raise ValueError(f'max_samples={max_samples} is not supported: expected an int > 0, or None for all.')
        self.max_samples = max_samples
        super().__init__(granularity)

    def reset(self, granularity: str | dict | Granularity | None = None) -> None:
        super().reset(granularity)
        self._chunks: list[Tensor] = []  # each (num_scales, n)
        self._stride = 1.0

    def share(self, num_scales: int) -> None:
        """At least 1024 samples a scale, ``max_samples`` in all if that is more."""
        if self.max_samples is not None and num_scales > 1:
            self.max_samples = min(self.max_samples, max(2**10, self.max_samples // num_scales))

    def range_of(self, x: Tensor, quantizer, granularity: str | dict | Granularity | None = None,
                 importance: Tensor | None = None) -> tuple[Tensor, Tensor]:
        max_samples, self.max_samples = self.max_samples, None
        try:
            return super().range_of(x, quantizer, granularity, importance)
        finally:
            self.max_samples = max_samples

    @property
    def samples(self) -> Tensor:
        """What is kept, shape (num_scales, n), float32."""
        if len(self._chunks) > 1:
            self._chunks = [torch.cat(self._chunks, dim=1)]
        return self._chunks[0]

    def _collect(self, x: Tensor) -> None:
        rows = self.granularity.to_groups(x)
        if self.max_samples is not None:
            while rows.shape[1] / self._stride > self.max_samples:
                self._stride *= GROWTH
            rows = _every(rows, self._stride) if self._stride > 1 else rows
        # A copy: the caller may change x in place, and a view would keep the whole of it alive.
        self._chunks.append(rows.to(torch.float32, copy=True, memory_format=torch.contiguous_format))
        while self.max_samples is not None and self.samples.shape[1] > self.max_samples:
            self._chunks = [_every(self.samples, GROWTH)]
            self._stride *= GROWTH


def _every(rows: Tensor, step: float) -> Tensor:
    """The columns at multiples of ``step``, rounded down."""
    index = torch.arange(max(1, int(rows.shape[1] / step)), dtype=torch.float64).mul_(step).long()
    return rows[:, index.to(rows.device)]
