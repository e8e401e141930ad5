"""Searchers on functions with known answers, and on a small network."""
import builtins
import math
from types import SimpleNamespace

import pytest
import torch
from models_for_tests import Chain, calibrated, images, randomize

from mmquant.losses.objectives import build_objective
from mmquant.registry import SEARCHERS
from mmquant.search import ClipProblem, CoordinateDescent, GradientSearch, PatternSearch, PowellSearch
from mmquant.search.problem import Counts
from mmquant.search.searcher import minibatches


class Function:
    """A problem without a network."""

    def __init__(self, function, size: int) -> None:
        self.function, self.size, self.context = function, size, SimpleNamespace(sizes=[4])
        self.best, self.best_loss, self.counts = (0.0, ) * size, math.inf, Counts()
        self.loss(self.best)

    def loss(self, x):
        value = self.function(tuple(float(v) for v in x))
        self.counts.evaluations += 1
        if value < self.best_loss:
            self.best, self.best_loss = tuple(float(v) for v in x), value
        return value

    along = ClipProblem.along

    def gradient(self, x, chunk, rows):
        h = 1e-6
        slopes = [(self.function([v + h * (i == k) for k, v in enumerate(x)])
                   - self.function([v - h * (i == k) for k, v in enumerate(x)])) / (2 * h) for i in range(self.size)]
        return self.function(x), slopes


def separable(x):
    return sum((k + 1) * (v - 0.1 * (k - 2))**2 for k, v in enumerate(x))


def rotated(x):
    """A quadratic whose axes are no coordinates."""
    generator = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(len(x), len(x), generator=generator, dtype=torch.float64))
    y = q @ (torch.tensor(x, dtype=torch.float64) - 0.3)
    return (y.square() * torch.logspace(0, 2, len(x), dtype=torch.float64)).sum().item()


def run(searcher, problem, units=None):
    state = {}
    for index in range(units or searcher.num_units):
        searcher.run_unit(index, problem, state, 0)
    return problem


ALL = [PowellSearch(), CoordinateDescent(), PatternSearch(num_sweeps=8), GradientSearch(num_steps=200, lr=0.02)]


@pytest.mark.parametrize('searcher', ALL, ids=lambda s: type(s).__name__)
def test_separable_quadratic(searcher):
    problem = Function(separable, 5)
    start = problem.best_loss
    limit = 1e-2 if isinstance(searcher, (PatternSearch, GradientSearch)) else 1e-5
    assert run(searcher, problem).best_loss < limit * start
    assert SEARCHERS.get(f'mmquant.{type(searcher).__name__}') is type(searcher)


def test_powell_follows_rotated_axes_better_than_coordinates():
    powell = run(PowellSearch(num_iters=8, max_evaluations=2000), Function(rotated, 6))
    coordinates = run(CoordinateDescent(num_sweeps=8), Function(rotated, 6))
    assert powell.best_loss < 1e-3 * rotated([0.0] * 6) and powell.best_loss < 0.5 * coordinates.best_loss


@pytest.mark.parametrize('searcher', ALL, ids=lambda s: type(s).__name__)
def test_never_ends_above_its_start(searcher):
    """A narrow hole around the start: SciPy's bounded Powell leaves it and returns 2.0."""

    def trap(x):
        return sum(1 - 0.9 * math.exp(-((v / 0.02)**2)) + 0.05 * (v - 2)**2 for v in x)

    problem = run(searcher, Function(trap, 2))
    assert trap((0, 0)) == pytest.approx(0.6) and problem.best_loss <= 0.60


@pytest.mark.parametrize('searcher', ALL, ids=lambda s: type(s).__name__)
def test_walls_of_infinity(searcher):
    problem = run(searcher, Function(lambda x: math.inf if max(x) > 0.05 else separable(x), 3))
    assert separable([0.0] * 3) > problem.best_loss and max(problem.best) <= 0.05


def test_budget_of_powell():
    problem = run(PowellSearch(num_iters=50, max_evaluations=40), Function(rotated, 6))
    assert problem.counts.evaluations < 40 + 60  # the line search under way is finished


def test_trial_steps_grow_small_and_are_kept():
    problem, state = Function(lambda x: abs(x[0] - 0.15) + abs(x[1]), 2), {}
    searcher = PatternSearch(num_sweeps=3, step=0.1)
    searcher.run_unit(0, problem, state, 0)
    assert problem.best == pytest.approx((0.1, 0)) and [abs(s) for s in state['steps']] == [0.1, 0.05]
    searcher.run_unit(1, problem, state, 0)
    searcher.run_unit(2, problem, state, 0)
    assert problem.best[0] == pytest.approx(0.15, abs=1e-6) or abs(state['steps'][0]) <= 0.05


def test_minibatches_show_every_image_once_a_round():
    batches = minibatches([5, 3], 2, torch.Generator().manual_seed(0))
    for _ in range(2):
        seen = [(chunk, int(r)) for chunk, rows in (next(batches) for _ in range(5)) for r in rows]
        assert sorted(seen) == [(0, i) for i in range(5)] + [(1, i) for i in range(3)]


def test_all_searchers_improve_a_network_and_repeat_to_the_bit():
    torch.manual_seed(0)
    context = calibrated(randomize(Chain()), images(8, 3, 8, 8), chunk=4, w_bits=2, a_bits=3)
    state = {k: v.clone() for k, v in context.model.architecture.state_dict().items()}
    context = context.subset(None)
    objective = build_objective(context, None, 'test')
    small = GradientSearch(num_steps=10, batch_size=3, lr=0.05, num_checks=2)
    powell = PowellSearch(num_iters=1, max_evaluations=40)
    for searcher in (powell, CoordinateDescent(num_sweeps=1), PatternSearch(num_sweeps=1), small):
        results = []
        for _ in range(2):
            context.model.architecture.load_state_dict(state)
            with ClipProblem(context, objective) as problem:
                start = problem.loss([0.0] * problem.size)
                run(searcher, problem)
                results.append((problem.best, problem.settle(), problem.counts))
        assert results[0] == results[1] and results[0][1] <= start
        assert results[0][1] < start or searcher is small  # ten gradient steps may find nothing better


@pytest.mark.parametrize('make, text', [
    (lambda: PowellSearch(num_iters=0), 'num_iters must be positive, got 0'),
    (lambda: CoordinateDescent(step=-1), 'step must be positive, got -1'),
    (lambda: GradientSearch(lr=0), 'lr must be positive, got 0'),
    (lambda: PatternSearch(num_sweeps=0), 'num_sweeps must be positive, got 0'),
])
def test_wrong_arguments(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_without_scipy(monkeypatch):
    original = builtins.__import__

    def refuse(name, *args):
        if name.startswith('scipy'):
            raise ModuleNotFoundError(name)
        return original(name, *args)

    monkeypatch.setattr(builtins, '__import__', refuse)
    with pytest.raises(ModuleNotFoundError, match=r'pip install scipy, or use .*mmquant\.PatternSearch'):
        PowellSearch().run_unit(0, Function(separable, 2), {}, 0)
    run(PatternSearch(), Function(separable, 2))
