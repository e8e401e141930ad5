import pytest
import torch
from detectors_for_tests import context_of, detector, needs_detectors
from models_for_tests import MLP, ResNet, calibrated, images, randomize

from mmquant.algorithms import CorrectBias
from mmquant.calibration.cache import Cache
from mmquant.models.layers import own_bias
from mmquant.utils.building import ConfigError


def channel_means(model, batches, weights, run=None):
    """Layer -> mean of each output channel over all images and calls."""
    sums, handles = {}, []

    def watch(name):
        def hook(module, args, output):
            dims = [0, 2, 3] if output.dim() == 4 else [0]
            total, count = sums.get(name, (0, 0))
            sums[name] = total + output.double().sum(dims), count + output.numel() // output.shape[1]
        return hook

    for name, layer in model.quantized_layers().items():
        handles.append(layer.register_forward_hook(watch(name)))
    with torch.no_grad(), model.quantization(weights=weights, activations=False):
        for index, batch in enumerate(batches):
            run(index) if run else model.run(batch)
    for handle in handles:
        handle.remove()
    return {name: total / count for name, (total, count) in sums.items()}


@pytest.mark.parametrize('make, shape', [(ResNet, (3, 8, 8)), (MLP, (8, ))])
def test_every_channel_has_its_float_mean_and_twice_changes_nothing(make, shape):
    context = calibrated(randomize(make()), images(20, *shape), chunk=8, w_bits=3, overrides=())
    model = context.model
    exact = channel_means(model, context.chunks, weights=False)
    before = channel_means(model, context.chunks, weights=True)
    assert max((before[n] - exact[n]).abs().max() for n in exact) > 1e-2
    CorrectBias().run(context)
    after = channel_means(model, context.chunks, weights=True)
    for name in exact:
        torch.testing.assert_close(after[name], exact[name], rtol=0, atol=1e-5)
    biases = {n: x.quantized_bias.clone() for n, x in model.quantized_layers().items()}
    CorrectBias().run(context)
    for name, layer in model.quantized_layers().items():
        torch.testing.assert_close(layer.quantized_bias, biases[name], rtol=0, atol=1e-5)


def test_float_net_and_weights_stay_and_the_error_of_the_first_layer_falls_by_the_squared_shift():
    context = calibrated(randomize(ResNet()), x := images(16, 3, 8, 8), chunk=8, w_bits=2, overrides=())
    model = context.model
    with torch.no_grad(), model.quantization(False, False):
        exact = model.run(x)
    first = model.architecture.conv1

    def error():
        with torch.no_grad():
            with model.quantization(False, False):
                y = first(x)
            with model.quantization(True, False):
                return (first(x) - y).double().square().mean((0, 2, 3))

    before, bias = error(), first.bias.detach().clone()
    CorrectBias().run(context)
    shift = (first.quantized_bias - bias).double()
    torch.testing.assert_close(before - error(), shift.square(), rtol=1e-3, atol=1e-6)
    with torch.no_grad(), model.quantization(False, False):
        assert torch.equal(model.run(x), exact)
    reported = {r['layer']: r['shift'] for r in context.records if r['kind'] == 'bias'}
    assert set(reported) == set(model.quantized_layers())
    assert reported['conv1'] == pytest.approx(shift.abs().max().item(), rel=1e-4)


@needs_detectors
@pytest.mark.parametrize('name', ['retinanet', 'faster-rcnn'])
def test_a_head_shared_over_levels_counts_all_its_calls(name):
    context = context_of(detector(name), images(4, 3, 64, 64).split(2), w_bits=3)
    model = context.model
    CorrectBias().run(context)
    assert all(r['kept'] == 'corrected' for r in context.records if r['kind'] == 'bias')
    exact = channel_means(model, context.chunks, False, context.run)  # a second stage at the float net's proposals
    after = channel_means(model, context.chunks, True, context.run)
    for name in exact:
        torch.testing.assert_close(after[name], exact[name], rtol=0, atol=1e-4)


def test_a_block_that_gets_worse_keeps_its_biases(monkeypatch):
    context = calibrated(randomize(ResNet()), images(8, 3, 8, 8), chunk=8, w_bits=3, overrides=())
    layers = context.model.quantized_layers()
    before = {n: own_bias(x).clone() for n, x in layers.items()}
    worse, seen, error = 'layer1.1', [], CorrectBias._error

    def told(self, visit, targets):
        seen.append(visit.unit.name)
        return error(self, visit, targets) if visit.unit.name != worse else float(seen.count(worse))

    monkeypatch.setattr(CorrectBias, '_error', told)
    CorrectBias().run(context)
    same = {n for n, x in layers.items() if torch.equal(x.quantized_bias, before[n])}
    assert same == {'layer1.1.conv1', 'layer1.1.conv2'} and seen.count(worse) == 2
    assert {r['layer'] for r in context.records if r['kind'] == 'bias' and r['kept'] == 'initial'} == same


def test_a_budget_changes_nothing(tmp_path):
    found = []
    for cache in (Cache(), Cache(host=0, folder=str(tmp_path))):
        context = calibrated(randomize(ResNet()), images(12, 3, 8, 8), chunk=4, w_bits=3, overrides=())
        context.cache = cache
        CorrectBias().run(context)
        found.append([x.quantized_bias for x in context.model.quantized_layers().values()])
    assert all(torch.equal(a, b) for a, b in zip(*found)) and cache.peak['disk'] > 0


def test_resumed_behind_a_unit_is_the_same_to_the_bit():
    def ready():
        context = calibrated(randomize(ResNet()), images(12, 3, 8, 8), chunk=4, w_bits=3, overrides=())
        return context

    class Stopped(Exception):
        pass

    def stop(unit):
        if unit == 2:
            raise Stopped

    whole, first, second = ready(), ready(), ready()
    CorrectBias().run(whole)
    first.unit_done = stop
    with pytest.raises(Stopped):
        CorrectBias().run(first)
    second.model.architecture.load_state_dict(first.model.architecture.state_dict())
    second.first_unit = 3
    CorrectBias().run(second)
    expected = whole.model.architecture.state_dict()
    assert all(torch.equal(x, expected[name]) for name, x in second.model.architecture.state_dict().items())
    names = [[r['layer'] for r in c.records if r['kind'] == 'bias'] for c in (first, second, whole)]
    assert names[0] + names[1] == names[2] and names[0] and names[1]


def test_without_quantized_weights():
    context = calibrated(randomize(MLP()), images(8, 8), chunk=8, w_bits=None, overrides=())
    with pytest.raises(ConfigError, match='no layer with quantized weights'):
        CorrectBias().run(context)


def test_transposed_convolutions_and_layers_without_a_bias():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, bias=False), torch.nn.ReLU(),
                              torch.nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2))
    context = calibrated(randomize(net), images(20, 3, 8, 8), chunk=8, w_bits=3, overrides=())
    exact = channel_means(context.model, context.chunks, weights=False)
    CorrectBias().run(context)
    after = channel_means(context.model, context.chunks, weights=True)
    for name in exact:
        torch.testing.assert_close(after[name], exact[name], rtol=0, atol=1e-5)
    assert {len(x.quantized_bias) for x in context.model.quantized_layers().values()} == {4, 6}
    assert context.model.architecture[0].bias is None
