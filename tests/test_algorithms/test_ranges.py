import pytest
import torch
from models_for_tests import MIN_MAX, MLP, Chain, ResNet, calibrated, images, inserted, randomize
from torch import nn

from mmquant.algorithms import InitActivationRange, InitWeightRange
from mmquant.observers import LpNormObserver, MinMaxObserver
from mmquant.utils.building import ConfigError


def test_weight_ranges_are_the_observers():
    context = inserted(MLP(), images(8, 8))
    InitWeightRange(observer=dict(type='mmquant.LpNormObserver', p=2.4)).run(context)
    for layer in context.model.quantized_layers().values():
        quantizer, weight = layer.weight_quantizer, layer._parameters['weight'].detach()
        low, high = LpNormObserver(p=2.4).range_of(weight, quantizer, quantizer.granularity)
        scale = quantizer.scale.clone()
        quantizer.set_range(low, high)
        assert quantizer.initialized and torch.equal(quantizer.scale, scale) and scale.shape == (len(weight), 1)


def test_search_beats_the_minimum_and_maximum():
    errors = {}
    for name in ('MinMaxObserver', 'LpNormObserver'):
        context = inserted(randomize(ResNet(width=16)), images(4, 3, 8, 8), w_bits=3, overrides=())
        InitWeightRange(observer=dict(type=f'mmquant.{name}')).run(context)
        errors[name] = sum((x.weight_quantizer(x._parameters['weight']) - x._parameters['weight']).abs().pow(2.4).sum()
                           for x in context.model.quantized_layers().values())
    assert errors['LpNormObserver'] < 0.9 * errors['MinMaxObserver']


def test_codes_are_dropped_when_the_range_is_set_again():
    context = calibrated(MLP(), images(8, 8))
    quantizer = context.model.weight_quantizers()['fc1']
    quantizer.set_codes(torch.zeros(8, 8, dtype=torch.uint8))
    InitWeightRange(observer=MIN_MAX).run(context)
    assert quantizer.codes is None


def test_all_zero_channel_and_layer():
    model = randomize(Chain())
    with torch.no_grad():
        model.convs[1].weight[2] = 0
        model.convs[2].weight.zero_()
    context = inserted(model, x := images(8, 3, 8, 8), overrides=())
    InitWeightRange().run(context)
    InitActivationRange().run(context)
    with torch.no_grad():
        out = context.model(x)
    scale = context.model.weight_quantizers()['convs.1'].scale.flatten()
    assert torch.isfinite(out).all() and (scale[[0, 1, 3]] > 1e-4).all()
    assert scale[2] == pytest.approx(min(1e-8, scale.max() * 2 ** -24))  # relative to the tensor, see ``positive``
    assert context.model.weight_quantizers()['convs.2'].scale.flatten().tolist() == pytest.approx([1e-8] * len(scale))
    layer = context.model.architecture.convs[1]
    assert not layer.weight_quantizer(layer._parameters['weight'])[2].any()


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_broken_weight_names_the_layer(value):
    context = inserted(model := MLP(), images(8, 8), copied=False)
    with torch.no_grad():
        model._modules['fc2']._parameters['weight'][1, 2] = value
    with pytest.raises(ValueError, match=r'weight of fc2: .* with 1 NaN or Inf values'):
        InitWeightRange().run(context)


def test_activation_ranges_cover_what_was_seen():
    x = images(40, 3, 16, 16)
    context = inserted(randomize(ResNet()), x, chunk=16)
    InitWeightRange(observer=MIN_MAX).run(context)
    InitActivationRange(observer=MIN_MAX, num_images=24).run(context)
    model, seen = context.model, {}
    for name, quantizer in model.activation_quantizers().items():
        assert quantizer.initialized and quantizer.scale > 0
        quantizer.register_forward_pre_hook(
            lambda m, args, name=name: seen.update({name: torch.stack([args[0].min(), args[0].max()])}))
    with torch.no_grad():
        model(x[:24])
    for name, quantizer in model.activation_quantizers().items():
        low, high = seen[name]
        step = (high.clamp(min=0) - low.clamp(max=0)) / (quantizer.grid.num_levels - 1)
        torch.testing.assert_close(quantizer.scale, step, rtol=1e-5, atol=0)


def test_each_quantizer_sees_quantized_activations_upstream():
    """The second layer reads the 2-bit tensor that the first one made."""
    chain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    context = inserted(chain, images(64, 4), a_bits=2, w_bits=8, overrides=())
    InitWeightRange(observer=MIN_MAX).run(context)
    model, seen = context.model, []
    model.architecture[1].register_forward_hook(lambda m, args, out: seen.append(out))
    InitActivationRange(observer=MIN_MAX).run(context)
    layer = model.architecture[1]
    with torch.no_grad():
        first = model.architecture[0](images(64, 4))
        expected = nn.functional.linear(layer.input_quantizer(first), layer.weight_quantizer(layer.weight), layer.bias)
    torch.testing.assert_close(seen[-1], expected)


