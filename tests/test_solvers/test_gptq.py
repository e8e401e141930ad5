"""The properties of the algorithm, on an integer grid in float64 unless something else is said."""
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmquant.calibration.moments import Moments, quadratic
from mmquant.models.layer_matrix import LayerMatrix
from mmquant.observers import LpNormObserver, MinMaxObserver
from mmquant.quantizers import UniformAffineQuantizer
from mmquant.registry import QUANTIZERS, SOLVERS
from mmquant.solvers.gptq import GPTQ, eliminate
from mmquant.solvers.solver import better_rows
from mmquant.utils.building import ConfigError, build

QUANTIZERS.import_from_location()
NAMES = sorted(n for n, c in QUANTIZERS.module_dict.items() if c.__module__.startswith('mmquant.'))


def integers(groups: int, rows: int, columns: int):
    """Columns of a grid of the integers -128..127."""
    quantizer = UniformAffineQuantizer(8, symmetric=True)
    quantizer.set_range(torch.tensor(-127.0), torch.tensor(127.0))
    assert quantizer.scale == 1
    return quantizer.columns((groups * rows, columns), lambda w: w.reshape(groups, rows, columns))


def correlated(rows: int, columns: int, seed: int = 0, groups: int = 1) -> torch.Tensor:
    """Inputs (g, m, C) whose columns are mixed."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, rows, columns, generator=generator, dtype=torch.float64)
    return x @ torch.randn(groups, columns, columns, generator=generator, dtype=torch.float64)


def weights(*shape: int, seed: int = 1, size: float = 2.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * size


def of(gram: torch.Tensor):
    """Moments with this Hessian."""
    return SimpleNamespace(gram=gram)


def solved(weight, gram, **settings) -> torch.Tensor:
    """Values on the integers, (g, R, C)."""
    grid = integers(*weight.shape)
    return grid.decode(GPTQ(**settings).solve(weight, of(gram), grid)).double()


def explicit(weight: torch.Tensor, gram: torch.Tensor, percdamp: float) -> torch.Tensor:
    """The paper's recursion with the inverse of every remaining Hessian, one group."""
    w, h = weight.clone(), gram + percdamp * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    for j in range(len(h)):
        inverse = torch.linalg.inv(h[j:, j:])
        value = w[:, j].round()
        w[:, j + 1:] -= torch.outer((w[:, j] - value) / inverse[0, 0], inverse[0, 1:])
        w[:, j] = value
    return w


@pytest.mark.parametrize('block', [1, 7, 128])
def test_loss_is_the_error_with_the_damped_hessian(block):
    x, weight = correlated(50, 24, groups=3), weights(3, 5, 24)
    gram = x.mT @ x
    factor = GPTQ(percdamp=0.05).factor(gram)
    damped = gram + 0.05 * torch.diag_embed(gram.diagonal(dim1=1, dim2=2).mean(-1, keepdim=True).expand(-1, 24))
    torch.testing.assert_close(factor @ factor.mT, damped, rtol=1e-12, atol=1e-9)
    assert torch.equal(factor, factor.triu())
    grid = integers(3, 5, 24)
    codes, losses = eliminate(weight, factor, grid, block)
    error = quadratic(damped, weight - grid.decode(codes).double())
    torch.testing.assert_close(losses, error, rtol=1e-12, atol=0)


@pytest.mark.parametrize('act_order', [False, True])
def test_the_size_of_a_block_changes_nothing(act_order):
    x, weight = correlated(60, 30), weights(1, 4, 30)
    found = [solved(weight, x.mT @ x, block=b, act_order=act_order) for b in (1, 7, 29, 30, 128)]
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_equal_to_the_recursion_with_explicit_inverses():
    for seed in range(5):
        x, weight = correlated(40, 16, seed), weights(1, 6, 16, seed=seed)
        gram = x.mT @ x
        assert torch.equal(solved(weight, gram, act_order=False)[0], explicit(weight[0], gram[0], 0.01))
        order = gram[0].diagonal().argsort(descending=True)
        expected = explicit(weight[0][:, order], gram[0][order][:, order], 0.01)
        assert torch.equal(solved(weight, gram, act_order=True)[0][:, order], expected)


