import math

import pytest
import torch
from models_for_tests import images

from mmquant.losses import LpLoss
from mmquant.reconstruction.fit import Pushes, fit
from mmquant.reconstruction.optimizers import ParamGroup, Training
from mmquant.reconstruction.problem import Comparison, Problem, split_rows
from mmquant.reconstruction.terms import Regularizer
from mmquant.registry import OPTIMIZERS


def group(tensor, lr, schedule='constant', **more):
    return [ParamGroup([tensor], Training(lr, schedule, **more))]


def problem_of(forward, inputs, targets, train, held, importance=None, **more):
    term = Comparison(LpLoss(), targets, 1, importance=importance)
    return Problem(forward, dict(quant=inputs), (term, ), train, held, torch.device('cpu'), **more)


@pytest.mark.parametrize('rows, held, expected', [(1024, 64, 64), (256, 64, 32), (16, 64, 2), (8, 64, 1), (100, 0, 0)])
def test_split_rows(rows, held, expected):
    train, kept = split_rows(rows, held, seed=3)
    if expected:
        assert len(kept) == expected and sorted([*train.tolist(), *kept.tolist()]) == list(range(rows))
    else:
        assert sorted(train.tolist()) == sorted(kept.tolist()) == list(range(rows))
    again = split_rows(rows, held, seed=3)
    assert torch.equal(train, again[0]) and torch.equal(kept, again[1])
    assert rows < 16 or not torch.equal(train, split_rows(rows, held, seed=4)[0])


@pytest.mark.parametrize('rows', [1, 3, 7])
def test_few_rows_are_used_for_both(rows):
    train, kept = split_rows(rows, 64, 0)
    assert torch.equal(train, kept) and sorted(train.tolist()) == list(range(rows))


def linear_problem(rows=20, held=4, **more):
    """Find the matrix behind ``y = x w``; records which rows each step sees."""
    x, w = images(rows, 3), torch.tensor([[1.], [-2.], [0.5]])
    guess, seen = torch.zeros(3, 1, requires_grad=True), []

    def forward(data):
        seen.append(len(data))
        return data @ guess

    order = torch.arange(rows)
    problem = problem_of(forward, x, x @ w, order[held:], order[:held] if held else order, **more)
    return problem, guess, w, seen


def test_fit_finds_the_answer():
    problem, guess, w, seen = linear_problem()
    before = problem.held_loss()
    loss = fit(problem, group(guess, 0.1, 'cosine'), 400, 8, seed=0)
    torch.testing.assert_close(guess.detach(), w, rtol=0, atol=1e-3)
    assert loss < 1e-5 and problem.held_loss() < 1e-5 < before and set(seen[1:401]) == {8}


@pytest.mark.parametrize('half', [True, False])
def test_inputs_are_bfloat16_while_fitting_only(half):
    problem, guess, _, _ = linear_problem(amp=True, half_inputs=half)
    seen = []
    problem = Problem(**{**vars(problem), 'forward': lambda data: seen.append(data.dtype) or data @ guess.to(data)})
    fit(problem, group(guess, 0.1), 2, 8, seed=0)
    assert set(seen) == {torch.bfloat16 if half else torch.float32}
    seen.clear()
    problem.held_loss()
    assert set(seen) == {torch.float32}


def test_batch_larger_than_the_data():
    problem, guess, _, seen = linear_problem(rows=5, held=0)
    fit(problem, group(guess, 0.1), 3, 32, seed=0)
    assert seen == [5, 5, 5]


def test_rows_are_drawn_without_replacement_from_the_train_rows():
    problem, guess, _, _ = linear_problem()
    drawn = []
    problem = Problem(**{**vars(problem), 'streams': dict(quant=torch.arange(20.)[:, None].repeat(1, 3))})
    problem = Problem(**{**vars(problem), 'forward': lambda data: drawn.append(data[:, 0].tolist()) or data @ guess})
    fit(problem, group(guess, 1e-6), 50, 8, seed=0)
    assert all(len(set(rows)) == 8 and min(rows) >= 4 for rows in drawn)
    assert {r for rows in drawn for r in rows} == set(range(4, 20))


