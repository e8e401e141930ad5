"""Decided weights as int8 codes with one scale a channel, and biases on the grid of the sums."""
import pytest
import torch
from torch import nn

from mmquant.models.integer_weights import NotInteger, integer_weight, leaves_int8
from mmquant.models.layers import own_bias, quantize_layer
from mmquant.models.output_affine import add_output_affine
from mmquant.models.rounded_biases import round_bias
from mmquant.quantizers import APoTQuantizer, NoZeroQuantizer, UniformAffineQuantizer


def layer_with(quantizer, weight, codes=None, scale=None, zero_point=None):
    """A linear layer (out, in) with decided codes."""
    layer = nn.Linear(*reversed(weight.shape))
    layer.weight.data = weight
    quantizer.allocate(weight.shape, 0)
    quantizer.set_range(-weight.abs().amax().expand(quantizer.num_scales), weight.abs().amax().expand(
        quantizer.num_scales))
    if scale is not None:
        quantizer.scale.fill_(scale)
    if zero_point is not None:
        quantizer.zero_point.fill_(zero_point)
    quantizer.set_codes(quantizer.encode(weight) if codes is None else codes)
    quantize_layer(layer, quantizer)
    return layer


def test_low_bits_are_shifted_up():
    """Section 8.2: c = (0, 3, 7, 15), z = 5, s = 0.1 -> (-40, -16, 16, 80), scale 0.0125."""
    layer = layer_with(UniformAffineQuantizer(4, granularity='channel'), torch.ones(1, 4),
                       torch.tensor([[0, 3, 7, 15]], dtype=torch.uint8), 0.1, 5)
    found = integer_weight(layer)
    assert found.codes.tolist() == [[-40, -16, 16, 80]] and found.shift == 3 and found.codes.dtype == torch.int8
    assert found.scale.item() == pytest.approx(0.0125)
    bounded = integer_weight(layer, 63)
    assert bounded.codes.tolist() == [[-20, -8, 8, 40]] and bounded.scale.item() == pytest.approx(0.025)


def test_half_steps_are_exact():
    """Section 8.4: c = -8, s = 0.013 -> -15 * 0.0065 = -0.0975."""
    layer = layer_with(NoZeroQuantizer(4, granularity='channel'), torch.ones(1, 1), torch.tensor([[-8]]), 0.013)
    found = integer_weight(layer)
    assert found.codes.item() * found.scale.item() == pytest.approx(-0.0975)
    assert found.codes.item() == -15 * 2**found.shift


@pytest.mark.parametrize('bits', [2, 3, 4, 6, 7, 8])
@pytest.mark.parametrize('granularity', ['tensor', 'channel'])
def test_values_are_those_of_the_quantizer(bits, granularity):
    torch.manual_seed(bits)
    quantizer = UniformAffineQuantizer(bits, symmetric=bits == 8, granularity=granularity)
    layer = layer_with(quantizer, torch.randn(5, 16))
    found = integer_weight(layer)
    values = found.codes.float() * found.scale[:, None]
    assert torch.equal(values, layer.quantized_weight.detach()) and found.scale.shape == (5, )


def test_a_factor_of_channels_goes_into_the_scales():
    layer = layer_with(UniformAffineQuantizer(4, granularity='tensor'), torch.randn(3, 8))
    add_output_affine(layer)
    layer.adapters[0].scale.copy_(torch.tensor([0.5, 1.0, 3.0]))
    found = integer_weight(layer)
    torch.testing.assert_close(found.codes.float() * found.scale[:, None], layer.quantized_weight, rtol=1e-6, atol=0)


def test_what_no_kernel_takes_is_refused():
    weight = torch.randn(4, 8)
    cases = {'keep_mean': UniformAffineQuantizer(4, granularity='channel', keep_mean=True),
             'group': UniformAffineQuantizer(4, granularity='group', group_size=4),
             'APoTQuantizer': APoTQuantizer(4, granularity='channel')}
    for word, quantizer in cases.items():
        with pytest.raises(NotInteger, match=word):
            integer_weight(layer_with(quantizer, weight))
    affine = layer_with(UniformAffineQuantizer(8, granularity='channel'), weight, scale=0.02, zero_point=10)
    assert leaves_int8(affine)
    with pytest.raises(NotInteger, match='symmetric=True'):
        integer_weight(affine)


def test_bias_becomes_an_integer_of_the_sums():
    """Section 8.5: 0.35 at s_x = 0.05, s_w = 0.02 -> 350."""
    layer = layer_with(UniformAffineQuantizer(8, symmetric=True, granularity='channel'), torch.full((1, 1), 2.54),
                       scale=0.02)
    layer.bias.data.fill_(0.3504)
    change = round_bias(layer, 0.05)
    assert own_bias(layer).item() == pytest.approx(350 * 0.001) and change == pytest.approx(0.0004, rel=1e-3)


def test_a_dead_channel_gets_a_wider_scale():
    """Section 8.5: bias 1, s_x = 0.02, s_w = 1e-8 -> about 4.66e-8, not 2^31 - 1."""
    layer = layer_with(UniformAffineQuantizer(8, symmetric=True, granularity='channel'),
                       torch.tensor([[1e-7, 2e-7], [1.0, -1.0]]))
    layer.weight_quantizer.scale.copy_(torch.tensor([[1e-8], [0.01]]))
    layer.weight_quantizer.set_codes(layer.weight_quantizer.encode(layer._parameters['weight']))
    layer.bias.data.copy_(torch.tensor([1.0, 0.5]))
    round_bias(layer, 0.02)
    found = integer_weight(layer)
    assert found.scale[0].item() == pytest.approx(1 / (2**30 * 0.02), rel=1e-3) and found.scale[1].item() == \
        pytest.approx(0.01)
    assert own_bias(layer).tolist() == pytest.approx([1.0, 0.5], abs=1e-3)
    assert abs(own_bias(layer)[0].item() / (0.02 * found.scale[0].item())) < 2**31
