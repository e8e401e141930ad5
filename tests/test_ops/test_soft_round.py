import math

import pytest
import torch

from mmquant.ops import rectified_sigmoid, regularized_soft_weight, rounding_regularizer, soft_weight


def logit(h):
    """v with h(v) = h."""
    h = torch.as_tensor(h, dtype=torch.float64)
    return -torch.log(1.2 / (h + 0.1) - 1)


def reference_weight(v, base, scale, zero_point, q_min, q_max):
    h = rectified_sigmoid(v)
    return scale * ((base + h + zero_point).clamp(q_min, q_max) - zero_point)


def test_saturation_points():
    end = math.log(11)
    v = torch.tensor([-9., -end - 1e-3, -end + 1e-3, 0, end - 1e-3, end + 1e-3, 9.])
    h = rectified_sigmoid(v)
    assert h[[0, 1]].tolist() == [0, 0] and h[[5, 6]].tolist() == [1, 1] and h[3] == 0.5
    assert 0 < h[2] < 1e-3 and 1 - 1e-3 < h[4] < 1
    assert (h.diff() >= 0).all()


@pytest.mark.parametrize('shape, scale_shape', [((6, 5), (6, 1)), ((6, 5), ()), ((10, 100, 3, 30), (10, 1, 1, 1)),
                                                ((10, 100, 90), ())])
def test_soft_weight_against_autograd(shape, scale_shape):
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(shape, generator=generator, dtype=torch.float64).mul_(2).requires_grad_()
    base = torch.randint(-6, 5, shape, generator=generator).double()
    scale = torch.rand(scale_shape, generator=generator, dtype=torch.float64) + 0.1
    zero_point = torch.full(scale_shape, 3., dtype=torch.float64)
    mine, theirs = (f(v, base, scale, zero_point, 0, 7) for f in (soft_weight, reference_weight))
    torch.testing.assert_close(mine, theirs)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(*(torch.autograd.grad((w * weight).sum(), v)[0] for w in (mine, theirs)))


def test_soft_weight_gradient_is_zero_where_saturated_or_clipped():
    v = torch.tensor([-3., 3., 0.5, 0.5, 0.5], requires_grad=True)
    base = torch.tensor([1., 1., 1., 3., -1.])
    soft_weight(v, base, torch.tensor(1.), torch.tensor(0.), 0, 3).sum().backward()
    assert v.grad[[0, 1, 3, 4]].tolist() == [0, 0, 0, 0] and v.grad[2] > 0


def test_soft_weight_without_gradient():
    v, base = torch.randn(4, 4), torch.zeros(4, 4)
    scale, zero_point = torch.tensor(0.5), torch.tensor(1.)
    out = soft_weight(v, base, scale, zero_point, 0, 3)
    assert not out.requires_grad
    torch.testing.assert_close(out, reference_weight(v, base, scale, zero_point, 0, 3))


@pytest.mark.parametrize('h, beta, expected', [(0.1, 2, 0.36), (0.1, 20, 0.9885), (0.5, 2, 1), (0.5, 20, 1),
                                               (0.0, 5, 0), (1.0, 5, 0)])
def test_known_regularizer_values(h, beta, expected):
    v = {0.0: torch.tensor(-5.), 1.0: torch.tensor(5.)}.get(h, logit(h))
    assert rounding_regularizer(v, beta).item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize('beta, expected', [(20, 0.952), (2, 0.667)])
def test_mean_for_uniform_h(beta, expected):
    v = logit(torch.linspace(1e-4, 1 - 1e-4, 100001)).float()
    mean = rounding_regularizer(v, beta).item() / v.numel()
    assert mean == pytest.approx(beta / (beta + 1), abs=1e-3)
    assert mean == pytest.approx(expected, abs=1e-3)


def test_regularizer_is_exact_at_its_ends():
    assert rounding_regularizer(torch.randn(300, 300).sign() * 3, 7.3).item() == 0
    assert rounding_regularizer(torch.zeros(300, 300), 7.3).item() == 90000


