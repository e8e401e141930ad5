"""Checkpoints that hold packed codes and no float weights of quantized layers."""
import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models_for_tests import MIN_MAX, MLP, ResNet, ViT, calibrated, images, quantizer_cfg, randomize
from torch import nn

from mmquant.algorithms import CalibrationContext, FoldBatchNorm, InitWeightRange, InsertOutputAffine
from mmquant.models import QuantizedModel
from mmquant.models.checkpoint import CheckpointError, read_quantized
from mmquant.models.cost import model_cost
from mmquant.models.packed_state import grow, shrink
from mmquant.models.packed_weight import NoFloatWeight, PackedWeight

DATA = Path(__file__).parents[1] / 'data'
ROOT = Path(__file__).parents[2]
ALL_SHAPES = [(ResNet, (3, 16, 16)), (ViT, (3, 16, 16)), (MLP, (8, ))]


def fresh(model, like):
    """A model of the same architecture with other float weights, as a process that only evaluates has."""
    return QuantizedModel(randomize(copy.deepcopy(model), seed=99), like.quantizer_cfg, 'random')


def packed_and_loaded(tmp_path, make=ResNet, shape=(3, 16, 16), **cfg):
    model, x = randomize(make()), images(8, *shape)
    wrapped = calibrated(model, x, **cfg).model
    loaded = fresh(model, wrapped)
    loaded.load(wrapped.save(str(tmp_path / 'q.pth')))
    return wrapped, loaded, x


@torch.no_grad()
@pytest.mark.parametrize('make, shape', ALL_SHAPES)
@pytest.mark.parametrize('weight', [dict(), dict(keep_mean=True), dict(granularity='tensor'),
                                    dict(type='mmquant.NoZeroQuantizer')])
def test_deciding_changes_no_output(make, shape, weight):
    cfg, x = quantizer_cfg(4, None, overrides=()), images(8, *shape)
    cfg['weight'].update(weight)
    model = QuantizedModel(randomize(make()), cfg, 'random')
    context = CalibrationContext(model, [x])
    FoldBatchNorm().run(context)
    model.insert_quantizers(model.make_plan(x))
    model.decide()  # nothing has a range yet
    assert all(q.codes is None for q in model.weight_quantizers().values())
    InitWeightRange(observer=MIN_MAX).run(context)
    before = model(x)
    assert all(q.codes is None for q in model.weight_quantizers().values())
    model.decide()
    codes = {n: q.codes for n, q in model.weight_quantizers().items()}
    assert torch.equal(model(x), before) and all(c is not None for c in codes.values())
    model.decide()  # what is decided stays
    assert all(q.codes is codes[n] for n, q in model.weight_quantizers().items())


