"""How a search over clips goes: the contract, line searches along the coordinates, gradient descent."""
import math
from abc import ABC, abstractmethod

import torch

from mmquant.registry import SEARCHERS
from mmquant.search.problem import ClipProblem
from mmquant.utils.distributed import share

# What a line search is told where the loss is infinite: its parabolas need numbers.
WALL = 1e10
# How far trial steps along one coordinate may go, in log clip.
LONGEST_WALK = 3.0


def scipy_optimize():
    """``scipy.optimize``; ModuleNotFoundError says how to get it or do without."""
    try:
        from scipy import optimize
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('this searcher needs SciPy: pip install scipy, or use '
                                  'searcher=dict(type="mmquant.PatternSearch")') from error
    return optimize


class Searcher(ABC):
    """Looks for a point of small loss, in ``num_units`` phases or sweeps, after each of which a run can be resumed.

    A unit starts at the problem's origin and evaluates points; the caller then moves the origin to the best of them.
    """
    num_units = 1

    @abstractmethod
    def run_unit(self, index: int, problem: ClipProblem, state: dict, seed: int) -> None:
        """Search in unit ``index``, drawing by ``seed``.

        ``problem`` is entered, its origin the best point so far, with the loss there evaluated; ``state`` holds tensors
        and plain values from one unit to the next.
        """


def positive(**values) -> None:
    """Raise ValueError for a value that is not above 0."""
    for key, value in values.items():
        if not value > 0:
            raise ValueError(f'{key} must be positive, got {value!r}')


@SEARCHERS.register_module()
class PowellSearch(Searcher):
    """Powell's method of SciPy over the logarithms of the clips (LAPQ, phase 3).

    One iteration is a line search along each direction; then one direction is replaced by the net displacement.

    Args:
        num_iters (int): Iterations. Default 2 (LAPQ's code for ResNet-18; 1 elsewhere).
        max_evaluations (int | None): Stop after this many. Default 30 per clip and iteration.
        step (float): First trial step along each direction, in log clip. Default 0.1.
        tolerance (float): Relative change of loss that ends the search, and of a clip. Default 1e-4, as in SciPy.
    """

    def __init__(self, num_iters: int = 2, max_evaluations: int | None = None, step: float = 0.1,
                 tolerance: float = 1e-4) -> None:
        positive(num_iters=num_iters, step=step, tolerance=tolerance, max_evaluations=max_evaluations or 1)
        self.num_iters, self.max_evaluations, self.step, self.tolerance = num_iters, max_evaluations, step, tolerance

    def run_unit(self, index: int, problem: ClipProblem, state: dict, seed: int) -> None:
        n = problem.size
        directions = [[self.step * (i == j) for j in range(n)] for i in range(n)]
        scipy_optimize().minimize(lambda x: min(problem.loss(x), WALL), [0.0] * n, method='Powell', options=dict(
            maxiter=self.num_iters, maxfev=self.max_evaluations or 30 * n * self.num_iters, direc=directions,
            xtol=self.tolerance, ftol=self.tolerance))


@SEARCHERS.register_module()
class CoordinateDescent(Searcher):
    """One line search (Brent's method of SciPy) along each coordinate, from the first quantizer to the last.

    Args:
        num_sweeps (int): Times through all coordinates; a unit each. Default 2.
        step (float): First trial step, in log clip. Default 0.1.
        tolerance (float): Relative precision of a line search. Default 0.01.
    """

    def __init__(self, num_sweeps: int = 2, step: float = 0.1, tolerance: float = 0.01) -> None:
        positive(num_sweeps=num_sweeps, step=step, tolerance=tolerance)
        self.num_units, self.step, self.tolerance = num_sweeps, step, tolerance

    def run_unit(self, index: int, problem: ClipProblem, state: dict, seed: int) -> None:
        for i in range(problem.size):
            line = problem.along(i)
            # the tolerance is relative to a step that may be next to 0: bounded by the number of trials as well
            scipy_optimize().minimize_scalar(lambda t, line=line: min(line(t), WALL), bracket=(0.0, self.step),
                                             method='brent', options=dict(xtol=self.tolerance, maxiter=20))


