import pytest
import torch

from mmquant.ops import clamp, pieces, power_

SHAPE = (5, 16, 40, 40)  # five rows of 25600: several blocks


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('small_shape', [(), (1, 1, 1, 1), (5, 1, 1, 1), (1, 16, 1, 1), SHAPE])
def test_pieces_cover_everything_once(memory_format, small_shape):
    x = torch.randn(SHAPE).contiguous(memory_format=memory_format)
    scale, out = torch.rand(small_shape), torch.zeros_like(x)
    parts = list(pieces((x, None, out), (scale, )))
    assert len(parts) > 1
    for x_part, nothing, out_part, scale_part in parts:
        assert nothing is None
        out_part.add_(x_part * scale_part)
    assert torch.equal(out, x * scale)


def test_tensors_of_different_memory_order():
    x = torch.randn(SHAPE)
    out = torch.zeros(SHAPE).contiguous(memory_format=torch.channels_last)
    for x_part, out_part in pieces((x, out), ()):
        out_part.add_(x_part)
    assert torch.equal(out, x)


@pytest.mark.parametrize('shape', [(), (0, ), (3, 4)])
def test_small_tensors_stay_whole(shape):
    assert len(list(pieces((torch.ones(shape), ), ()))) == 1


@pytest.mark.parametrize('shape', [(), (6, 1)])
def test_clamp(shape):
    x, low, high = torch.randn(6, 50), -torch.rand(shape), torch.rand(shape)
    expected = torch.clamp(x, low, high)
    assert torch.equal(clamp(x, low, high), expected)
    assert torch.equal(clamp(x, low, high, out=x), expected) and torch.equal(x, expected)


@pytest.mark.parametrize('exponent', [0, 0.5, 1, 2, 2.4, 19])
def test_power(exponent):
    x = torch.cat([torch.rand(1000) * 0.98 + 0.02, torch.tensor([0., 1., 30.])])  # no power is subnormal
    torch.testing.assert_close(power_(x.clone(), exponent), x**exponent, rtol=1e-5, atol=0)
    assert power_(torch.ones(3), exponent).tolist() == [1, 1, 1]
