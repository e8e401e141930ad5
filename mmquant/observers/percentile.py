"""Clip a fixed fraction of the values."""
import math

import torch
from torch import Tensor

from mmquant.registry import OBSERVERS
from mmquant.structures import Granularity

from .sampled import SampledObserver


@OBSERVERS.register_module()
class PercentileObserver(SampledObserver):
    """The value below which ``percentile`` percent of the sample lies, on both sides.

    Args:
        percentile: In (50, 100]; 100 gives the exact minimum and maximum. Default: 99.99.
        max_samples, granularity: See ``SampledObserver``.

    Raises:
        ValueError: ``percentile`` outside (50, 100].
    """

    def __init__(self, percentile: float = 99.99, max_samples: int | None = 2**19,
                 granularity: str | dict | Granularity = 'tensor') -> None:
        if not 50 < percentile <= 100:
            raise ValueError(f'percentile={percentile} is not supported: expected a value in (50, 100], such as 99.99.')
        self.percentile = percentile
        super().__init__(max_samples, granularity)

    def _range(self, low: Tensor, high: Tensor, quantizer) -> tuple[Tensor, Tensor]:
        if self.percentile == 100:
            return low, high
        samples = self.samples
        size = samples.shape[1]
        rank = min(size, max(1, math.ceil(self.percentile / 100 * size - 1e-9)))
        upper = samples.kthvalue(rank, dim=1).values.clamp_(min=0)
        lower = samples.kthvalue(size - rank + 1, dim=1).values.clamp_(max=0)
        return torch.maximum(lower, low), torch.minimum(upper, high)
