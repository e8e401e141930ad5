"""Search the range that minimises ``mean |x - Q(x)|^p`` (LAPQ, arXiv 1911.07190; BRECQ, arXiv 2102.05426)."""

import torch
from torch import Tensor

from mmquant.ops import affine_parameters
from mmquant.registry import OBSERVERS
from mmquant.structures import Granularity, IntegerGrid

from .sampled import SampledObserver

# Elements worked on at once: what a CPU core's cache holds; a GPU wants few large launches.
CHUNK_ELEMENTS = dict(cpu=2**16, cuda=2**24)


@OBSERVERS.register_module()
class LpNormObserver(SampledObserver):
    """Shrinks both ends of the exact range by the same factor and keeps the best of ``num_candidates`` factors.

    The factors fall evenly from 1 towards ``min_shrink``: with the defaults 1.00, 0.99, ..., 0.21. The first is the
    exact range, so the result is never worse than that of ``MinMaxObserver``; among equals the widest range wins.

    Args:
        p: Exponent of the error, > 0: 2.4 (BRECQ), 2 (mean squared error), 1 (outliers count least). Default: 2.4.
        num_candidates: Factors tried, > 0. Default: 80.
        max_samples: See ``SampledObserver``.
        min_shrink: Lower end (exclusive) of the factors, in [0, 1). Default: 0.2.
        granularity: See ``Observer``.

    Raises:
        ValueError: An argument is outside its range.
    """

    def __init__(self, p: float = 2.4, num_candidates: int = 80, max_samples: int | None = 2**19,
                 min_shrink: float = 0.2, granularity: str | dict | Granularity = 'tensor') -> None:
        if p <= 0 or num_candidates < 1 or not 0 <= min_shrink < 1:
            raise ValueError(f'LpNormObserver got p={p}, num_candidates={num_candidates}, min_shrink={min_shrink}: '
                             'expected p > 0, num_candidates >= 1 and 0 <= min_shrink < 1.')
        self.p, self.num_candidates, self.min_shrink = p, num_candidates, min_shrink
        super().__init__(max_samples, granularity)

    def _range(self, low: Tensor, high: Tensor, grid: IntegerGrid) -> tuple[Tensor, Tensor]:
        samples = self.samples  # (num_scales, n)
        rows = max(1, CHUNK_ELEMENTS.get(samples.device.type, 2**20) // samples.shape[1])
        chunks = zip(samples.split(rows), low.split(rows), high.split(rows), strict=True)
        factor = torch.cat([self._best_factors(*chunk, grid) for chunk in chunks])
        return low * factor, high * factor

    def _best_factors(self, x: Tensor, low: Tensor, high: Tensor, grid: IntegerGrid) -> Tensor:
        best_error = torch.full_like(low, float('inf'))
        best_factor = torch.ones_like(low)
        steps, error = torch.empty_like(x), torch.empty_like(x)
        for i in range(self.num_candidates):
            factor = 1 - (1 - self.min_shrink) * i / self.num_candidates
            scale, zero_point = affine_parameters(low * factor, high * factor, grid)
            torch.div(x, scale[:, None], out=steps)
            torch.round(steps, out=error)
            _clamp_rows_(error, grid.q_min - zero_point, grid.q_max - zero_point)
            mean = self._power_mean(error.sub_(steps)) * scale**self.p
            better = mean < best_error
            best_error = torch.where(better, mean, best_error)
            best_factor = torch.where(better, factor, best_factor)
        return best_factor

    def _power_mean(self, error: Tensor) -> Tensor:
        """Mean of ``|error|^p`` over each row; overwrites ``error``."""
        if self.p == 2:
            return error.square_().mean(dim=1)
        error.abs_()
        return (error if self.p == 1 else error.pow_(self.p)).mean(dim=1)


def _clamp_rows_(x: Tensor, low: Tensor, high: Tensor) -> None:
    if low.numel() == 1 and low.device.type == 'cpu':  # the kernel with scalar bounds is vectorised
        x.clamp_(low.item(), high.item())
    else:
        x.clamp_(low[:, None], high[:, None])