@torch.no_grad()
@pytest.mark.parametrize('make, shape', ALL_SHAPES)
@pytest.mark.parametrize('w_bits', [2, 3, 4, 8, 9, 16])
def test_no_float_weight_is_in_the_file_and_outputs_are_the_same(tmp_path, make, shape, w_bits):
    wrapped, loaded, x = packed_and_loaded(tmp_path, make, shape, w_bits=w_bits, a_bits=None, overrides=())
    assert torch.equal(loaded(x), wrapped(x))
    state = read_quantized(str(tmp_path / 'q.pth'))['state_dict']
    layers = wrapped.quantized_layers()
    assert not {f'{n}.weight' for n in layers} & set(state)
    assert {f'{n}.weight_quantizer.codes' for n in layers} <= set(state)
    packed = torch.load(tmp_path / 'q.pth', weights_only=True)['codes']
    counts = [layer.weight_quantizer.codes.numel() for layer in layers.values()]
    assert packed.numel() == sum((n * w_bits + 7) // 8 for n in counts)
    for name, layer in layers.items():  # the order in memory decides which kernel a convolution takes
        assert loaded.quantized_layers()[name].weight_quantizer.codes.stride() == layer.weight_quantizer.codes.stride()


@torch.no_grad()
def test_output_affines_offsets_and_shared_layers(tmp_path):
    shared = nn.Conv2d(4, 4, 1)
    model = randomize(nn.Sequential(nn.Conv2d(3, 4, 1), shared, nn.ReLU(), shared, nn.Conv2d(4, 2, 1)))
    x = images(4, 3, 6, 6)
    cfg = quantizer_cfg(3, 4)
    cfg['weight'].update(keep_mean=True)
    wrapped = QuantizedModel(copy.deepcopy(model), cfg, 'random')
    context = CalibrationContext(wrapped, [x])
    wrapped.insert_quantizers(wrapped.make_plan(x))
    wrapped.observe(x)
    InitWeightRange(observer=MIN_MAX).run(context)
    InsertOutputAffine(layers='all').run(context)
    for layer in wrapped.quantized_layers().values():
        layer.adapters[0].scale.mul_(1.5)
        layer.quantized_bias.add_(0.25)
    loaded = QuantizedModel(randomize(copy.deepcopy(model), seed=9), cfg, 'random')
    loaded.load(wrapped.save(str(tmp_path / 'q.pth')))
    with wrapped.quantization(True, False), loaded.quantization(True, False):
        assert torch.equal(loaded(x), wrapped(x))
    entries = grow(torch.load(tmp_path / 'q.pth', weights_only=True)['about'])['entries']
    assert sum(e[0] == 'codes' for e in entries) == 3  # of four names, two of which are one layer
    assert {e[1] for e in entries if e[0] == 'same'} >= {'3.weight_quantizer.codes', '3.bias'}


@pytest.mark.parametrize('w_bits, width', [(2, 48), (4, 48), (8, 32)])
def test_size_on_disk_is_the_reported_one(tmp_path, w_bits, width):
    model, x = randomize(ResNet(width=width)), images(4, 3, 16, 16)
    wrapped = calibrated(model, x, w_bits=w_bits, a_bits=4).model
    size = os.path.getsize(wrapped.save(str(tmp_path / 'q.pth'), dict(text='some meta' * 1000)))
    reported = model_cost(wrapped).size_mb * 1e6
    assert reported <= size <= reported * 1.05 + 64_000


@torch.no_grad()
@pytest.mark.parametrize('ask', [
    lambda m, x: m.observe(x), lambda m, x: m.make_plan(x), lambda m, x: float_net(m)(x),
    lambda m, x: FoldBatchNorm().run(CalibrationContext(m, [x])),
    lambda m, x: InitWeightRange(observer=MIN_MAX).run(CalibrationContext(m, [x])),
    lambda m, x: m.architecture.conv1.weight + 1, lambda m, x: m.architecture.conv1.weight.numpy(),
    lambda m, x: list(m.architecture.conv1.weight), lambda m, x: torch.cat([m.architecture.conv1.weight]),
    lambda m, x: m.architecture.conv1.weight.T, lambda m, x: copy.deepcopy(m).observe(x),
    lambda m, x: m.set_bits(dict(conv1=(2, None))),
])
def test_asking_for_the_float_net_is_an_error_that_says_what_to_do(tmp_path, ask):
    _, loaded, x = packed_and_loaded(tmp_path)
    text = (r'layer conv1 was loaded from a packed checkpoint: .*load\(path, float_weights=True\), or quantize again '
            r'with tools/ptq\.py')
    with pytest.raises(NoFloatWeight, match=text):
        ask(loaded, x)


def float_net(model):

    def run(x):
        with model.quantization(weights=False, activations=False):
            return model(x)

    return run


@torch.no_grad()
@pytest.mark.parametrize('forget', [lambda q: q.clear_codes(), lambda q: q.set_range(-torch.ones(q.num_scales),
                                                                                   torch.ones(q.num_scales))])
def test_forgotten_codes_do_not_become_zeros(tmp_path, forget):
    _, loaded, x = packed_and_loaded(tmp_path)
    quantizer = loaded.weight_quantizers()['conv1']
    forget(quantizer)
    quantizer.codes = None
    with pytest.raises(NoFloatWeight, match='layer conv1'):
        loaded(x)


@torch.no_grad()
def test_a_packed_model_moves_is_copied_and_counted_without_memory(tmp_path):
    wrapped, loaded, x = packed_and_loaded(tmp_path)
    weight = loaded.architecture.conv1._parameters['weight']
    assert isinstance(weight, PackedWeight) and weight.untyped_storage().nbytes() == 4
    assert weight.shape == wrapped.architecture.conv1.weight.shape and weight.dtype is torch.float32
    assert repr(weight) == 'PackedWeight of conv1, shape (4, 3, 3, 3), torch.float32, cpu'
    count = [sum(p.numel() for p in m.parameters()) for m in (wrapped, loaded)]
    assert count[0] == count[1]
    twin = copy.deepcopy(loaded)
    assert torch.equal(twin(x), wrapped(x))
    double = twin.double().architecture.conv1._parameters['weight']
    assert isinstance(double, PackedWeight) and double.dtype is torch.float64 and weight.dtype is torch.float32
    assert double.untyped_storage().nbytes() == 8
    assert copy.deepcopy(loaded).to('meta').architecture.conv1._parameters['weight'].is_meta


@torch.no_grad()
def test_float_weights_of_the_float_checkpoint_can_stay(tmp_path):
    model, x = randomize(ResNet()), images(8, 3, 16, 16)
    wrapped = calibrated(model, x).model
    path = wrapped.save(str(tmp_path / 'q.pth'))
    torch.save(model.state_dict(), tmp_path / 'float.pth')
    other = QuantizedModel(randomize(ResNet(), seed=99), wrapped.quantizer_cfg, str(tmp_path / 'float.pth'))
    other.load_float_checkpoint()
    other.load(path, float_weights=True)
    assert torch.equal(other(x), wrapped(x))
    torch.testing.assert_close(float_net(other)(x), float_net(wrapped)(x))


def test_weights_without_a_range_stay_float(tmp_path):
    """A quantizer without range cannot be switched on, so nothing may be given up."""
    model, x = randomize(ResNet()), images(8, 3, 16, 16)
    wrapped = calibrated(model, x).model
    wrapped.weight_quantizers()['fc'].initialized = False
    loaded = fresh(model, wrapped)
    loaded.load(wrapped.save(str(tmp_path / 'q.pth')))
    assert not read_quantized(str(tmp_path / 'q.pth'))['absent']
    with torch.no_grad():
        torch.testing.assert_close(float_net(loaded)(x), float_net(wrapped)(x), rtol=0, atol=0)


def test_statistics_of_folded_norms_are_kept_in_half(tmp_path):
    wrapped, loaded, _ = packed_and_loaded(tmp_path)
    for name in ('gamma', 'beta', 'mean', 'sigma'):
        own, other = (getattr(m.architecture.conv1.folded_bn, name) for m in (wrapped, loaded))
        assert torch.equal(other, own.half().float()) and other.dtype is torch.float32


# ---- altered files ---------------------------------------------------------------------------------------------------
def cut(data, about):
    data['codes'] = data['codes'][:-5]


def prolong(data, about):
    data['codes'] = torch.cat([data['codes'], data['codes'][:1]])


def no_numbers(data, about):
    del data['numbers.float32']


def fewer_numbers(data, about):
    entry = next(e for e in about['entries'] if e[:2] == ['number', 'fc.bias'])
    entry[3] = [4]


def damaged_numbers(data, about):
    data['numbers.float32'] = data['numbers.float32'].flip(0)


def more_levels(data, about):
    """Four-bit codes given to a quantizer of two bits."""
    about['plan'] = copy.deepcopy(about['plan'])
    entry = next(e for e in about['entries'] if e[1] == 'layer1.0.conv1.weight_quantizer.codes')
    entry[6] += 100


def other_shape(data, about):
    entry = next(e for e in about['entries'] if e[1] == 'layer1.0.conv1.weight_quantizer.codes')
    entry[3] = [8, 2, 3, 3]


def odd_width(data, about):
    next(e for e in about['entries'] if e[0] == 'codes')[5] = 77


def unknown_dtype(data, about):
    next(e for e in about['entries'] if e[0] == 'number')[2] = 'complex128'


def no_bytes(data, about):
    data['codes'] = {'no.such.codes': data['codes'][0]}


def wide_codes(data, about):
    data['codes'] = data['codes'].float()


def no_list(data, about):
    about['entries'] = None


def broken_about(data, about):
    return torch.zeros(10, dtype=torch.uint8)


@pytest.mark.parametrize('alter, text', [
    (cut, r'the packed codes end within fc\.weight_quantizer\.codes: \d+ bytes, \d+ expected'),
    (prolong, r'\d+ bytes of packed codes, but the layers take \d+'),
    (no_numbers, 'the numbers of dtype float32 are missing'), (fewer_numbers, r'\d+ bytes of numbers .* expected'),
    (damaged_numbers, 'the numbers of dtype float32 are damaged'),
    (more_levels, r'layer1\.0\.conv1 has codes in \d+\.\.\d+, its 4-bit quantizer takes 0\.\.15'),
    (other_shape, r'layer1\.0\.conv1 has codes of shape \(8, 2, 3, 3\), its weight has \(4, 4, 3, 3\)'),
    (odd_width, r'bits must be an int in 1\.\.16, got 77'), (unknown_dtype, 'dtype complex128 are missing'),
    (no_bytes, "'codes' must be bytes, a tensor of torch.uint8 with one axis, found dict"),
    (wide_codes, r"'codes' must be bytes, .* found a tensor of torch.float32 \(\d+,\)"),
    (no_list, r"\(TypeError: 'NoneType' object is not iterable\)"),
    (broken_about, 'its description cannot be read'),
])
def test_altered_files(tmp_path, alter, text):
    model, x = randomize(ResNet()), images(8, 3, 16, 16)
    wrapped = calibrated(model, x).model
    path = wrapped.save(str(tmp_path / 'q.pth'))
    data = torch.load(path, weights_only=True)
    about = grow(data['about'])
    replaced = alter(data, about)
    torch.save(dict(data, about=shrink(about) if replaced is None else replaced), path)
    with pytest.raises(CheckpointError, match=r'q\.pth holds packed weights that do not fit together .*' + text):
        fresh(model, wrapped).load(path)


# ---- other processes and formats -------------------------------------------------------------------------------------
def test_a_fresh_process_without_the_float_checkpoint_computes_the_same(tmp_path):
    model, x = randomize(ResNet()), images(4, 3, 16, 16)
    wrapped = calibrated(model, x).model
    path = wrapped.save(str(tmp_path / 'q.pth'))
    with torch.no_grad():
        torch.save(dict(x=x, y=wrapped(x)), tmp_path / 'io.pth')
    code = f'''
import torch
from models_for_tests import ResNet, quantizer_cfg
from mmquant.models import QuantizedModel
torch.set_num_threads({torch.get_num_threads()})
model = QuantizedModel(ResNet(), quantizer_cfg(), None)
model.load({path!r})
io = torch.load({str(tmp_path / "io.pth")!r}, weights_only=True)
with torch.no_grad(), model.frozen(*model.ready):
    assert torch.equal(model(io['x']), io['y'])
'''
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}'})
    assert done.returncode == 0, done.stderr[-2000:]


