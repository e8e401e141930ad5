import copy

import pytest
import torch
from models_for_tests import ResNet, calibrated, images, randomize
from torch import nn

from mmquant.models.layers import (
    Adapter,
    QuantizedLayer,
    channel_axis,
    enabled,
    fixed_weights,
    mixed_class,
    own_bias,
    quantize_layer,
    quantize_output,
    use_channels_last,
)
from mmquant.models.old_plans import convert_state
from mmquant.models.output_affine import OutputAffine, add_output_affine, output_affine_of
from mmquant.models.plan import Plan
from mmquant.observers import MinMaxObserver
from mmquant.quantizers import UniformAffineQuantizer


def weight_quantizer(layer, bits=4):
    quantizer = UniformAffineQuantizer(bits, granularity='channel', channel_axis=channel_axis(layer))
    quantizer.allocate(layer.weight.shape)
    quantizer.set_range(*MinMaxObserver().range_of(layer.weight.detach(), quantizer, quantizer.granularity))
    return quantizer


def input_quantizer(x, bits=4):
    quantizer = UniformAffineQuantizer(bits)
    quantizer.set_range(*MinMaxObserver().range_of(x, quantizer, 'tensor'))
    return quantizer


LAYERS = dict(conv=(lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (2, 4, 5, 5)),
              conv1d=(lambda: nn.Conv1d(4, 6, 3), (2, 4, 5)), linear=(lambda: nn.Linear(4, 6), (2, 3, 4)),
              transposed=(lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
              transposed3d=(lambda: nn.ConvTranspose3d(4, 6, 2, groups=2), (2, 4, 3, 2, 3)))


@torch.no_grad()
@pytest.mark.parametrize('kind', LAYERS)
def test_equals_the_float_layer_with_quantized_weight_and_input(kind):
    make, shape = LAYERS[kind]
    layer, x = make(), images(*shape)
    twin = copy.deepcopy(layer)
    quantize_layer(layer, weight_quantizer(layer), input_quantizer(x))
    twin.weight.copy_(layer.weight_quantizer(twin.weight))
    assert torch.equal(layer(x), twin(layer.input_quantizer(x)))
    assert not torch.equal(layer(x), twin(x))


@torch.no_grad()
def test_switched_off_is_bit_identical_to_the_float_layer():
    layer, x = nn.Conv2d(3, 4, 3), images(2, 3, 5, 5)
    before = layer(x)
    quantize_layer(layer, weight_quantizer(layer), input_quantizer(x))
    with enabled([layer.weight_quantizer, layer.input_quantizer], False):
        assert torch.equal(layer(x), before)
    assert layer.weight_quantizer.enabled and not torch.equal(layer(x), before)


def test_it_stays_what_it_was():
    layer = nn.Conv2d(3, 4, 3)
    weight, keys = layer.weight, set(layer.state_dict())
    quantize_layer(layer, weight_quantizer(layer))
    assert isinstance(layer, nn.Conv2d) and type(layer).__name__ == 'QuantizedConv2d'
    cls = mixed_class(QuantizedLayer, nn.Conv2d)
    assert type(layer) is cls and mixed_class(QuantizedLayer, nn.Conv2d) is cls
    assert layer.weight is weight and dict(layer.named_parameters())['weight'] is weight
    assert {k for k in layer.state_dict() if 'quantizer' not in k} == keys
    assert layer.kernel_size == (3, 3) and 'Conv2d' in repr(layer)


@torch.no_grad()
def test_forward_of_a_padding_subclass_is_kept():
    bricks = pytest.importorskip('mmcv.cnn.bricks')
    layer, x = bricks.Conv2dAdaptivePadding(3, 4, 3, stride=2), images(2, 3, 8, 8)
    assert layer(x).shape == (2, 4, 4, 4) and nn.Conv2d(3, 4, 3, 2)(x).shape == (2, 4, 3, 3)
    twin = copy.deepcopy(layer)
    quantize_layer(layer, weight_quantizer(layer))
    twin.weight.copy_(layer.weight_quantizer(twin.weight))
    assert isinstance(layer, bricks.Conv2dAdaptivePadding) and torch.equal(layer(x), twin(x))
    assert layer(x).shape == (2, 4, 4, 4)


@torch.no_grad()
def test_weight_standardisation_sees_the_quantized_weight():
    bricks = pytest.importorskip('mmcv.cnn.bricks')
    layer, x = bricks.ConvWS2d(3, 4, 3), images(2, 3, 8, 8)
    twin = copy.deepcopy(layer)
    quantize_layer(layer, weight_quantizer(layer, bits=2))
    twin.weight.copy_(layer.weight_quantizer(twin.weight))
    assert torch.equal(layer(x), twin(x))


def test_state_dict_round_trip_through_a_fresh_layer():
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 4, 3), images(2, 3, 5, 5)
    quantize_layer(layer, weight_quantizer(layer), input_quantizer(x))
    layer.weight_quantizer.set_codes(15 - layer.weight_quantizer.encode(layer.weight))
    fresh = nn.Conv2d(3, 4, 3)
    quantize_layer(fresh, UniformAffineQuantizer(granularity='channel'), UniformAffineQuantizer())
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x), layer(x))


