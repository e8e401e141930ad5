"""AdaRound's push of relaxed roundings to 0 or 1 (arXiv 2004.10568)."""
import copy

import torch

from mmquant.reconstruction.terms.term import Regularizer
from mmquant.registry import TERMS


@TERMS.register_module()
class RoundingRegularizer(Regularizer):
    """``sum(1 - |2 h - 1|^beta)`` over the roundings of a unit; ``beta`` falls linearly within the window.

    AdaRound (arXiv 2004.10568, eq. 24) with BRECQ's schedule.

    Args:
        weight (float): Factor, default 0.01 (0.1 for MobileNetV2).
        relative (bool): Take the mean over the unit's weights, not the sum, and ``weight`` times the unit's loss with
            nearest rounding, so that a factor means the same for outputs of any magnitude and units of any size.
            Default False, as published.
        beta_start, beta_end (float): Exponent when the window begins and ends, at least 1; 20 to 2.
        warmup (float): Share of the steps without the regularizer, in [0, 1). Default 0.2.
        until (float): Share of the steps after which it is off again, in (warmup, 1]. Default 1: never.

    Raises:
        ValueError: For values out of range.
    """

    def __init__(self, weight: float = 0.01, relative: bool = False, beta_start: float = 20.0, beta_end: float = 2.0,
                 warmup: float = 0.2, until: float = 1.0) -> None:
        super().__init__(weight, warmup, until)
        if min(beta_start, beta_end) < 1:
            raise ValueError(f'exponents must be at least 1, got beta_start={beta_start}, beta_end={beta_end}')
        self.relative, self.beta_start, self.beta_end = relative, beta_start, beta_end

    def for_unit(self, fit) -> 'RoundingRegularizer | None':
        if not fit.variables.roundings:
            return None
        if not self.relative or not self.weight:
            return self
        changed = copy.copy(self)
        changed.weight = self.weight * fit.initial_loss / max(1, fit.variables.num_weights)
        return changed

    def push(self, step: int, num_iters: int) -> float:
        """Exponent at ``step``: ``beta_start`` until the window begins, ``beta_end`` where it ends."""
        if step < self.begin * num_iters:
            return self.beta_start
        left = 1 - (step - self.begin * num_iters) / ((self.end - self.begin) * num_iters)
        return self.beta_end + (self.beta_start - self.beta_end) * max(0.0, left)

    def announce(self, fit, push) -> None:
        for rounding in fit.variables.roundings.values():
            rounding.beta = push

    def penalty(self, fit, push) -> torch.Tensor:
        roundings = fit.variables.roundings.values()
        penalties = [r.penalty for r in roundings if r.penalty is not None]
        for rounding in roundings:
            rounding.beta = rounding.penalty = None
        return sum(penalties)
