"""Search the range that minimises ``mean |x - Q(x)|^p`` (LAPQ, arXiv 1911.07190; BRECQ, arXiv 2102.05426)."""

import torch
from torch import Tensor

from mmquant.ops import affine_parameters, c_kernels, clamp, power_
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
        refinements: Rounds that look between the best factor and its neighbours, each four times finer. Default: 0.
        granularity: See ``Observer``.

    Raises:
        ValueError: An argument is outside its range.
    """

    def __init__(self, p: float = 2.4, num_candidates: int = 80, max_samples: int | None = 2**19,
                 min_shrink: float = 0.2, granularity: str | dict | Granularity = 'tensor',
                 refinements: int = 0) -> None:
        if p <= 0 or num_candidates < 1 or not 0 <= min_shrink < 1 or refinements < 0:
            raise ValueError(f'LpNormObserver got p={p}, num_candidates={num_candidates}, min_shrink={min_shrink}, '
                             f'refinements={refinements}: expected p > 0, num_candidates >= 1 and 0 <= min_shrink < 1 '
                             'and refinements >= 0.')
        self.p, self.num_candidates, self.min_shrink, self.refinements = p, num_candidates, min_shrink, refinements
        super().__init__(max_samples, granularity)

    def _range(self, low: Tensor, high: Tensor, grid: IntegerGrid) -> tuple[Tensor, Tensor]:
        count = torch.arange(self.num_candidates, dtype=low.dtype, device=low.device)
        step = (1 - self.min_shrink) / self.num_candidates
        factors = (1 - step * count)[:, None]  # (K, 1)
        factor = self._best(factors.expand(-1, len(low)), low, high, grid)  # (num_scales,)
        for _ in range(self.refinements):
            between = torch.linspace(1, -1, 9, dtype=low.dtype, device=low.device)[:, None]
            factor = self._best((factor + step * between).clamp_(min=1e-4), low, high, grid)
            step /= 4
        return low * factor, high * factor

    def _best(self, factors: Tensor, low: Tensor, high: Tensor, grid: IntegerGrid) -> Tensor:
        """The factor of least error for each scale, from ``factors`` of shape (K, num_scales)."""
        scale, zero_point = affine_parameters(factors * low, factors * high, grid)  # (K, num_scales)
        error = self._errors_natively(self.samples, scale, zero_point, grid)
        if error is None:
            error = self._errors_in_chunks(self.samples, scale, zero_point, grid)
        return factors.gather(0, torch.argmin(error * scale**self.p, dim=0, keepdim=True))[0]

    def _errors_natively(self, x: Tensor, scale: Tensor, zero_point: Tensor, grid: IntegerGrid) -> Tensor | None:
        """As ``_errors`` over all rows, by the compiled kernel; None where it does not fit."""
        kernels = c_kernels.usable(x) if x.is_contiguous() and not grid.offset else None
        if kernels is None:
            return None
        scale, low, high = (t.contiguous() for t in (scale, grid.q_min - zero_point, grid.q_max - zero_point))
        errors = torch.empty_like(scale)
        kernels.lp_errors(len(scale), *x.shape, x.data_ptr(), scale.data_ptr(), low.data_ptr(), high.data_ptr(), self.p,
                          errors.data_ptr())
        return errors

    def _errors_in_chunks(self, samples: Tensor, scale: Tensor, zero_point: Tensor, grid: IntegerGrid) -> Tensor:
        rows = max(1, CHUNK_ELEMENTS.get(samples.device.type, 2**20) // samples.shape[1])
        chunks = zip(*(t.split(rows, dim=-2) for t in (samples, scale[..., None], zero_point[..., None])), strict=True)
        return torch.cat([self._errors(*chunk, grid) for chunk in chunks], dim=1)  # (K, num_scales), in steps^p

    def _errors(self, x: Tensor, scale: Tensor, zero_point: Tensor, grid: IntegerGrid) -> Tensor:
        """Mean of ``|(x - Q(x)) / scale|^p``, shape (K, rows), for x (rows, n) and scale, zero_point (K, rows, 1)."""
        errors = torch.empty(scale.shape[:2], device=x.device)
        steps, codes = torch.empty_like(x), torch.empty_like(x)
        low, high = grid.q_min - zero_point, grid.q_max - zero_point
        for i in range(len(scale)):
            torch.div(x, scale[i], out=steps)
            if grid.offset:
                steps.sub_(grid.offset)
            clamp(torch.round(steps, out=codes), low[i], high[i], out=codes)
            torch.mean(power_(codes.sub_(steps).abs_(), self.p), dim=1, out=errors[i])
        return errors