def test_same_seed_same_result():
    results = []
    for seed in (0, 0, 1):
        problem, guess, _, _ = linear_problem()
        fit(problem, group(guess, 0.1), 20, 4, seed=seed)
        results.append(guess.detach().clone())
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_regularizer_and_callbacks():
    problem, guess, _, _ = linear_problem()
    steps, betas, reports = [], [], []

    class Spring(Regularizer):
        """Pulls to zero; notes what it is told."""

        def push(self, step, num_iters):
            return 20.0 - step

        def announce(self, fit, push):
            betas.append(push)

        def penalty(self, fit, push):
            assert push == betas[-1] and fit == 'the fit'
            return guess.square().sum()

    fit(problem, group(guess, 0.1), 100, 8, seed=0, pushes=Pushes(dict(a=Spring(1e4, 0.05, 0.8)), 'the fit', 100),
        after_step=steps.append, report=lambda step, loss: reports.append((step, loss)))
    assert steps == list(range(100)) and guess.abs().max() < 0.1
    assert betas == [20.0 - step for step in range(5, 80)]
    assert [s for s, _ in reports] == [*range(1, 100, 5), 100] and all(math.isfinite(x) for _, x in reports)


def test_penalties_add_up_and_are_not_reported():
    """Two regularizers whose windows overlap; the reported loss is without them."""
    seen = []

    class Slope(Regularizer):

        def penalty(self, fit, push):
            return guess.sum() * push

    problem, guess, _, _ = linear_problem()
    problem = Problem(**{**vars(problem), 'forward': lambda data: data @ guess * 0})
    pushes = Pushes(dict(a=Slope(2.0, 0.0, 0.6), b=Slope(3.0, 0.4, 1.0)), None, 10)
    assert [sorted(pushes.at(step)) for step in (0, 4, 5, 6, 9)] == [['a'], ['a', 'b'], ['a', 'b'], ['b'], ['b']]
    constant = problem.loss_on(torch.arange(4, 20)).item()
    fit(problem, group(guess, 0.1, optimizer=dict(type='SGD')), 10, 16, 0, pushes,
        after_step=lambda step: seen.append(guess[0].item()),
        report=lambda step, loss: seen.append(None) if abs(loss - constant) < 1e-3 * constant else 1 / 0)
    steps = [-0.1 * sum(w for w, on in ((2, t < 6), (3, t >= 4)) if on) for t in range(10)]
    found = [x for x in seen if x is not None]
    assert found == pytest.approx([sum(steps[:t + 1]) for t in range(10)], rel=1e-5)


def test_nan_in_the_loss_is_an_error():
    problem, guess, _, _ = linear_problem()

    def spoil(step):
        problem.comparisons[0].targets.fill_(float('nan'))

    with pytest.raises(FloatingPointError, match='reconstruction loss became nan at step 2 of 40; lower the learning '
                       'rate, or switch --amp off'):
        fit(problem, group(guess, 0.1), 40, 16, seed=0, after_step=spoil, report=lambda step, loss: None)
    with pytest.raises(FloatingPointError, match='became nan at step 0 of 40; nothing has been trained yet: check the '
                       'sizes of weights and calibration images'):
        fit(problem, group(guess, 0.1), 40, 16, seed=0, report=lambda step, loss: None)


def test_held_loss_weighs_chunks_by_their_rows():
    problem, _, _, _ = linear_problem(rows=40, held=10)
    expected = LpLoss()(torch.zeros(10, 1), problem.comparisons[0].targets[:10], 1).item()
    for size in (1, 3, 10, 64):
        assert problem.held_loss(size) == pytest.approx(expected, rel=1e-5)