class LowRank(Adapter):
    """W = A + Q(W - A)."""

    def __init__(self, weight):
        super().__init__()
        u, s, v = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        self.register_buffer('part', ((u[:, :1] * s[:1]) @ v[:1]).view_as(weight))

    def before(self, weight):
        return weight - self.part

    def after(self, weight):
        return weight + self.part

    def trainables(self):
        return {'low_rank': [self.part]}


@torch.no_grad()
def test_adapters_around_the_weight_quantizer_and_a_bias_of_quantized_mode():
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 4, 3), images(2, 3, 5, 5)
    float_output = layer(x)
    quantize_layer(layer, weight_quantizer(layer, bits=8))
    nearest = layer(x)
    layer.adapters.append(LowRank(layer.weight))
    layer.adapters.append(OutputAffine(layer.weight))
    layer.adapters[1].start(torch.tensor([0.5, 1.0, 2.0, 4.0]))
    own_bias(layer).add_(1)
    layer.weight_quantizer.fit(layer.quantized_tensor, MinMaxObserver())
    rest = (layer.weight - layer.adapters[0].part) / torch.tensor([0.5, 1.0, 2.0, 4.0]).view(4, 1, 1, 1)
    torch.testing.assert_close(layer.quantized_tensor, rest)
    torch.testing.assert_close(layer(x), float_output + 1, atol=0.02, rtol=0)
    assert not torch.equal(layer(x), nearest + 1) and layer.bias is layer._parameters['bias']
    assert [list(slot.trainables()) for slot in layer.slots] == [['low_rank'], ['affine'], ['bias']]
    assert layer.slots[2].state()[0] is layer.quantized_bias and layer.adapters[0].stored_bits() == 32 * 108
    assert layer.adapters[1].stored_bits() == 32 * 4
    with enabled([layer.weight_quantizer], False):
        assert torch.equal(layer(x), float_output)


@torch.no_grad()
def test_factors_and_biases_of_older_checkpoints():
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 4, 3), images(2, 3, 5, 5)
    quantize_layer(layer, weight_quantizer(layer))
    add_output_affine(layer)
    output_affine_of(layer).scale.mul_(2)
    layer.quantized_bias.add_(1)
    old = {'adapters.0.scale': 'output_affine.scale', 'adapters.0.initial_scale': 'output_affine.initial_scale',
           'quantized_bias': 'output_affine.bias'}
    fresh = nn.Conv2d(3, 4, 3)
    quantize_layer(fresh, UniformAffineQuantizer(granularity='channel'))
    add_output_affine(fresh)
    state = {f'conv.{old.get(k, k)}': v for k, v in layer.state_dict().items()}
    convert_state(state, Plan())
    fresh.load_state_dict({k.removeprefix('conv.'): v for k, v in state.items()})
    assert torch.equal(fresh(x), layer(x))
    plain = nn.Conv2d(3, 4, 3)
    quantize_layer(plain, weight_quantizer(plain))
    fresh.load_state_dict(plain.state_dict(), strict=False)
    assert fresh.quantized_bias is None


