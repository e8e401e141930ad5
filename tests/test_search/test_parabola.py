import math

import pytest

from mmquant.search import fit_parabola

PS = [2, 2.5, 3, 3.5, 4]


def test_convex_samples_give_the_vertex():
    fit = fit_parabola(PS, [0.5 * (p - 2.8)**2 + 1.5 for p in PS])
    assert fit.branch == 'vertex' and fit.vertex == pytest.approx(2.8)
    assert fit.coefficients == pytest.approx((0.5, -2.8, 0.5 * 2.8**2 + 1.5))


@pytest.mark.parametrize('losses, branch', [
    ([1 - (p - 3)**2 for p in PS], 'concave'), ([(p - 4.5)**2 for p in PS], 'outside'),
    ([(p - 1.9)**2 for p in PS], 'outside'), ([-math.exp(p) for p in PS], 'concave'),
])
def test_other_samples_do_not(losses, branch):
    fit = fit_parabola(PS, losses)
    assert (fit.branch, fit.vertex) == (branch, None) and fit.coefficients is not None


def test_three_different_finite_samples_are_needed():
    for ps, losses in (([2, 3], [1, 2]), ([2, 2, 3, 3], [1, 1, 2, 2]), ([2, 3, 4], [1, math.nan, 2]), ([], [])):
        fit = fit_parabola(ps, losses)
        assert (fit.branch, fit.vertex, fit.coefficients) == ('too few values', None, None)
    assert fit_parabola([2, 3, 4, 5], [1, 0, math.inf, 4]).branch == 'vertex'
