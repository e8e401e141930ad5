import copy

import pytest
import torch

from mmquant.quantizers import NoZeroQuantizer
from mmquant.registry import QUANTIZERS


def quantizer_of(bits=2, alpha=1.5, **more):
    quantizer = NoZeroQuantizer(bits, **more)
    quantizer.set_range(torch.tensor(-alpha), torch.tensor(alpha))
    return quantizer


def test_two_bits_by_hand():
    """Levels -1.5, -0.5, 0.5, 1.5."""
    x = torch.tensor([-9., -1.1, -0.9, -0.1, 0.1, 0.9, 1.1, 9.])
    assert quantizer_of()(x).tolist() == [-1.5, -1.5, -0.5, -0.5, 0.5, 0.5, 1.5, 1.5]
    assert quantizer_of()(torch.zeros(3)).abs().tolist() == [0.5] * 3
    assert NoZeroQuantizer is QUANTIZERS.get('mmquant.NoZeroQuantizer')


def test_scales_of_a_range():
    quantizer = NoZeroQuantizer(2, granularity='channel')
    quantizer.allocate((2, 1))
    quantizer.set_range(torch.tensor([-3., 0.]), torch.tensor([1., 6.]))
    assert quantizer.scale.flatten().tolist() == [2, 4] and not quantizer.zero_point.any()


@pytest.mark.parametrize('bits', [2, 3, 4, 8])
def test_properties(bits):
    x = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    quantizer = quantizer_of(bits, 2.0)
    out = quantizer(x)
    scale = 4.0 / (2**bits - 1)
    inside = x.abs() <= 2.0
    assert out.unique().numel() <= 2**bits and out.abs().min() == pytest.approx(scale / 2, rel=1e-5)
    assert ((out - x)[inside].abs() <= scale / 2 * 1.0001).all()
    assert out[~inside].abs().min() == pytest.approx(2.0, rel=1e-5)
    torch.testing.assert_close(quantizer(out), out, atol=1e-6, rtol=0)
    order = x.argsort()
    assert (out[order].diff() >= 0).all()
    torch.testing.assert_close(quantizer.decode(quantizer.encode(x)), out, atol=1e-6, rtol=0)


def test_gradient_of_the_scale():
    """x = 0.9 rounds to 0.5 s with s = 1: d/ds [s * 0.5] by finite differences of the smooth part; clipped: 1.5."""
    quantizer = quantizer_of()
    quantizer.scale.requires_grad_(True)
    for x, expected in ((9.0, 1.5), (-9.0, -1.5), (0.9, 0.5 - 0.9), (1.2, 1.5 - 1.2)):
        grad, = torch.autograd.grad(quantizer(torch.tensor([x])).sum(), quantizer.scale)
        assert grad.item() == pytest.approx(expected, abs=1e-6)


def test_round_trip_through_a_state_dict():
    x = torch.randn(4, 3, 2, 2)
    quantizer = NoZeroQuantizer(3, granularity='channel')
    quantizer.allocate(x.shape)
    quantizer.set_range(x.flatten(1).amin(1), x.flatten(1).amax(1))
    other = NoZeroQuantizer(8, granularity='channel')
    other.load_state_dict(copy.deepcopy(quantizer.state_dict()))
    assert torch.equal(other(x), quantizer(x)) and other.grid == quantizer.grid