def test_worked_example():
    weight, gram = torch.tensor([[[0.6, 0.6]]]).double(), torch.tensor([[[2., 1.], [1., 2.]]]).double()
    value = solved(weight, gram, percdamp=0.0, act_order=False)
    assert value.tolist() == [[[1.0, 0.0]]]
    assert quadratic(gram, weight - value).item() / 2 == pytest.approx(0.28, abs=1e-7)
    assert quadratic(gram, weight - 1).item() / 2 == pytest.approx(0.48, abs=1e-7)


@pytest.mark.parametrize('act_order', [False, True])
def test_a_diagonal_hessian_gives_nearest_and_a_factor_in_it_changes_nothing(act_order):
    weight, x = weights(2, 4, 9), correlated(30, 9, groups=2)
    diagonal = torch.diag_embed(torch.rand(2, 9, dtype=torch.float64) + 0.1)
    assert torch.equal(solved(weight, diagonal, act_order=act_order), weight.round())
    gram = x.mT @ x
    assert torch.equal(solved(weight, gram, act_order=act_order), solved(weight, 1024 * gram, act_order=act_order))
    assert not torch.equal(solved(weight, gram, act_order=act_order), weight.round())


def test_weights_on_the_grid_stay():
    x, weight = correlated(40, 12), weights(1, 5, 12).round()
    assert torch.equal(solved(weight, x.mT @ x), weight)


def test_groups_are_solved_as_if_alone():
    x, weight = correlated(40, 9, groups=6), weights(6, 2, 9)
    gram = x.mT @ x
    together = solved(weight, gram)
    for g in range(6):
        assert torch.equal(together[g:g + 1], solved(weight[g:g + 1], gram[g:g + 1]))


def test_error_against_nearest_on_correlated_inputs():
    """The mean over seeds of |X (W - Q)^T|^2: nearest, the given order, large inputs first."""
    totals = torch.zeros(3, dtype=torch.float64)
    for seed in range(20):
        x, weight = correlated(100, 24, seed), weights(1, 6, 24, seed=seed)
        gram = x.mT @ x
        for k, value in enumerate((weight.round(), solved(weight, gram, act_order=False), solved(weight, gram))):
            totals[k] += quadratic(gram, weight - value).sum()
    assert totals[1] < 0.6 * totals[0] and totals[2] < 0.5 * totals[0], totals


def test_fewer_rows_than_columns_and_dead_inputs():
    x, weight = correlated(10, 24), weights(1, 5, 24)
    x[..., [3, 20]] = 0
    gram = x.mT @ x
    rounded, zeroed = solved(weight, gram), solved(weight, gram, dead='zero')
    assert torch.isfinite(rounded).all()
    assert torch.equal(rounded[..., [3, 20]], weight[..., [3, 20]].round()) and not zeroed[..., [3, 20]].any()
    live = [i for i in range(24) if i not in (3, 20)]
    assert torch.equal(rounded[..., live], zeroed[..., live])
    errors = [quadratic(gram, weight - value).sum() for value in (rounded, weight.round())]
    assert errors[0] < 0.5 * errors[1]
    assert torch.equal(solved(weight, torch.zeros(1, 24, 24).double()), weight.round())  # nothing at all comes in


def test_damping_grows_where_the_factorisation_fails_and_then_weights_round(monkeypatch):
    told = []
    monkeypatch.setattr('mmquant.solvers.gptq.print_log', lambda text, *args: told.append(text))
    good = torch.eye(2).double()
    indefinite = torch.tensor([[1.0, 1.05], [1.05, 1.0]]).double()  # positive from a damping of 0.05 on
    hopeless = torch.tensor([[1.0, 3.0], [3.0, 1.0]]).double()  # from 2 on
    gram = torch.stack([good, indefinite, hopeless])
    factor = GPTQ(percdamp=0.01).factor(gram)
    damped = factor @ factor.mT
    torch.testing.assert_close(damped[0], good * 1.01)
    torch.testing.assert_close(damped[1], indefinite + 0.1 * good)
    assert torch.equal(factor[2], good)
    assert len(told) == 1 and '1 of 3 Hessians of 2 columns cannot be factored' in told[0]
    weight = weights(3, 4, 2)
    assert torch.equal(solved(weight, gram)[2], weight[2].round())