def test_importance_follows_its_rows():
    problem, guess, w, _ = linear_problem(rows=40, held=8)
    weight = torch.zeros(40, 1)
    weight[8:24] = 1  # only these rows count
    problem.comparisons[0].targets[24:] = 1e3
    problem = problem_of(problem.forward, problem.streams['quant'], problem.comparisons[0].targets, problem.train_rows,
                         problem.held_rows, weight)
    fit(problem, group(guess, 0.1, 'cosine'), 400, 32, seed=0)
    torch.testing.assert_close(guess.detach(), w, rtol=0, atol=1e-3)


def test_each_group_has_its_own_rate():
    """Adam's first step is the rate; a cosine ends next to zero, a constant rate does not."""
    x = images(20, 2)
    a, b, moves = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True), []
    target = 1e3 * x.sum(1, keepdim=True)
    problem = problem_of(lambda data: data[:, :1] * a + data[:, 1:] * b, x, target, torch.arange(20), torch.arange(20))
    groups = [*group(a, 0.5), *group(b, 1e-2, 'cosine')]
    fit(problem, groups, 20, 20, seed=0, after_step=lambda step: moves.append((a.item(), b.item())))
    assert moves[0] == (pytest.approx(0.5, rel=1e-4), pytest.approx(1e-2, rel=1e-4))
    last = moves[-1][0] - moves[-2][0], moves[-1][1] - moves[-2][1]
    assert 0.3 < last[0] < 0.6 and 0 < last[1] < 1e-3


@pytest.mark.parametrize('schedule, rates', [('constant', [1, 1, 1]), ('linear', [1, 0.5, 0.1]),
                                             ('cosine', [1, 0.5, 0.5 * (1 + math.cos(0.9 * math.pi))])])
def test_schedules(schedule, rates):
    assert [Training(2.0, schedule).rate(p) / 2 for p in (0, 0.5, 0.9)] == pytest.approx(rates)


def test_each_role_may_have_its_own_optimizer():
    """SGD's step is the rate times the gradient, that of a sign optimizer from a test the rate; both on one loss."""

    @OPTIMIZERS.register_module(force=True)
    class SignForTests(torch.optim.Optimizer):

        def __init__(self, params, lr: float = 1.0, scale: float = 1.0) -> None:
            super().__init__(params, dict(lr=lr, scale=scale))

        @torch.no_grad()
        def step(self):
            for g in self.param_groups:
                for p in g['params']:
                    p -= g['lr'] * g['scale'] * p.grad.sign()

    a, b, moves = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True), []
    x = torch.ones(8, 1)
    problem = problem_of(lambda data: data * (a + b), x, x * 10, torch.arange(8), torch.arange(8))
    groups = [*group(a, 0.01, optimizer=dict(type='SGD')),
              *group(b, 0.5, 'linear', optimizer=dict(type='mmquant.SignForTests', scale=2.0))]
    fit(problem, groups, 2, 8, seed=0, after_step=lambda step: moves.append((a.item(), b.item())))
    assert moves[0] == pytest.approx((0.01 * 20, 1.0))
    assert moves[1] == pytest.approx((0.2 + 0.01 * 2 * (10 - 1.2), 1.0 + 0.5))


def test_a_hook_may_change_what_trains():
    """From the third step on another tensor trains, with an optimizer that begins anew."""
    a, b, moves = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True), []
    x = torch.ones(8, 1)
    problem = problem_of(lambda data: data * (a + b), x, x * 10, torch.arange(8), torch.arange(8))

    def after(step):
        moves.append((a.item(), b.item()))
        return group(b, 0.25) if step == 1 else None

    fit(problem, group(a, 0.5), 4, 8, seed=0, after_step=after)
    assert moves == [(pytest.approx(0.5 * k, rel=1e-3), 0) for k in (1, 2)] + [
        (moves[1][0], pytest.approx(0.25 * k, rel=1e-3)) for k in (1, 2)]