@SEARCHERS.register_module()
class PatternSearch(Searcher):
    """Sweeps of trial steps: from the first quantizer to the last, one step up or down, kept going while it helps.

    A coordinate's step is halved where neither direction helps, and kept for the next sweep. A sweep costs little more
    than two evaluations a coordinate, of what lies behind its quantizer; a step wider than the stairs that rounding
    makes of the loss jumps over its many small minima.

    Args:
        num_sweeps (int): Times through all coordinates; a unit each. Default 4.
        step (float): First trial step, in log clip. Default 0.2.
    """

    def __init__(self, num_sweeps: int = 4, step: float = 0.2) -> None:
        positive(num_sweeps=num_sweeps, step=step)
        self.num_units, self.step = num_sweeps, step

    def run_unit(self, index: int, problem: ClipProblem, state: dict, seed: int) -> None:
        steps = list(state.get('steps') or [self.step] * problem.size)  # the sign says which side goes first
        for i in range(problem.size):
            line, before, step = problem.along(i), problem.best_loss, steps[i]
            if not line(step) < before:
                step = -step
                if not line(step) < before:
                    steps[i] /= 2
                    continue
            reach, steps[i] = 2 * step, step
            while line(reach) <= problem.best_loss and math.isfinite(problem.best_loss) and abs(reach) < LONGEST_WALK:
                reach += step
        state['steps'] = steps


def minibatches(sizes: list[int], batch_size: int, generator: torch.Generator):
    """Endless (chunk, rows): each image once a round, in random order, a batch from one chunk."""
    while True:
        batches = [(chunk, rows) for chunk, size in enumerate(sizes)
                   for rows in torch.randperm(size, generator=generator).split(batch_size)]
        for i in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[i]


@SEARCHERS.register_module()
class GradientSearch(Searcher):
    """Adam on all log clips, by straight-through gradients of minibatches (LSQ, arXiv 1902.08153), with cosine decay.

    The whole calibration loss is looked at a few times; the best of these points stays. Steps whose gradient is not
    finite are skipped.

    Args:
        num_steps (int): Gradient steps. Default 100.
        batch_size (int): Images a step, in all processes. Default 32.
        lr (float): Adam's rate at the start, in log clip. Default 0.01.
        num_checks (int): Looks at the whole loss during the steps, the last one at the end. Default 4.
    """

    def __init__(self, num_steps: int = 100, batch_size: int = 32, lr: float = 0.01, num_checks: int = 4) -> None:
        positive(num_steps=num_steps, batch_size=batch_size, lr=lr, num_checks=num_checks)
        self.num_steps, self.batch_size, self.lr, self.num_checks = num_steps, batch_size, lr, num_checks

    def run_unit(self, index: int, problem: ClipProblem, state: dict, seed: int) -> None:
        x = torch.zeros(problem.size, dtype=torch.float64)
        optimizer = torch.optim.Adam([x], lr=self.lr, betas=(0.9, 0.99))
        batches = minibatches(problem.context.sizes, share(self.batch_size), torch.Generator().manual_seed(seed))
        checks = {round(self.num_steps * (k + 1) / self.num_checks) for k in range(self.num_checks)}
        for step in range(self.num_steps):
            _, slopes = problem.gradient(x.tolist(), *next(batches))
            x.grad = torch.tensor(slopes, dtype=torch.float64)
            if torch.isfinite(x.grad).all():
                optimizer.param_groups[0]['lr'] = self.lr * 0.5 * (1 + math.cos(math.pi * step / self.num_steps))
                optimizer.step()
            if step + 1 in checks:
                problem.loss(x.tolist())