def test_float32_of_a_nearly_singular_hessian():
    x = correlated(400, 8)[0].float()
    x = torch.cat([x, x + 1e-5 * torch.randn(x.shape)], 1)
    weight = weights(1, 6, 16).float()
    value = solved(weight, (x.T @ x)[None]).float()
    error = [((weight - v) @ x.T).square().sum() for v in (value, weight.round())]
    assert torch.isfinite(value).all() and error[0] < error[1]


GRIDS = [dict(type=f'mmquant.{name}', **settings) for name in NAMES for settings in (
    dict(granularity='channel'), dict(granularity='group', group_size=8), dict(granularity='tensor'))]


@pytest.mark.parametrize('grid', [*GRIDS, dict(type='mmquant.UniformAffineQuantizer', symmetric=True)],
                         ids=lambda grid: '-'.join(str(x).removeprefix('mmquant.') for x in grid.values()))
@pytest.mark.parametrize('act_order', [False, True])
def test_on_every_grid_and_granularity_codes_are_the_grids_own(grid, act_order):
    """Group grids in any order of columns: every value is one that its own element can have."""
    weight, x = weights(6, 32, size=0.3).float(), correlated(100, 32)
    quantizer = build(QUANTIZERS, dict(grid, bits=3), 'grid')
    quantizer.allocate((6, 32))
    quantizer.fit(weight, LpNormObserver())
    matrix = LayerMatrix(nn.Linear(32, 6))
    columns = quantizer.columns((6, 32), matrix.matrix)
    gram = x.mT @ x
    codes = GPTQ(act_order=act_order, block=5).solve(matrix.matrix(weight), of(gram), columns)
    values = quantizer.decode(matrix.tensor(codes))
    torch.testing.assert_close(quantizer.nearest(values), values)
    torch.testing.assert_close(columns.decode(codes)[0], values)
    errors = [quadratic(gram, (weight - v)[None].double()).sum() for v in (values, quantizer.nearest(weight))]
    assert errors[0] < 0.7 * errors[1]


def test_rows_without_negative_weights_do_not_clip():
    quantizer = UniformAffineQuantizer(4, symmetric=True, granularity='channel')
    weight = torch.tensor([[0.0, 0.5, 1.0]])
    quantizer.allocate(weight.shape)
    quantizer.fit(weight, MinMaxObserver())
    columns = quantizer.columns(weight.shape, lambda w: w[None])
    values = columns.decode(GPTQ().solve(weight[None], of(torch.eye(3)[None]), columns))
    assert (values - weight).abs().max() <= quantizer.scale.max() / 2 + 1e-6


def test_better_rows_are_never_worse_than_either():
    layer = nn.Linear(12, 20, bias=False)
    matrix, x = LayerMatrix(layer), correlated(200, 12)[0].float()
    moments = Moments(matrix)
    moments.add(x[:, None])
    weight, grid = weights(1, 20, 12, size=1), integers(1, 20, 12)
    nearest, codes = grid.encode(weight.float()), GPTQ(act_order=False).solve(weight, moments, grid)
    worse = codes.clone()
    worse[:, 3:9] += 1
    kept = better_rows(weight, moments, grid, worse, nearest)
    error = {k: moments.error(weight, grid.decode(c)) for k, c in dict(n=nearest, w=worse, k=kept).items()}
    torch.testing.assert_close(error['k'], torch.minimum(error['n'], error['w']), rtol=0, atol=0)
    assert torch.equal(kept[0, 3:9], nearest[0, 3:9]) and (error['k'] < error['n']).any()


@pytest.mark.parametrize('wrong', [dict(percdamp=-1.0), dict(block=0), dict(dead='drop'), dict(max_columns=0)])
def test_settings_out_of_range(wrong):
    with pytest.raises(ConfigError, match='GPTQ needs percdamp >= 0'):
        build(SOLVERS, dict(type='mmquant.GPTQ', **wrong), 'solver')
