"""Ranges of a unit's activations when its turn comes (PD-Quant's initialisation)."""
import torch

from mmquant.calibration.observed_ranges import DEFAULT_OBSERVER, observed_ranges
from mmquant.calibration.unit_inputs import pick
from mmquant.reconstruction.hooks.hook import FitHook
from mmquant.registry import FIT_HOOKS, OBSERVERS
from mmquant.utils.building import build


@FIT_HOOKS.register_module()
class UnitRanges(FitHook):
    """Set the ranges of a unit's activation quantizers anew when its turn comes, with weights at nearest rounding.

    PD-Quant's initialisation. Units that are not reconstructed keep the ranges of the step ``InitActivationRange``.
    Stands before ``KeepBest``.

    Args:
        observer (dict | None): Default: the p = 2.4 search.
        num_rows (int): Rows of the unit's input to observe, at least 1. Default 256.
    """

    def __init__(self, observer: dict | None = None, num_rows: int = 256) -> None:
        if num_rows < 1:
            raise ValueError(f'num_rows must be at least 1, got {num_rows}')
        self.num_rows = num_rows
        self.observer = build(OBSERVERS, observer or DEFAULT_OBSERVER, 'UnitRanges.observer')

    @torch.no_grad()
    def before_fit(self, fit) -> None:
        quantizers = fit.settings.activations(fit.visit.context.model, fit.visit.unit)
        rows: list[int] = []
        with observed_ranges(quantizers, self.observer, lambda: rows[-1]):
            for problem in fit.problem.parts:
                data = next(iter(problem.streams.values()))
                every = torch.cat([problem.train_rows, problem.held_rows]).unique()[:problem.items.rows(self.num_rows)]
                for some in every.split(problem.items.rows(fit.settings.pass_rows)):
                    rows.append(len(some))
                    problem.forward(pick(data, some))