def test_regularizer_falls_with_distance_from_one_half_and_with_smaller_beta():
    values = [rounding_regularizer(logit(h), 4).item() for h in (0.5, 0.6, 0.7, 0.8, 0.9, 0.99)]
    assert values == sorted(values, reverse=True)
    values = [rounding_regularizer(logit(0.2), beta).item() for beta in (20, 10, 5, 2)]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize('beta', [1, 2, 2.5, 11, 20])
def test_regularizer_gradient_against_autograd(beta):
    v = torch.randn(200, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    reference = (1 - (2 * rectified_sigmoid(v) - 1).abs()**beta).sum()
    mine = rounding_regularizer(v, beta)
    torch.testing.assert_close(mine, reference)
    torch.testing.assert_close(*(torch.autograd.grad(3 * value, v)[0] for value in (mine, reference)))


def test_regularizer_gradient_is_exactly_zero_where_saturated():
    end = math.log(11)
    v = torch.cat([torch.linspace(-9, -end - 1e-5, 500), torch.linspace(end + 1e-5, 9, 500)])
    for beta in (1, 2, 20):
        v = v.detach().requires_grad_()
        rounding_regularizer(v, beta).backward()
        saturated = (rectified_sigmoid(v) == 0) | (rectified_sigmoid(v) == 1)
        assert saturated.sum() >= 990 and v.grad[saturated].abs().max() == 0


def test_beta_below_one_is_refused():
    with pytest.raises(ValueError, match='beta=0.5 is not supported: the regularizer needs an exponent >= 1'):
        rounding_regularizer(torch.zeros(3), 0.5)


@pytest.mark.parametrize('shape, scale_shape', [((6, 5), (6, 1)), ((6, 5), ()), ((20, 100, 3, 3), (20, 1, 1, 1)),
                                                ((12, 6), (6, )), ((0, 3), ())])
@pytest.mark.parametrize('beta', [1.0, 2.0, 11.5, torch.tensor(3.0)])
def test_both_at_once_is_the_same(shape, scale_shape, beta):
    torch.manual_seed(1)
    v = (torch.randn(shape) * 2).requires_grad_()
    base = torch.randint(-6, 5, shape).float()
    scale, zero_point = torch.rand(scale_shape) + 0.1, torch.full(scale_shape, 3.)
    direction = torch.randn(shape)
    results = []
    for both in (True, False):
        if both:
            weight, penalty = regularized_soft_weight(v, base, scale, zero_point, 0, 7, beta)
        else:
            weight = soft_weight(v, base, scale, zero_point, 0, 7)
            penalty = rounding_regularizer(v, beta)
        grad, = torch.autograd.grad((weight * direction).sum() + 0.3 * penalty, v)
        results.append((weight.detach(), penalty.detach(), grad))
    for mine, theirs in zip(*results):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_both_at_once_checks_the_exponent():
    with pytest.raises(ValueError, match='exponent >= 1'):
        regularized_soft_weight(torch.zeros(2, requires_grad=True), torch.zeros(2), torch.tensor(1.), torch.tensor(0.),
                                0, 3, 0.5)


def test_under_autocast_the_weight_is_the_bfloat16_of_the_float32_one():
    torch.manual_seed(0)
    v0, base = torch.randn(6, 50, 3, 3) * 3, torch.randint(-3, 3, (6, 50, 3, 3)).float()
    scale, zero_point = torch.rand(6, 1, 1, 1) + 0.1, torch.randint(0, 4, (6, 1, 1, 1)).float()
    found = []
    for amp in (False, True):
        v = v0.clone().requires_grad_()
        with torch.autocast('cpu', torch.bfloat16, enabled=amp):
            weight, penalty = regularized_soft_weight(v, base, scale, zero_point, 0, 3, 7.3)
        (weight.float().square().sum() + 0.1 * penalty).backward()
        found.append((weight.detach(), penalty.detach(), v.grad))
    (exact, penalty, grad), (half, same, near) = found
    assert torch.equal(half, exact.bfloat16()) and torch.equal(same, penalty)
    torch.testing.assert_close(near, grad, rtol=0.02, atol=0.02)
