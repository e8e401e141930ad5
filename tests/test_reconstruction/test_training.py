import math

import pytest
import torch
from models_for_tests import images

from mmquant.losses import LpLoss
from mmquant.reconstruction.training import ParamGroup, Problem, RoundingSchedule, fit, split_rows


@pytest.mark.parametrize('total', [10, 2000, 20000])
def test_schedule_of_the_exponent(total):
    schedule = RoundingSchedule()
    beta = [schedule.beta(step, total) for step in range(total + 1)]
    assert beta[0] == beta[total // 5] == 20 and beta[total] == pytest.approx(2)
    assert beta[total * 6 // 10] == pytest.approx(11)
    assert all(a >= b for a, b in zip(beta, beta[1:]))
    steps = {round(a - b, 9) for a, b in zip(beta[total // 5:], beta[total // 5 + 1:])}
    assert len(steps) == 1  # linear
    active = [schedule.active(step, total) for step in range(total)]
    assert not any(active[:total // 5]) and all(active[total // 5:])


def test_other_schedules():
    schedule = RoundingSchedule(weight=0.1, beta_start=8, beta_end=4, warmup=0)
    assert schedule.active(0, 100) and schedule.beta(0, 100) == 8 and schedule.beta(50, 100) == 6
    assert not RoundingSchedule(weight=0).active(99, 100)


def test_relative_schedules_scale_with_the_loss():
    schedule = RoundingSchedule(weight=50, relative=True, warmup=0.5)
    assert schedule.for_unit(300.0, 5000) == RoundingSchedule(weight=3.0, warmup=0.5)
    assert RoundingSchedule(weight=0.02).for_unit(300.0, 5000) == RoundingSchedule(weight=0.02)


@pytest.mark.parametrize('wrong', [dict(weight=-1), dict(warmup=1), dict(warmup=-0.1), dict(beta_end=0.5)])
def test_wrong_schedules(wrong):
    with pytest.raises(ValueError, match='expected weight >= 0, 0 <= warmup < 1 and exponents >= 1'):
        RoundingSchedule(**wrong)


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
    problem = Problem(forward, x, x @ w, None, LpLoss(), 1, order[held:], order[:held] if held else order,
                      torch.device('cpu'), **more)
    return problem, guess, w, seen


def test_fit_finds_the_answer():
    problem, guess, w, seen = linear_problem()
    before = problem.held_loss()
    loss = fit(problem, [ParamGroup([guess], 0.1, cosine=True)], 400, 8, seed=0)
    torch.testing.assert_close(guess.detach(), w, rtol=0, atol=1e-3)
    assert loss < 1e-5 and problem.held_loss() < 1e-5 < before and set(seen[1:401]) == {8}


@pytest.mark.parametrize('half', [True, False])
def test_inputs_are_bfloat16_while_fitting_only(half):
    problem, guess, _, _ = linear_problem(amp=True, half_inputs=half)
    seen = []
    problem = Problem(**{**vars(problem), 'forward': lambda data: seen.append(data.dtype) or data @ guess.to(data)})
    fit(problem, [ParamGroup([guess], 0.1)], 2, 8, seed=0)
    assert set(seen) == {torch.bfloat16 if half else torch.float32}
    seen.clear()
    problem.held_loss()
    assert set(seen) == {torch.float32}


def test_batch_larger_than_the_data():
    problem, guess, _, seen = linear_problem(rows=5, held=0)
    fit(problem, [ParamGroup([guess], 0.1)], 3, 32, seed=0)
    assert seen == [5, 5, 5]


def test_rows_are_drawn_without_replacement_from_the_train_rows():
    problem, guess, _, _ = linear_problem()
    drawn = []
    problem = Problem(**{**vars(problem), 'inputs': torch.arange(20.)[:, None].repeat(1, 3)})
    problem = Problem(**{**vars(problem), 'forward': lambda data: drawn.append(data[:, 0].tolist()) or data @ guess})
    fit(problem, [ParamGroup([guess], 1e-6)], 50, 8, seed=0)
    assert all(len(set(rows)) == 8 and min(rows) >= 4 for rows in drawn)
    assert {r for rows in drawn for r in rows} == set(range(4, 20))


def test_same_seed_same_result():
    results = []
    for seed in (0, 0, 1):
        problem, guess, _, _ = linear_problem()
        fit(problem, [ParamGroup([guess], 0.1)], 20, 4, seed=seed)
        results.append(guess.detach().clone())
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_regularizer_and_callbacks():
    problem, guess, _, _ = linear_problem()
    steps, betas, reports = [], [], []

    class Spring:
        """Pulls to zero; notes what it is told."""

        beta = property(None, lambda self, beta: beta is None or betas.append(beta))
        penalty = property(lambda self: guess.square().sum(), lambda self, nothing: None)

    fit(problem, [ParamGroup([guess], 0.1)], 100, 8, seed=0, schedule=RoundingSchedule(weight=1e4, warmup=0.05),
        roundings=[Spring()], after_step=steps.append, report=lambda step, loss: reports.append((step, loss)))
    assert steps == list(range(100)) and guess.abs().max() < 0.1
    assert len(betas) == 95 and betas[0] == 20 and betas[-1] == pytest.approx(2 + 18 / 95)
    assert [s for s, _ in reports] == [*range(1, 100, 5), 100] and all(math.isfinite(x) for _, x in reports)


def test_nan_in_the_loss_is_an_error():
    problem, guess, _, _ = linear_problem()
    problem.targets[7] = float('nan')
    with pytest.raises(FloatingPointError, match='reconstruction loss became nan at step .* of 40; lower the learning '
                       'rate, or switch --amp off'):
        fit(problem, [ParamGroup([guess], 0.1)], 40, 16, seed=0, report=lambda step, loss: None)


def test_held_loss_weighs_chunks_by_their_rows():
    problem, _, _, _ = linear_problem(rows=40, held=10)
    expected = LpLoss()(torch.zeros(10, 1), problem.targets[:10], 1).item()
    for size in (1, 3, 10, 64):
        assert problem.held_loss(size) == pytest.approx(expected, rel=1e-5)


def test_importance_follows_its_rows():
    problem, guess, w, _ = linear_problem(rows=40, held=8)
    weight = torch.zeros(40, 1)
    weight[8:24] = 1  # only these rows count
    problem.targets[24:] = 1e3
    problem = Problem(**{**vars(problem), 'weight': weight})
    fit(problem, [ParamGroup([guess], 0.1, cosine=True)], 400, 32, seed=0)
    torch.testing.assert_close(guess.detach(), w, rtol=0, atol=1e-3)


def test_each_group_has_its_own_rate():
    """Adam's first step is the rate; a cosine ends next to zero, a constant rate does not."""
    x = images(20, 2)
    a, b, moves = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True), []
    target = 1e3 * x.sum(1, keepdim=True)
    problem = Problem(lambda data: data[:, :1] * a + data[:, 1:] * b, x, target, None, LpLoss(), 1,
                      torch.arange(20), torch.arange(20), torch.device('cpu'))
    groups = [ParamGroup([a], 0.5), ParamGroup([b], 1e-2, cosine=True)]
    fit(problem, groups, 20, 20, seed=0, after_step=lambda step: moves.append((a.item(), b.item())))
    assert moves[0] == (pytest.approx(0.5, rel=1e-4), pytest.approx(1e-2, rel=1e-4))
    last = moves[-1][0] - moves[-2][0], moves[-1][1] - moves[-2][1]
    assert 0.3 < last[0] < 0.6 and 0 < last[1] < 1e-3
