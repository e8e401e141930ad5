import pytest
import torch

from mmquant.ops import dequantize, fake_quantize, quantize


def reference(x, scale, zero_point, q_min, q_max):
    """The formula, with a straight-through round, differentiated by autograd."""
    steps = x / scale
    rounded = steps + (steps.round() - steps).detach()
    return scale * ((rounded + zero_point).clamp(q_min, q_max) - zero_point)


def test_known_lsq_gradients():
    # Unsigned 4 bits, scale 0.3: the published example of the LSQ gradient.
    x = torch.tensor([0.1, 0.44, 0.46, 5.0, -1.0])
    expected = torch.tensor([-0.3333, -0.4667, 0.4667, 15, 0])
    for i in range(5):
        scale = torch.tensor(0.3, requires_grad=True)
        fake_quantize(x, scale, torch.tensor(0.), 0, 15)[i].backward()
        torch.testing.assert_close(scale.grad, expected[i], atol=1e-4, rtol=0)
    x.requires_grad_()
    fake_quantize(x, torch.tensor(0.3), torch.tensor(0.), 0, 15).sum().backward()
    assert x.grad.tolist() == [1, 1, 1, 0, 0]


@pytest.mark.parametrize('x_shape, scale_shape', [((8, 6, 3, 3), ()), ((8, 6, 3, 3), (8, 1, 1, 1)),
                                                  ((4, 7, 6), (1, 1, 6)), ((9, 70, 80), (1, 1, 1)),
                                                  ((9, 70, 80), (9, 1, 1)), ((9, 70, 80), (1, 70, 1))])
def test_gradients_against_autograd(x_shape, scale_shape):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(x_shape, generator=generator, dtype=torch.float64, requires_grad=True)
    scale = torch.rand(scale_shape, generator=generator, dtype=torch.float64).add_(0.1).requires_grad_()
    zero_point = torch.full(scale_shape, 3., dtype=torch.float64, requires_grad=True)
    weight = torch.randn(x_shape, generator=generator, dtype=torch.float64)
    args = (x, scale, zero_point, 0, 7)
    expected = reference(x, scale, zero_point.detach(), 0, 7)
    torch.testing.assert_close(fake_quantize(*args), expected)
    got = torch.autograd.grad((fake_quantize(*args) * weight).sum(), (x, scale))
    for mine, theirs in zip(got, torch.autograd.grad((expected * weight).sum(), (x, scale)), strict=True):
        torch.testing.assert_close(mine, theirs)
    fake_quantize(*args).sum().backward()
    assert zero_point.grad is None


def test_no_gradient_path_gives_the_same_values():
    x, scale = torch.randn(40, 50, 60), torch.tensor(0.1)
    plain = fake_quantize(x, scale, torch.tensor(8.), 0, 15)
    assert not plain.requires_grad
    assert torch.equal(plain, fake_quantize(x.requires_grad_(), scale.requires_grad_(), torch.tensor(8.), 0, 15))
    with torch.no_grad():
        assert torch.equal(plain, fake_quantize(x, scale, torch.tensor(8.), 0, 15))


def test_input_is_not_modified():
    x = torch.randn(40, 50, 60)
    before = x.clone()
    fake_quantize(x, torch.tensor(0.1), torch.tensor(8.), 0, 15)
    quantize(x, torch.tensor(0.1), torch.tensor(8.), 0, 15)
    assert torch.equal(x, before)


def test_codes_and_values_agree():
    x, scale, zero_point = torch.randn(8, 9), torch.rand(8, 1) + 0.05, torch.arange(8.).reshape(8, 1)
    codes = quantize(x, scale, zero_point, 0, 15)
    assert codes.min() >= 0 and codes.max() <= 15 and torch.equal(codes, codes.round())
    torch.testing.assert_close(dequantize(codes, scale, zero_point), fake_quantize(x, scale, zero_point, 0, 15))


@pytest.mark.parametrize('requires_grad', [False, True])
@pytest.mark.parametrize('shape', [(2, 4, 5, 5), (4, 16, 40, 40)])
def test_channels_last_is_preserved(shape, requires_grad):
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last).requires_grad_(requires_grad)
    out = fake_quantize(x, torch.tensor(0.2), torch.tensor(4.), 0, 7)
    assert out.is_contiguous(memory_format=torch.channels_last)
    expected = fake_quantize(x.detach().contiguous(), torch.tensor(0.2), torch.tensor(4.), 0, 7)
    assert torch.equal(out, expected)
    if requires_grad:
        out.sum().backward()
        assert x.grad.is_contiguous(memory_format=torch.channels_last)


def test_channels_last_scale_gradient():
    x, weight = torch.randn(4, 16, 40, 40), torch.randn(4, 16, 40, 40)
    grads = []
    for value in (x, x.contiguous(memory_format=torch.channels_last)):
        scale = torch.tensor(0.2, requires_grad=True)
        (fake_quantize(value, scale, torch.tensor(4.), 0, 7) * weight).sum().backward()
        grads.append(scale.grad)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_input_is_quantized_in_float32(dtype):
    x = (torch.randn(33, 7, 200) * 3).to(dtype).requires_grad_()
    scale = torch.tensor(0.013, requires_grad=True)
    out = fake_quantize(x, scale, torch.tensor(128.), 0, 255)
    assert out.dtype == dtype
    assert torch.equal(out, fake_quantize(x.detach().float(), scale.detach(), torch.tensor(128.), 0, 255).to(dtype))
    out.float().sum().backward()
    assert x.grad.dtype == dtype and scale.grad.dtype == torch.float32


def test_sixteen_bits_are_exact():
    codes = torch.arange(65536.)
    scale, zero_point = torch.tensor(1e-3), torch.tensor(30000.)
    assert torch.equal(quantize(dequantize(codes, scale, zero_point), scale, zero_point, 0, 65535), codes)
