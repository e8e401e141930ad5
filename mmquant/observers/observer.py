"""Statistics of tensors to a range: the contract, and the exact minimum and maximum that all observers keep."""
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from mmquant.registry import OBSERVERS
from mmquant.structures import Granularity, PerTensor, build_granularity


class Observer(ABC):
    """Collects what it needs from one or several tensors, then names a range per scale.

    Activations: ``observe`` every batch, then ``range(quantizer)``. A complete tensor such as a weight:
    ``range_of(weight, quantizer, quantizer.granularity)``, which uses every element. The observer proposes ranges; what
    a range is worth on a grid, the quantizer says (``errors``, ``levels``).

    Args:
        granularity: Which elements share a range, see ``build_granularity``. Default: ``'tensor'``.
    """

    takes_importance = False  # whether elements may count differently

    def __init__(self, granularity: str | dict | Granularity = 'tensor') -> None:
        self.granularity = build_granularity(granularity)
        self.reset()

    def reset(self, granularity: str | dict | Granularity | None = None) -> None:
        """Forget everything; optionally change the granularity."""
        if granularity is not None:
            self.granularity = build_granularity(granularity)
        self.low: Tensor | None = None  # (num_scales,) exact minimum
        self.high: Tensor | None = None  # (num_scales,) exact maximum
        self.importance: Tensor | None = None  # of each element, (num_scales, n)

    def share(self, num_scales: int) -> None:  # noqa: B027 (optional)
        """Divide what is kept of activations among so many scales."""

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Take in one float tensor of any shape; the number of scales must not change between calls.

        Raises:
            ValueError: Not floating point, empty, NaN or Inf inside, or another number of scales than before.
        """
        if not x.is_floating_point() or x.numel() == 0:
            raise ValueError(f'An observer needs a non-empty floating point tensor, but got {x.dtype} of '
                             f'shape {tuple(x.shape)}.')
        if isinstance(self.granularity, PerTensor):
            low, high = (end.reshape(1).float() for end in x.detach().aminmax())
        else:
            low, high = (end.float() for end in self.granularity.to_groups(x.detach()).aminmax(dim=1))
        if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
            bad = int((~torch.isfinite(x)).sum())
            raise ValueError(f'Observed a tensor of shape {tuple(x.shape)} with {bad} NaN or Inf values, for which no '
                             'range exists: check checkpoint and input normalization, and calibrate in float32 '
                             '(no fp16 autocast).')
        if self.low is not None and self.low.shape != low.shape:
            raise ValueError(f'Observed a tensor of shape {tuple(x.shape)} with {low.numel()} scales after tensors '
                             f'with {self.low.numel()} ({self.granularity}): reset() between tensors, or '
                             'use granularity="tensor".')
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)
        self._collect(x.detach())

    def range(self, quantizer) -> tuple[Tensor, Tensor]:
        """The range to quantize with on a ``Quantizer``'s grid: ``low <= 0 <= high``, float32, shape (num_scales,).

        Raises:
            RuntimeError: Nothing was observed.
        """
        if self.low is None:
            raise RuntimeError(f'{type(self).__name__} has seen no tensor: call observe() before range(). If this '
                               'belongs to a layer of a model, the calibration batches never reached that layer.')
        with torch.no_grad():
            return self._range(self.low.clamp(max=0), self.high.clamp(min=0), quantizer)

    def range_of(self, x: Tensor, quantizer, granularity: str | dict | Granularity | None = None,
                 importance: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The range of one complete tensor, from all its elements; what was observed before is forgotten.

        ``importance``, as ``x``, is the non-negative weight of each element's error.

        Raises:
            ValueError: An observer that minimises no error was given ``importance``, or it does not fit ``x``.
        """
        self.reset(granularity)
        self.observe(x)
        if importance is not None:
            if not self.takes_importance:
                raise ValueError(f'{type(self).__name__} minimises no error, so importance means nothing to it: use '
                                 'LpNormObserver')
            if importance.shape != x.shape or not bool((torch.isfinite(importance) & (importance >= 0)).all()):
                raise ValueError(f'importance of shape {tuple(importance.shape)} for a tensor of {tuple(x.shape)}: '
                                 'expected finite values >= 0, one per element')
            self.importance = self.granularity.to_groups(importance.float()).contiguous()
        low_high = self.range(quantizer)
        self.reset()
        return low_high

    def _collect(self, x: Tensor) -> None:  # noqa: B027 (optional)
        """Keep more of ``x`` (finite, detached) than its minimum and maximum."""

    @abstractmethod
    def _range(self, low: Tensor, high: Tensor, quantizer) -> tuple[Tensor, Tensor]:
        """The range, given the exact one (widened to 0), shapes (num_scales,)."""


@OBSERVERS.register_module()
class MinMaxObserver(Observer):
    """Exact minimum and maximum: nothing is clipped, outliers cost resolution. ``granularity``: See ``Observer``."""

    def _range(self, low: Tensor, high: Tensor, quantizer) -> tuple[Tensor, Tensor]:
        return low, high