def test_deepcopy_is_independent():
    layer, x = nn.Conv2d(3, 4, 3), images(2, 3, 5, 5)
    quantize_layer(layer, weight_quantizer(layer), input_quantizer(x))
    twin, before = copy.deepcopy(layer), layer(x)
    assert type(twin) is type(layer) and torch.equal(twin(x), before)
    twin.weight_quantizer.set_bits(2)
    with torch.no_grad():
        twin.bias.add_(1)
    assert torch.equal(layer(x), before) and layer.weight_quantizer.bits == 4


def test_deepcopy_of_a_model_keeps_shared_quantizers_and_output_hooks():
    model, x = calibrated(randomize(ResNet()), images(4, 3, 8, 8)).model, images(4, 3, 8, 8)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        before = model(x)
        assert torch.equal(twin(x), before)
        twin.architecture.maxpool.output_quantizer.set_range(torch.tensor(0.), torch.tensor(0.1))
        assert not torch.equal(twin(x), before) and torch.equal(model(x), before)
    assert len(twin.activation_quantizers()) == len(model.activation_quantizers())


def test_gradient_reaches_the_scales_but_only_while_running():
    layer, x = nn.Linear(3, 4), images(5, 3)
    quantize_layer(layer, weight_quantizer(layer), input_quantizer(x))
    layer.requires_grad_(False)
    layer.input_quantizer.scale.requires_grad_(True)
    layer(x).square().sum().backward()
    assert layer.input_quantizer.scale.grad.abs() > 0 and layer.weight is layer._parameters['weight']


def test_weight_is_float_again_after_an_error():
    layer = nn.Conv2d(3, 4, 3)
    quantize_layer(layer, weight_quantizer(layer))
    with pytest.raises(RuntimeError):
        layer(images(2, 5, 5, 5))
    assert layer.weight is layer._parameters['weight']


@torch.no_grad()
def test_output_quantizer():
    module, x = nn.ReLU(), images(3, 4)
    quantizer = input_quantizer(x.relu(), bits=2)
    quantize_output(module, quantizer)
    assert torch.equal(module(x), quantizer(x.relu())) and module(x).unique().numel() <= 4
    with enabled([quantizer], False):
        assert torch.equal(module(x), x.relu())


@torch.no_grad()
def test_fixed_weights_are_computed_once():
    layer, x = nn.Conv2d(3, 4, 3), images(2, 3, 5, 5)
    quantize_layer(layer, weight_quantizer(layer))
    expected, runs = layer(x), []
    layer.weight_quantizer.register_forward_hook(lambda *args: runs.append(1))
    with fixed_weights([layer]):
        assert torch.equal(layer(x), expected) and torch.equal(layer(x), expected)
    assert len(runs) == 1 and layer.weight is layer._parameters['weight'] and layer.weight_quantizer.enabled
    with enabled([layer.weight_quantizer], False), fixed_weights([layer]):
        assert layer.weight is layer._parameters['weight']
    assert len(runs) == 1


def test_enabled_restores_each_state_after_an_error():
    a, b = UniformAffineQuantizer(), UniformAffineQuantizer()
    b.enabled = False
    with pytest.raises(KeyError):
        with enabled([a, b], True):
            assert a.enabled and b.enabled
            raise KeyError
    assert a.enabled and not b.enabled


def test_layer_whose_weight_is_made_in_each_pass_is_passed_over_with_a_reason():
    """Spectral and weight normalisation: there is no weight to quantize once."""
    model = nn.Sequential(nn.Linear(3, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    x = images(8, 3)
    with torch.no_grad():
        wrapped = calibrated(model, x, overrides=()).model
        wrapped(x)
    why = dict(wrapped.plan.float_layers)['1']
    assert 'weight (_WeightNorm) is computed' in why and wrapped.plan.weights['2'].bits == 4


def test_weights_of_plain_convolutions_are_channels_last():
    """And only theirs: a forward of its own may look at the weight through a view."""
    from mmcv.cnn.bricks.conv_ws import ConvWS2d
    model = nn.Sequential(nn.Conv2d(3, 4, 3), ConvWS2d(4, 5, 3), nn.ConvTranspose2d(5, 6, 2))
    use_channels_last(model)
    last = [m.weight.is_contiguous(memory_format=torch.channels_last) for m in model if hasattr(m, 'weight')
            and m.weight.dim() == 4]
    assert last == [True, False, True]
    assert model(torch.rand(2, 3, 6, 6)).shape == (2, 6, 3, 3)
