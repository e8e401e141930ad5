from fractions import Fraction

import numpy as np
import pytest
import torch

from mmquant.export.executor.requantize import fixed_point, rescale, rounding_shift, srdhm

ONE = [torch.tensor(1.0)]


@pytest.mark.parametrize('multiplier, whole, exponent', [
    (0.007247427341846, 1992157658, -7), (0.25, 1073741824, -1), (0.5, 1073741824, 0), (1 / 3, 1431655765, -1),
    (1.5, 1610612736, 1), (0.99999999999, 1073741824, 1), (0.025, 1717986918, -5), (0.0, 0, 0), (2.0**-34, 0, 0)])
def test_fixed_point_multipliers(multiplier, whole, exponent):
    assert fixed_point(multiplier) == (whole, exponent)


@pytest.mark.parametrize('multiplier', [-0.5, float('inf'), float('nan')])
def test_multipliers_out_of_range(multiplier):
    with pytest.raises(ValueError, match='must be finite and not negative'):
        fixed_point(multiplier)


def test_both_roundings_at_ties():
    values = torch.tensor([1, -1, 3, -3])
    assert srdhm(values, torch.tensor(2**30)).tolist() == [1, 0, 2, -1]
    assert srdhm(torch.tensor(-2**31), torch.tensor(-2**31)).item() == 2**31 - 1
    values = torch.tensor([1, -1, 3, -3, 5, -5])
    assert rounding_shift(values, torch.tensor(1)).tolist() == [1, -1, 2, -2, 3, -3]


@pytest.mark.parametrize('mode', ['single', 'double', 'exact', 'ort'])
def test_known_products(mode):
    acc = torch.tensor([-1000, -69, -1, 0, 1, 69, 1000, 12345, -12345, 2000000])
    up = [torch.tensor(0.007247427341846, dtype=torch.float64)]
    assert rescale(acc, up, ONE, mode).tolist() == [-7, -1, 0, 0, 0, 1, 7, 89, -89, 14495]


def test_ties_in_every_mode():
    acc, half = torch.tensor([1, 3, 5, -1, -3, -5]), [torch.tensor(0.5)]
    results = {mode: rescale(acc, half, ONE, mode).tolist() for mode in ('ort', 'exact', 'single', 'double')}
    assert results == dict(ort=[0, 2, 2, 0, -2, -2], exact=[0, 2, 2, 0, -2, -2], single=[1, 2, 3, 0, -1, -2],
                           double=[1, 2, 3, 0, -1, -2])  # SRDHM by 2^30 has the tie of -1 go up, too


def test_exact_is_the_rational_number():
    """Scales whose quotient has ties that float64 cannot see: 0.1f / 0.3f is no third."""
    generator = torch.Generator().manual_seed(0)
    acc = torch.randint(-5000, 5000, (300, ), generator=generator)
    for up, down in (((0.1, 0.2), (0.3, )), ((0.5, 0.25), (1.0, )), ((0.06, 0.5), (0.12, )), ((0.02, 1.0), (0.04, ))):
        up, down = [[torch.tensor(v) for v in part] for part in (up, down)]
        ratio = Fraction(up[0].item()) * Fraction(up[1].item()) / Fraction(down[0].item())
        expected = [round(a * ratio) for a in acc.tolist()]
        assert rescale(acc, up, down, 'exact').tolist() == expected


def test_the_tie_that_float64_rounds_to():
    """a s_x s_w / s_y is a hair below 0.5: 1 - 2^-24 over 2, times a, comes to a tie in float32 only."""
    below = [torch.tensor(np.nextafter(np.float32(0.5), np.float32(0)))]
    acc = torch.tensor([2**22 + 1])
    real = Fraction(below[0].item()) * (2**22 + 1)
    assert rescale(acc, below, ONE, 'exact').item() == round(real) == 2**21
    assert rescale(torch.tensor([3]), below, ONE, 'exact').item() == 1  # a tie would become 2
    assert rescale(torch.tensor([3]), [torch.tensor(0.5)], ONE, 'exact').item() == 2


def test_factors_by_channel():
    acc = torch.tensor([[8850, 8850], [-4190, -4190]])
    up = [torch.tensor(0.05), torch.tensor([[0.02], [0.04]])]
    for mode in ('ort', 'exact', 'single', 'double'):
        assert rescale(acc, up, [torch.tensor(0.04)], mode).tolist() == [[221, 221], [-210, -210]], mode


def test_modes_differ_by_one_at_most_and_how_often():
    """Shares of section 3.2 of the scheme, accumulators in +-2^20: M = 0.11 about 6.6 and 0.5 %."""
    acc = torch.randint(-2**20, 2**20, (100000, ), generator=torch.Generator().manual_seed(0))
    up = [torch.tensor(0.11)]
    exact = rescale(acc, up, ONE, 'exact')
    shares = {}
    for mode in ('ort', 'single', 'double'):
        gap = (rescale(acc, up, ONE, mode) - exact).abs()
        assert gap.max() <= 1
        shares[mode] = gap.float().mean().item()
    assert shares['single'] < 0.01 < shares['double'] < 0.1


def test_unknown_mode():
    with pytest.raises(ValueError, match="requantize must be one of .*got 'float'"):
        rescale(torch.tensor([1]), ONE, ONE, 'float')
