import pytest
import torch
from models_for_tests import images

from mmquant.reconstruction import ElementMix
from mmquant.registry import MIXERS
from mmquant.utils.building import ConfigError, build
from mmquant.utils.contexts import seeded


@pytest.mark.parametrize('p', [0.1, 0.5, 0.9])
def test_every_element_is_one_of_the_two(p):
    quant, exact = images(40, 50, seed=1), images(40, 50, seed=2)
    with seeded(0, torch.device('cpu')):
        first, second = ElementMix(p)(quant, exact), ElementMix(p)(quant, exact)
    taken = first == quant
    assert torch.equal(first, torch.where(taken, quant, exact))
    assert taken.float().mean().item() == pytest.approx(p, abs=4 * (p * (1 - p) / 2000)**0.5)
    again = (second == quant).float()
    assert not torch.equal(taken.float(), again)
    correlation = torch.corrcoef(torch.stack([taken.float().flatten(), again.flatten()]))[0, 1]
    assert correlation.abs() < 0.1  # a new mask in each step


def test_mean_of_many_masks():
    quant, exact, mix = torch.ones(4), torch.zeros(4), ElementMix(0.3)
    with seeded(1, torch.device('cpu')):
        mean = torch.stack([mix(quant, exact) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, torch.full((4, ), 0.3), rtol=0, atol=0.03)


def test_ends_need_no_mask():
    quant, exact = images(3, 4, seed=1), images(3, 4, seed=2)
    state = torch.get_rng_state()
    assert ElementMix(1)(quant, exact) is quant and ElementMix(0)(quant, exact) is exact
    assert torch.equal(state, torch.get_rng_state())


def test_gradients_reach_what_was_taken():
    quant, exact = images(5, 5, seed=1).requires_grad_(), images(5, 5, seed=2).requires_grad_()
    mixed = ElementMix(0.5)(quant, exact)
    mixed.sum().backward()
    assert torch.equal(quant.grad + exact.grad, torch.ones(5, 5)) and 0 < quant.grad.sum() < 25


def test_seeded_leaves_the_global_state():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with seeded(0, torch.device('cpu')):
        a = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with seeded(0, torch.device('cpu')):
        assert torch.equal(torch.rand(3), a)


@pytest.mark.parametrize('wrong', [-0.1, 1.1])
def test_wrong_probability(wrong):
    with pytest.raises(ConfigError, match='quant_prob must be between 0 and 1'):
        build(MIXERS, dict(type='mmquant.ElementMix', quant_prob=wrong), 'mix')
