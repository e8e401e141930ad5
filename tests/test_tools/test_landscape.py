import math
from types import SimpleNamespace

import numpy as np
import pytest
from landscape import chosen_clips, curvature, surface

H = np.array([[4.0, 1.0, 0.0], [1.0, 2.0, -0.5], [0.0, -0.5, 3.0]])
G = np.array([0.3, -0.2, 0.0])


def quadratic(hessian=H, gradient=G):
    def loss(x):
        x = np.array(x)
        return float(1 + gradient @ x + x @ hessian @ x / 2)

    clips = [SimpleNamespace(name=f'c{i}') for i in range(len(hessian))]
    return SimpleNamespace(loss=loss, size=len(hessian), clips=clips)


def test_second_order_picture_of_a_quadratic():
    found = curvature(quadratic(), [0, 1, 2], 0.1)
    assert found.loss == 1 and found.names == ('c0', 'c1', 'c2')
    np.testing.assert_allclose(found.hessian, H, atol=1e-9)
    np.testing.assert_allclose(found.gradient, G, atol=1e-9)
    sign, log_k = found.gaussian
    expected = np.linalg.det(H) / (1 + G @ G)**2.5  # n = 3
    assert sign == 1 and log_k == pytest.approx(math.log10(expected))
    assert found.coupling == pytest.approx(1 - 29 / (29 + 2 * 1.25))


def test_curvature_of_two_variables_is_that_of_the_textbook():
    """z = x^2 + 3 y^2: K = 4 a b / (1 + 4 a^2 x^2 + 4 b^2 y^2)^2."""
    found = curvature(quadratic(np.diag([2.0, 6.0]), np.zeros(2)), [0, 1], 0.05)
    assert 10**found.gaussian[1] == pytest.approx(12) and found.coupling == pytest.approx(0, abs=1e-12)
    saddle = curvature(quadratic(np.diag([2.0, -6.0]), np.zeros(2)), [0, 1], 0.05)
    assert saddle.gaussian[0] == -1


def test_some_clips_only():
    found = curvature(quadratic(), [0, 2], 0.1)
    np.testing.assert_allclose(found.hessian, H[np.ix_([0, 2], [0, 2])], atol=1e-9)
    assert chosen_clips(10, 4) == [0, 3, 6, 9] and chosen_clips(3, 8) == [0, 1, 2] and chosen_clips(5, 1) == [0]


def test_surface_has_the_first_clip_in_rows():
    problem = quadratic()
    for i, j in ((0, 2), (2, 0)):
        axis, values = surface(problem, i, j, 0.5, 3)
        np.testing.assert_allclose(axis, [-0.5, 0, 0.5])
        x = [0.0] * 3
        x[i], x[j] = 0.5, -0.5
        assert values.shape == (3, 3) and values[2, 0] == pytest.approx(problem.loss(x))
