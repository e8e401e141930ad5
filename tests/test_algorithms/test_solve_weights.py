import pytest
import torch
import torch.nn.functional as F
from detectors_for_tests import context_of, detector, needs_detectors
from models_for_tests import MIN_MAX, Chain, ResNet, ViT, calibrated, images, inserted, randomize
from torch import nn

from mmquant.algorithms import InitActivationRange, InitWeightRange, SolveWeights
from mmquant.calibration.cache import Cache
from mmquant.models.layer_matrix import LayerMatrix
from mmquant.registry import STEPS
from mmquant.solvers import GPTQ
from mmquant.utils.building import ConfigError, build

PHOTOS = images(32, 3, 8, 8).cumsum(2).cumsum(3) / 8  # neighbours alike, as in photographs


class Mixed(nn.Module):
    """A depthwise, a grouped, a dilated and a transposed convolution, and a linear layer on channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1, groups=8)
        self.grouped, self.dilated = nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 6, 3, padding=2, dilation=2)
        self.up, self.fc = nn.ConvTranspose2d(6, 4, 2, 2), nn.Linear(4, 5)

    def forward(self, x):
        for layer in (self.stem, self.depthwise, self.grouped, self.dilated, self.up):
            x = F.relu(layer(x))
        return self.fc(x.permute(0, 2, 3, 1))


def ready(model=None, x=PHOTOS, chunk=16, w_bits=3, **cfg):
    return calibrated(randomize(model or ResNet()), x, chunk=chunk, w_bits=w_bits, overrides=(), **cfg)


def inputs_of(context, layer):
    """What a layer is given, chunk by chunk, in the mode that is active."""
    seen = []
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for chunk in context.chunks:
        context.model.run(chunk)
    handle.remove()
    return seen


def output_errors(context, name, weights=True):
    """Squared error of one layer's output on its own inputs, nearest and as it stands, by running it."""
    layer = context.model.architecture.get_submodule(name)
    quantizer = layer.weight_quantizer
    with torch.no_grad(), context.model.quantization(weights, False):
        x, found, codes = torch.cat(inputs_of(context, layer)), [], quantizer.codes
        quantizer.enabled = False
        exact = layer(x)
        quantizer.enabled = True
        for value in (None, codes):
            quantizer.clear_codes()
            if value is not None:
                quantizer.set_codes(value)
            found.append((layer(x) - exact).square().sum().item() / exact.square().sum().item())
    return found


@pytest.mark.parametrize('make', [ResNet, Chain, Mixed, ViT])
def test_outputs_of_layers_move_less_than_with_nearest_rounding(make):
    context = ready(make(), a_bits=None)
    with torch.no_grad(), context.model.quantization(False, False):
        exact = context.model.run(PHOTOS)
    SolveWeights().run(context)
    layers = context.model.quantized_layers()
    records = {r['layer']: r for r in context.records if r['kind'] == 'unit'}
    assert set(records) == set(layers)
    assert all(layer.weight_quantizer.codes is not None for layer in layers.values())
    won = 0
    for name, record in records.items():
        nearest, solved = output_errors(context, name)
        assert record['loss'] <= record['loss_nearest'] + 1e-9 and record['held_nearest'] > 0, record
        assert record['kept'] == ('tuned' if record['held_tuned'] < record['held_nearest'] else 'nearest')
        assert solved <= nearest * 1.05, (name, solved, nearest)
        won += solved < 0.97 * nearest
    assert won >= len(records) // 2
    with torch.no_grad(), context.model.quantization(False, False):
        assert torch.equal(context.model.run(PHOTOS), exact)


def test_errors_in_the_record_are_those_of_the_layer():
    context = ready(a_bits=None)
    SolveWeights(inputs='float').run(context)
    record = next(r for r in context.records if r.get('layer') == 'layer2.0.conv1')
    layer = context.model.architecture.layer2[0].conv1
    with torch.no_grad(), context.model.quantization(False, False):
        x = [context.model.architecture.layer1(context.model.architecture.maxpool(F.relu(
            context.model.architecture.conv1(c)))) for c in context.chunks]
        exact = [layer(y) for y in x]
    with torch.no_grad(), context.model.quantization(True, False):
        found = [layer(y) for y in x]
    held = [slice(14, 16), slice(14, 16)]
    for key, rows in (('held_tuned', held), ('loss', [slice(0, 14)] * 2)):
        error = sum((f[r] - e[r]).square().sum() for f, e, r in zip(found, exact, rows))
        energy = sum((e[r] - layer.bias.view(-1, 1, 1)).square().sum() for e, r in zip(exact, rows))
        assert record[key] == pytest.approx((error / energy).item(), rel=1e-4)
    assert record['kept'] == 'tuned' and record['rows'] == 28 * 4 and record['columns'] == 36
    assert record['groups'] == record['blocks'] == 1 and record['seconds'] > 0 and 0 < record['flipped'] < 1


def test_each_layer_meets_what_the_layers_before_give():
    seen = []

    class Seeing(GPTQ):

        def solve(self, weight, moments, columns):
            seen.append(moments.gram.clone())
            return super().solve(weight, moments, columns)

    for inputs, a_bits in (('float', None), ('quantized', None), ('quantized', 2)):
        context = ready(Chain(), w_bits=2, a_bits=a_bits)
        SolveWeights(solver=Seeing(), inputs=inputs).run(context)
        with torch.no_grad(), context.model.quantization(inputs == 'quantized', a_bits is not None):
            layer = context.model.architecture.convs[1]
            rows = torch.cat([LayerMatrix(layer).rows(x[:14]) for x in inputs_of(context, layer)], 1).double()
        torch.testing.assert_close(seen[-3], rows.mT @ rows, rtol=1e-4, atol=1e-4)
    assert len(seen) == 12 and torch.equal(seen[0], seen[4])