def test_forward_is_restored_and_errors_too():
    context = inserted(MLP(), images(8, 8))
    with pytest.raises(RuntimeError):  # weights have no range
        InitActivationRange().run(context)
    assert not any('forward' in m.__dict__ for m in context.model.modules())


def test_nan_in_an_activation_names_its_place():

    class Overflow(nn.Module):

        def forward(self, x):
            return x * torch.tensor(float('inf')) * 0

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), Overflow(), nn.Linear(4, 2))
    context = inserted(model, images(8, 4))
    InitWeightRange().run(context)
    with pytest.raises(ValueError, match=r'activation at 3\.input: .* 32 NaN or Inf values.*check checkpoint'):
        InitActivationRange().run(context)


def test_quantizer_that_no_image_reaches():

    class Sometimes(nn.Module):

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            y = self.a(x)
            return self.c(self.b(y) if len(x) <= 2 else y)

    context = inserted(Sometimes(), images(8, 3))
    InitWeightRange().run(context)
    with pytest.raises(ValueError, match=r'no calibration image reached 1 activation quantizers \(first: b\.input\); '
                       r"give more calibration images, or .*\[dict\(pattern='b', w_bits=None, a_bits=None\)\]"):
        InitActivationRange().run(context)


def test_wrong_arguments():
    with pytest.raises(ValueError, match='num_images must be at least 1, got 0'):
        InitActivationRange(num_images=0)
    with pytest.raises(ConfigError, match=r"InitWeightRange\.observer: unknown type 'mmquant.LpNormObserve'; did"):
        InitWeightRange(observer=dict(type='mmquant.LpNormObserve'))
    with pytest.raises(ConfigError, match=r"InitActivationRange\.observer \(LpNormObserver\): unknown key 'q'"):
        InitActivationRange(observer=dict(type='mmquant.LpNormObserver', q=2))
    assert isinstance(InitWeightRange(observer=MIN_MAX).observer, MinMaxObserver)


def test_ranges_of_the_float_net():
    """QDrop's: those of float activations, whatever the bits of what comes before; all images count alike."""
    x = images(40, 3, 16, 16)
    context = inserted(randomize(ResNet()), x, chunk=16, w_bits=2, a_bits=2, overrides=())
    InitWeightRange(observer=MIN_MAX).run(context)
    model, seen = context.model, {}
    InitActivationRange(observer=MIN_MAX, num_images=40, chunk=16, statistics='float').run(context)

    def watch(name):
        return lambda module, args: seen.setdefault(name, []).append(args[0].detach())

    handles = [q.register_forward_pre_hook(watch(name)) for name, q in model.activation_quantizers().items()]
    with torch.no_grad(), model.quantization(weights=False, activations=False):
        model(x)
    for handle in handles:
        handle.remove()
    for name, quantizer in model.activation_quantizers().items():
        values = torch.cat(seen[name])
        step = (values.max().clamp(min=0) - values.min().clamp(max=0)) / 3
        torch.testing.assert_close(quantizer.scale, step, rtol=1e-5, atol=0)
        assert quantizer.initialized and not quantizer._forward_pre_hooks
    with pytest.raises(ValueError, match="statistics must be 'quantized' or 'float', got 'exact'"):
        InitActivationRange(statistics='exact')


class Shared(nn.Module):
    """One layer for the input and for what is so many times smaller."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.stem, self.shared, self.factor = nn.Linear(4, 4), nn.Linear(4, 4), factor

    def forward(self, x):
        x = self.stem(x)
        return self.shared(x) + self.shared(x / self.factor)


@pytest.mark.parametrize('factor, per_call', [(3000, False), (99, False), (3000, True)])
def test_calls_far_apart_are_told_with_the_remedy(monkeypatch, factor, per_call):
    context, told = inserted(Shared(factor), images(64, 4), per_call=per_call), []
    monkeypatch.setattr('mmquant.calibration.observed_ranges.print_log', lambda text, *_: told.append(text))
    InitWeightRange(observer=MIN_MAX).run(context)
    InitActivationRange(chunk=16, statistics='float').run(context)  # four passes
    assert told == ([] if factor == 99 or per_call else [
        'shared.input is one quantizer for 2 calls whose largest values differ 3000-fold, so the smaller ones lose '
        'nearly all levels: give each call its own with quantizer.per_call=True (mmquant.quantize: per_call=True)'])
