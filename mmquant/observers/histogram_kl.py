"""Clip where the quantized histogram tells least from the float one (entropy calibration, S. Migacz, GTC 2017)."""

import torch
from torch import Tensor

from mmquant.registry import OBSERVERS
from mmquant.structures import Granularity

from .sampled import SampledObserver


@OBSERVERS.register_module()
class HistogramKLObserver(SampledObserver):
    """Searches one threshold on ``|x|`` per scale that minimises ``KL(float || quantized)`` of the histograms.

    The reference histogram moves all mass beyond the threshold into its last bin; the quantized one merges the bins
    into the grid's evenly spaced levels and spreads each level evenly over its occupied bins. Both ends are clipped at
    the threshold. Where a scale has fewer than four values per bin (small weight channels) there are fewer bins: a few
    levels can tell any sparse histogram.

    Args:
        num_bins: Bins of the histogram of ``|x|``, >= 16. Default: 2048.
        num_candidates: Thresholds tried, > 0, evenly from the number of levels to ``num_bins`` bins. Default: 128.
        max_samples, granularity: See ``SampledObserver``.

    Raises:
        ValueError: An argument is outside its range.
    """

    def __init__(self, num_bins: int = 2048, num_candidates: int = 128, max_samples: int | None = 2**19,
                 granularity: str | dict | Granularity = 'tensor') -> None:
        if num_bins < 16 or num_candidates < 1:
            raise ValueError(f'HistogramKLObserver got num_bins={num_bins}, num_candidates={num_candidates}: expected '
                             'num_bins >= 16 and num_candidates >= 1.')
        self.num_bins, self.num_candidates = num_bins, num_candidates
        super().__init__(max_samples, granularity)

    def _range(self, low: Tensor, high: Tensor, quantizer) -> tuple[Tensor, Tensor]:
        limit = torch.maximum(-low, high)  # (num_scales,)
        levels = quantizer.levels()
        if levels is None or not bool((levels.diff() == levels.diff()[0]).all()):
            raise ValueError('HistogramKLObserver merges bins into evenly spaced levels, which '
                             f'{type(quantizer).__name__} has not: use LpNormObserver')
        two_sided = bool((low < 0).any()) or levels[0] < 0
        num_levels = len(levels) // 2 if two_sided else len(levels)
        num_bins = max(num_levels, min(self.num_bins, self.samples.shape[1] // 4))
        histogram = self._histogram(limit, num_bins)
        candidates = torch.linspace(num_bins, num_levels, self.num_candidates).round().int().unique().flip(0)
        best_bins, best = torch.full_like(limit, num_bins), torch.full_like(limit, float('inf'))
        for num_kept in candidates.tolist():
            divergence = _divergence(histogram, num_kept, num_levels)
            better = divergence < best
            best = torch.where(better, divergence, best)
            best_bins = torch.where(better, num_kept, best_bins)
        threshold = limit * best_bins / num_bins
        return torch.maximum(low, -threshold), torch.minimum(high, threshold)

    def _histogram(self, limit: Tensor, num_bins: int) -> Tensor:
        samples = self.samples.abs()  # (num_scales, n)
        width = limit.clamp(min=torch.finfo(torch.float32).tiny * num_bins) / num_bins
        index = torch.div(samples, width[:, None]).long().clamp_(max=num_bins - 1)
        return samples.new_zeros(len(samples), num_bins).scatter_add_(1, index, torch.ones_like(samples))


def _divergence(histogram: Tensor, num_kept: int, num_levels: int) -> Tensor:
    """KL divergence (nats, per row) of the first ``num_kept`` bins, tail folded in, from ``num_levels`` levels."""
    kept = histogram[:, :num_kept]
    reference = kept.clone()
    reference[:, -1] += histogram[:, num_kept:].sum(dim=1)
    level = torch.arange(num_kept, device=histogram.device).mul_(num_levels).floor_divide_(num_kept).expand_as(kept)
    occupied = (kept > 0).to(kept.dtype)
    mass = kept.new_zeros(kept.shape[0], num_levels).scatter_add_(1, level, kept)
    count = kept.new_zeros(kept.shape[0], num_levels).scatter_add_(1, level, occupied)
    quantized = (mass / count.clamp(min=1)).gather(1, level) * occupied
    reference /= reference.sum(dim=1, keepdim=True)
    quantized /= quantized.sum(dim=1, keepdim=True).clamp(min=1e-12)
    ratio = (reference.clamp(min=1e-12) / quantized.clamp(min=1e-12)).log_()
    return (reference * ratio).sum(dim=1)
