import sys

import pytest
import torch

from mmquant.observers import LpNormObserver, MinMaxObserver
from mmquant.ops import affine_errors, c_kernels
from mmquant.quantizers import NoZeroQuantizer, UniformAffineQuantizer


def lp_error(x, low, high, grid, p):
    """Mean error of each row."""
    return (grid.trial(x, low, high) - x).abs().pow(p).mean(1)


@pytest.mark.parametrize('p, threshold, tolerance', [(1, 1.04, 0.05), (2, 78.9, 0.5), (2.4, 79.4, 0.5)])
def test_two_outliers(p, threshold, tolerance):
    x = torch.cat([torch.rand(10000, generator=torch.Generator().manual_seed(0)), torch.tensor([50., 80.])])
    observer = LpNormObserver(p, num_candidates=1000, min_shrink=0)
    low, high = observer.range_of(x, UniformAffineQuantizer(8))
    assert low == 0 and high.item() == pytest.approx(threshold, abs=tolerance)


@pytest.mark.parametrize('p', [1, 2, 2.4])
@pytest.mark.parametrize('bits', [2, 4, 8])
@pytest.mark.parametrize('symmetric', [False, True])
def test_never_worse_than_the_whole_range(p, bits, symmetric):
    grid = UniformAffineQuantizer(bits, symmetric)
    x = torch.randn(20, 300).pow(3) + 0.2
    found = lp_error(x, *LpNormObserver(p).range_of(x, grid, 'channel'), grid, p)
    whole = lp_error(x, *MinMaxObserver().range_of(x, grid, 'channel'), grid, p)
    assert (found <= whole * (1 + 1e-5)).all() and found.sum() <= whole.sum()


def test_is_the_best_of_the_eighty_factors():
    grid, x = UniformAffineQuantizer(3), torch.randn(9, 64)
    low, high = LpNormObserver(2.4).range_of(x, grid, 'channel')
    exact_low, exact_high = MinMaxObserver().range_of(x, grid, 'channel')
    errors = torch.stack([lp_error(x, exact_low * f, exact_high * f, grid, 2.4) for f in 1 - 0.01 * torch.arange(80)])
    torch.testing.assert_close(lp_error(x, low, high, grid, 2.4), errors.amin(0))
    torch.testing.assert_close(high, exact_high * (1 - 0.01 * errors.argmin(0)))
    torch.testing.assert_close(low / exact_low, high / exact_high)


def test_representable_values_are_kept_exactly():
    x = torch.arange(-5., 11.).repeat(3) * 0.25
    low, high = LpNormObserver().range_of(x, UniformAffineQuantizer(4))
    assert (low, high) == (-1.25, 2.5)


def test_chunks_change_nothing(monkeypatch):
    x = torch.randn(50, 40)
    expected = LpNormObserver().range_of(x, UniformAffineQuantizer(4), 'channel')
    monkeypatch.setitem(sys.modules[affine_errors.__module__].CHUNK_ELEMENTS, 'cpu', 120)
    monkeypatch.setattr(c_kernels, 'usable', lambda *tensors, **more: None)
    got = LpNormObserver().range_of(x, UniformAffineQuantizer(4), 'channel')
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_tiny_values_do_not_underflow():
    x = torch.randn(4, 500)
    grid = UniformAffineQuantizer(2)
    factor = LpNormObserver(4).range_of(x, grid, 'channel')[1] / x.amax(1)
    tiny = x * 2.0**-20
    torch.testing.assert_close(LpNormObserver(4).range_of(tiny, grid, 'channel')[1] / tiny.amax(1), factor)


@pytest.mark.parametrize('arguments', [dict(p=0), dict(num_candidates=0), dict(min_shrink=1), dict(min_shrink=-0.1),
                                       dict(refinements=-1)])
def test_unfit_arguments(arguments):
    with pytest.raises(ValueError, match='expected p > 0, num_candidates >= 1 and 0 <= min_shrink < 1'):
        LpNormObserver(**arguments)


# ---- closed forms of LAPQ: what refinements are for ------------------------------------------------------------------
def alpha_of(x, p, grid):
    """Largest representable value of the optimum."""
    low, high = LpNormObserver(p, refinements=2, max_samples=None).range_of(x, grid)
    grid.set_range(low, high)
    return grid.decode(torch.tensor(grid.code_range[1])).item()


def normal_quantiles(n):
    return torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n).float()


@pytest.mark.parametrize('p', [1, 2, 3.3])
@pytest.mark.parametrize('bits, expected', [(2, 0.75), (3, 0.875), (4, 0.9375)])
def test_uniform_weights_without_a_zero_level(p, bits, expected):
    x = torch.linspace(-1, 1, 20001)
    assert alpha_of(x, p, NoZeroQuantizer(bits)) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize('p', [1, 2, 3.3])
@pytest.mark.parametrize('bits, expected', [(2, 0.8571), (3, 0.9333), (4, 0.9677)])
def test_uniform_activations(p, bits, expected):
    x = torch.linspace(0, 1, 20001)
    assert alpha_of(x, p, UniformAffineQuantizer(bits)) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize('bits, expected', [(2, (1.494, 1.578, 1.694, 1.870)), (3, (2.051, 2.171, 2.338, 2.589)),
                                            (4, (2.514, 2.669, 2.885, 3.206))])
def test_normal_weights_without_a_zero_level(bits, expected):
    x, grid = normal_quantiles(100_000), NoZeroQuantizer(bits)
    found = [alpha_of(x, p, grid) for p in (2, 2.4, 3, 4)]
    assert found == pytest.approx(expected, abs=0.01) and found == sorted(found)


@pytest.mark.parametrize('bits, expected', [(2, 0.11884), (3, 0.03744), (4, 0.01154)])
def test_least_squared_error_of_normal_weights(bits, expected):
    x, quantizer = normal_quantiles(100_000), NoZeroQuantizer(bits)
    quantizer.set_range(*LpNormObserver(2, refinements=2).range_of(x, quantizer))
    assert (quantizer(x) - x).square().mean().item() == pytest.approx(expected, abs=2e-4)


def test_optimum_scales_with_the_tensor_and_knows_no_order():
    grid, observer = NoZeroQuantizer(3), LpNormObserver(3, refinements=2)
    x = torch.randn(3000, generator=torch.Generator().manual_seed(0))
    x = torch.cat([x, -x])
    high = observer.range_of(x, grid)[1]
    torch.testing.assert_close(observer.range_of(2.5 * x, grid)[1], 2.5 * high, rtol=1e-4, atol=0)
    torch.testing.assert_close(observer.range_of(x.flip(0), grid)[1], high)
    torch.testing.assert_close(observer.range_of(-x, grid)[1], high, rtol=1e-3, atol=0)


@pytest.mark.parametrize('symmetric', [False, True])
def test_refinements_never_hurt(symmetric):
    grid, x = UniformAffineQuantizer(3, symmetric), torch.randn(12, 200, generator=torch.Generator().manual_seed(1))
    errors = [lp_error(x, *LpNormObserver(2.4, refinements=n).range_of(x, grid, 'channel'), grid, 2.4)
              for n in (0, 1, 2)]
    assert (errors[1] <= errors[0] * (1 + 1e-5)).all() and (errors[2] <= errors[1] * (1 + 1e-5)).all()
    assert errors[2].sum() < errors[0].sum()
