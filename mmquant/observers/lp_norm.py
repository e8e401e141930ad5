"""Search the range that minimises ``mean |x - Q(x)|^p`` (LAPQ, arXiv 1911.07190; BRECQ, arXiv 2102.05426)."""

import torch
from torch import Tensor

from mmquant.registry import OBSERVERS
from mmquant.structures import Granularity

from .sampled import SampledObserver


@OBSERVERS.register_module()
class LpNormObserver(SampledObserver):
    """Shrinks both ends of the exact range by the same factor and keeps the best of ``num_candidates`` factors.

    The factors fall evenly from 1 towards ``min_shrink``: with the defaults 1.00, 0.99, ..., 0.21. The first is the
    exact range, so the result is never worse than that of ``MinMaxObserver``; among equals the widest range wins.
    Errors are multiplied by the importance of their elements, if one is given.

    Args:
        p: Exponent of the error, > 0: 2.4 (BRECQ), 2 (mean squared error), 1 (outliers count least). Default: 2.4.
        num_candidates: Factors tried, > 0. Default: 80.
        min_shrink: Lower end (exclusive) of the factors, in [0, 1). Default: 0.2.
        refinements: Rounds that look between the best factor and its neighbours, each four times finer. Default: 0.
        max_samples, granularity: See ``SampledObserver``.

    Raises:
        ValueError: An argument is outside its range.
    """

    takes_importance = True

    def __init__(self, p: float = 2.4, num_candidates: int = 80, max_samples: int | None = 2**19,
                 min_shrink: float = 0.2, granularity: str | dict | Granularity = 'tensor',
                 refinements: int = 0) -> None:
        if p <= 0 or num_candidates < 1 or not 0 <= min_shrink < 1 or refinements < 0:
            raise ValueError(f'LpNormObserver got p={p}, num_candidates={num_candidates}, min_shrink={min_shrink}, '
                             f'refinements={refinements}: expected p > 0, num_candidates >= 1 and 0 <= min_shrink < 1 '
                             'and refinements >= 0.')
        self.p, self.num_candidates, self.min_shrink, self.refinements = p, num_candidates, min_shrink, refinements
        super().__init__(max_samples, granularity)

    def _range(self, low: Tensor, high: Tensor, quantizer) -> tuple[Tensor, Tensor]:
        count = torch.arange(self.num_candidates, dtype=low.dtype, device=low.device)
        step = (1 - self.min_shrink) / self.num_candidates
        factors = (1 - step * count)[:, None]  # (K, 1)
        factor = self._best(factors.expand(-1, len(low)), low, high, quantizer)  # (num_scales,)
        for _ in range(self.refinements):
            between = torch.linspace(1, -1, 9, dtype=low.dtype, device=low.device)[:, None]
            factor = self._best((factor + step * between).clamp_(min=1e-4), low, high, quantizer)
            step /= 4
        return low * factor, high * factor

    def _best(self, factors: Tensor, low: Tensor, high: Tensor, quantizer) -> Tensor:
        """The factor of least error for each scale, from ``factors`` of shape (K, num_scales)."""
        error = quantizer.errors(self.samples, factors * low, factors * high, self.p, self.importance)
        return factors.gather(0, torch.argmin(error, dim=0, keepdim=True))[0]
