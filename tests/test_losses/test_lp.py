import pytest
import torch
from models_for_tests import images

from mmquant.losses import LpLoss


def test_known_numbers():
    """Two images of two channels and one position: sum over channels, mean over images."""
    prediction, target = torch.tensor([[[[1.]], [[2.]]], [[[0.]], [[-1.]]]]), torch.zeros(2, 2, 1, 1)
    assert LpLoss()(prediction, target, 1).item() == pytest.approx((1 + 4 + 0 + 1) / 2)
    assert LpLoss(p=1)(prediction, target, 1).item() == pytest.approx((1 + 2 + 0 + 1) / 2)
    assert LpLoss(p=2.4)(prediction, target, 1).item() == pytest.approx((1 + 2**2.4 + 1) / 2, rel=1e-5)
    assert LpLoss(reduction='mean')(prediction, target, 1).item() == pytest.approx(6 / 4)
    weight = torch.tensor([[[[1.]], [[0.]]], [[[5.]], [[3.]]]])
    assert LpLoss()(prediction, target, 1, weight).item() == pytest.approx((1 + 3) / 2)
    assert LpLoss(p=1)(prediction, target, 1, weight).item() == pytest.approx((1 + 3) / 2)


@pytest.mark.parametrize('p', [1, 2, 2.4, 3])
@pytest.mark.parametrize('shape, dim', [((5, 4, 3, 2), 1), ((5, 6, 4), -1), ((5, 4), 1), ((5, 4), -1)])
def test_equals_the_formula(p, shape, dim):
    prediction, target = images(*shape, seed=1), images(*shape, seed=2)
    expected = (prediction - target).abs().pow(p).sum(dim).mean()
    torch.testing.assert_close(LpLoss(p)(prediction, target, dim), expected)
    ones = torch.ones(shape)
    torch.testing.assert_close(LpLoss(p)(prediction, target, dim, ones), expected)
    torch.testing.assert_close(LpLoss(p, 'mean')(prediction, target, dim), expected / shape[dim])
    fast = prediction.clone().requires_grad_()
    slow = prediction.clone().requires_grad_()
    LpLoss(p)(fast, target, dim).backward()
    (slow - target).abs().pow(p).sum(dim).mean().backward()
    torch.testing.assert_close(fast.grad, slow.grad, rtol=1e-4, atol=1e-6)


def test_channel_axis_matters_by_its_size():
    prediction, target = torch.ones(2, 6, 4), torch.zeros(2, 6, 4)
    assert LpLoss()(prediction, target, -1).item() == 4 and LpLoss()(prediction, target, 1).item() == 6


def test_splitting_the_batch_gives_the_same_mean():
    prediction, target = images(6, 4, 3, 3, seed=1), images(6, 4, 3, 3, seed=2)
    parts = [LpLoss()(prediction[i:i + 2], target[i:i + 2], 1) for i in (0, 2, 4)]
    torch.testing.assert_close(torch.stack(parts).mean(), LpLoss()(prediction, target, 1))


def test_layout_and_half_precision():
    prediction, target = images(4, 8, 5, 5, seed=1), images(4, 8, 5, 5, seed=2)
    expected = LpLoss()(prediction, target, 1)
    last = prediction.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(LpLoss()(last, target, 1), expected)
    half = LpLoss()(prediction.bfloat16(), target, 1)
    assert half.dtype == torch.float32 and half.item() == pytest.approx(expected.item(), rel=0.02)


def test_equal_tensors_have_no_loss_and_no_gradient():
    for p in (1, 2, 2.4):
        x = images(3, 4).requires_grad_()
        loss = LpLoss(p)(x, x.detach().clone(), 1)
        loss.backward()
        assert loss.item() == 0 and (x.grad == 0).all()


def test_fisher_weighted_error():
    prediction, target, weight = images(4, 3, 2, 2, seed=1), images(4, 3, 2, 2, seed=2), images(4, 3, 2, 2, seed=3)**2
    expected = ((prediction - target)**2 * weight).sum(1).mean()
    torch.testing.assert_close(LpLoss()(prediction, target, 1, weight), expected)
    plain = LpLoss()(prediction, target, 1)
    torch.testing.assert_close(LpLoss()(prediction, target, 1, torch.full((4, 3, 2, 2), 7.)), 7 * plain)


def test_wrong_arguments():
    with pytest.raises(ValueError, match='p must be at least 1, got 0.5'):
        LpLoss(p=0.5)
    with pytest.raises(ValueError, match='reduction must be "channel_sum" or "mean", got \'sum\''):
        LpLoss(reduction='sum')