def test_a_layer_that_gets_worse_on_images_kept_out_rounds_to_nearest(monkeypatch):
    context = ready(a_bits=None)

    class Harmful(GPTQ):

        def solve(self, weight, moments, columns):
            moments.gram.zero_()  # so that every code is as good as nearest on the rows it is solved on
            return columns.encode(weight + 1)

    SolveWeights(solver=Harmful()).run(context)
    assert all(r['kept'] == 'nearest' for r in context.records if r['kind'] == 'unit')
    for layer in context.model.quantized_layers().values():
        quantizer = layer.weight_quantizer
        assert torch.equal(quantizer.codes, quantizer.encode(layer._parameters['weight']))


def test_in_blocks_of_columns_or_with_the_inputs_of_whole_blocks():
    found = {}
    for key, settings in dict(layer={}, block=dict(unit='block'), net=dict(unit='net'),
                              narrow=dict(solver=dict(type='mmquant.GPTQ', max_columns=18))).items():
        context = ready(a_bits=None)
        SolveWeights(**settings).run(context)
        found[key] = [x.weight_quantizer.codes for x in context.model.quantized_layers().values()]
        blocks = {r['blocks'] for r in context.records if r['kind'] == 'unit'}
        assert blocks == ({1, 2, 3, 4} if key == 'narrow' else {1})
    for key in ('block', 'net'):
        assert all(torch.equal(a, b) for a, b in zip(found['layer'], found[key])), key
    assert not all(torch.equal(a, b) for a, b in zip(found['layer'], found['narrow']))


@needs_detectors
@pytest.mark.parametrize('name', ['retinanet', 'faster-rcnn'])
def test_heads_shared_over_levels(name):
    context = context_of(detector(name), images(4, 3, 64, 64).split(2), w_bits=3)
    SolveWeights().run(context)
    records = {r['layer']: r for r in context.records if r['kind'] == 'unit'}
    assert set(records) == set(context.model.quantized_layers())
    shared = {n: len(context.model.flow.calls_of[n]) for n in records}
    head = next(n for n, calls in shared.items() if calls > 1)
    assert records[head]['rows'] > 4 * 64 and all(r['loss'] <= r['loss_nearest'] + 1e-9 for r in records.values())


def test_ranges_of_activations_before_or_after():
    context = inserted(randomize(ResNet()), PHOTOS, 16, w_bits=3, a_bits=4, overrides=())
    InitWeightRange(observer=MIN_MAX).run(context)
    SolveWeights().run(context)  # activations have no ranges yet and stay float
    codes = [x.weight_quantizer.codes for x in context.model.quantized_layers().values()]
    InitActivationRange(observer=MIN_MAX, num_images=32).run(context)
    assert all(torch.equal(a, x.weight_quantizer.codes) for a, x in
               zip(codes, context.model.quantized_layers().values()))
    with torch.no_grad(), context.model.quantization(True, True):
        assert torch.isfinite(context.model.run(PHOTOS)).all()


def test_a_budget_changes_nothing(tmp_path):
    found = []
    for cache in (Cache(), Cache(host=0, folder=str(tmp_path))):
        context = ready(chunk=8)
        context.cache = cache
        SolveWeights().run(context)
        found.append([x.weight_quantizer.codes for x in context.model.quantized_layers().values()])
    assert all(torch.equal(a, b) for a, b in zip(*found)) and cache.peak['disk'] > 0


def test_resumed_behind_a_layer_is_the_same_to_the_bit():

    class Stopped(Exception):
        pass

    def stop(unit):
        if unit == 3:
            raise Stopped

    whole, first, second = ready(), ready(), ready()
    SolveWeights().run(whole)
    first.unit_done = stop
    with pytest.raises(Stopped):
        SolveWeights().run(first)
    second.model.architecture.load_state_dict(first.model.architecture.state_dict())
    second.first_unit = 4
    SolveWeights().run(second)
    expected = whole.model.architecture.state_dict()
    assert all(torch.equal(x, expected[name]) for name, x in second.model.architecture.state_dict().items())
    names = [[r['layer'] for r in c.records if r['kind'] == 'unit'] for c in (first, second, whole)]
    assert names[0] + names[1] == names[2] and len(names[0]) == 4


def test_bad_input():
    with pytest.raises(ConfigError, match="SolveWeights.inputs must be one of .*, got 'quant'"):
        build(STEPS, dict(type='mmquant.SolveWeights', inputs='quant'), 'steps[0]')
    with pytest.raises(ConfigError, match='did you mean .mmquant.GPTQ.'):
        build(STEPS, dict(type='mmquant.SolveWeights', solver=dict(type='mmquant.GPT')), 'steps[0]')
    context = inserted(randomize(ResNet()), PHOTOS, a_bits=None)
    with pytest.raises(ValueError, match='the weight of conv1 has no range yet: put InitWeightRange before'):
        SolveWeights().run(context)
    context = ready()
    context.model.architecture.layer1[0].conv2.forward = lambda x: x * 2
    with pytest.raises(ValueError, match='layer1.0.conv2 has no rows to solve for: no image reached it, or it does'):
        SolveWeights().run(context)
    context = ready()
    units = context.model.units
    context.model.units = lambda kind="block": units(kind)[1:]
    with pytest.raises(ValueError, match='conv1 has no rows to solve for: no image reached it'):
        SolveWeights().run(context)