@torch.no_grad()
@pytest.mark.parametrize('name, make, cfg', [
    ('resnet', lambda: ResNet(width=2), quantizer_cfg(3, 4)),
    ('vit', lambda: ViT(dim=4, depth=1), quantizer_cfg(4, 8, overrides=())),
])
def test_checkpoints_of_format_1_still_load(tmp_path, name, make, cfg):
    """Written by the release before packing: trained codes with output affines; nearest rounding with kept means."""
    if name == 'vit':
        cfg['weight'].update(keep_mean=True)
    model = QuantizedModel(randomize(make(), seed=3), cfg, 'random')
    expected = model.load(str(DATA / f'format1_{name}.pth'))['expected']
    with model.frozen(*model.ready):
        assert all(torch.equal(layer.weight, expected['weights'][n]) for n, layer in model.quantized_layers().items())
        torch.testing.assert_close(model.run(expected['images']), expected['output'], rtol=1e-5, atol=1e-6)
    again = QuantizedModel(randomize(make(), seed=4), cfg, 'random')
    again.load(model.save(str(tmp_path / 'q.pth')))
    assert torch.equal(again.run(expected['images']), model.run(expected['images']))
    assert os.path.getsize(tmp_path / 'q.pth') < 0.4 * os.path.getsize(DATA / f'format1_{name}.pth')
