import copy
import sys

import pytest
import torch
from models_for_tests import MIN_MAX, MLP, ResNet, ViT, images, quantizer_cfg, randomize
from torch import nn

import mmquant
from mmquant.analysis.agreement import agreement, agreement_line
from mmquant.apis.quantize import config_root, recipe_steps
from mmquant.models import QuantizedModel
from mmquant.models.cost import model_cost
from mmquant.utils.building import ConfigError

FEW = dict(weights=5, activations=5)
NEAREST = [dict(type='mmquant.FoldBatchNorm'), dict(type='mmquant.InsertQuantizers'),
           dict(type='mmquant.InitWeightRange', observer=MIN_MAX),
           dict(type='mmquant.InitActivationRange', observer=MIN_MAX)]


def loader(n=24, batch=8, seed=0):
    return list(images(n, 3, 16, 16, seed=seed).split(batch))


@pytest.fixture(scope='module')
def done():
    model = randomize(ResNet())
    return mmquant.quantize(model, loader(), 'brecq', 3, 4, num_iters=FEW, seed=1), model


@torch.no_grad()
def test_quantizes_any_module(done):
    quantized, model = done
    x = images(6, 3, 16, 16, seed=5)
    exact = randomize(ResNet())(x)
    out = quantized(x)
    assert isinstance(quantized, QuantizedModel) and quantized.architecture is model and out.shape == (6, 5)
    assert 0 < (out - exact).norm() / exact.norm() < 1
    bits = {n: q.bits.item() for n, q in quantized.weight_quantizers().items()}
    assert bits['conv1'] == bits['fc'] == 8 and set(bits.values()) == {3, 8}
    assert all(q.codes is not None for q in quantized.weight_quantizers().values()) and quantized.ready == (True, True)


@torch.no_grad()
def test_same_seed_same_result(done):
    x = images(6, 3, 16, 16, seed=5)
    torch.manual_seed(99)
    again = mmquant.quantize(randomize(ResNet()), iter(loader()), 'brecq', 3, 4, num_iters=FEW, seed=1)
    assert torch.equal(again(x), done[0](x))
    state, other = done[0].state_dict(), again.state_dict()
    assert state.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in state.items())
    third = mmquant.quantize(randomize(ResNet()), loader(), 'brecq', 3, 4, num_iters=FEW, seed=2)
    assert not torch.equal(third(x), done[0](x))


@torch.no_grad()
def test_saved_and_loaded(done, tmp_path):
    x = images(6, 3, 16, 16, seed=5)
    fresh = QuantizedModel(ResNet(), done[0].quantizer_cfg, 'random')
    fresh.load(done[0].save(str(tmp_path / 'q.pth')))
    assert torch.equal(fresh(x), done[0](x))


@torch.no_grad()
@pytest.mark.parametrize('batch', ['tensor', 'pair', 'dict', 'nested'])
def test_kinds_of_batches(batch):
    wrap = dict(tensor=lambda x: x, pair=lambda x: (x, torch.zeros(len(x))), dict=lambda x: dict(img=x, label=[1]),
                nested=lambda x: [[dict(a=x)], 3])[batch]
    quantized = mmquant.quantize(randomize(MLPOnImages()), [wrap(x) for x in loader()], NEAREST, 8, 8)
    reference = mmquant.quantize(randomize(MLPOnImages()), loader(), NEAREST, 8, 8)
    x = images(2, 3, 16, 16)
    assert torch.equal(quantized(x), reference(x))


class MLPOnImages(nn.Module):

    def __init__(self) -> None:
        super().__init__()
        self.mlp = MLP(width=12)

    def forward(self, x):
        return self.mlp(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


@torch.no_grad()
def test_vectors_and_tokens_as_inputs():
    """Inputs that are no maps."""
    model = randomize(MLP())
    exact = copy.deepcopy(model)
    x = images(32, 8)
    quantized = mmquant.quantize(model, x.split(10), NEAREST, 8, 8)
    assert 0 < (quantized(x) - exact(x)).norm() < 0.05 * exact(x).norm()


@torch.no_grad()
def test_weights_only_and_activations_only():
    x = images(8, 3, 16, 16)
    weights = mmquant.quantize(randomize(ResNet()), loader(), NEAREST[:3], 4, None)
    assert not weights.activation_quantizers() and weights.ready == (True, True) and weights(x).shape == (8, 5)
    activations = mmquant.quantize(randomize(ResNet()), loader(), NEAREST, None, 4, overrides=[])
    assert not activations.weight_quantizers() and len(activations.activation_quantizers()) == 10


def test_overrides_and_block_types():
    overrides = [dict(pattern='head', w_bits=6), dict(pattern=r'.*\.attn', matmul_bits=None)]
    quantized = mmquant.quantize(randomize(ViT()), loader(), NEAREST, 4, 4, overrides=overrides,
                                 block_types=('Attention',))
    bits = {n: q.bits.item() for n, q in quantized.weight_quantizers().items()}
    assert bits.pop('head') == 6 and set(bits.values()) == {4}
    assert not any(p.what == 'operand' for p in quantized.plan.places)
    assert quantized.block_types == ('Attention',)


def iters(steps):
    return {name: s['num_iters'] for name, s in steps.items() if 'num_iters' in s}


@torch.no_grad()
def test_every_grid_is_reached():
    """Another grid for the weights; the first and the last layer stay affine at 8 bits, which it may not have."""
    grid = dict(type='mmquant.APoTQuantizer', granularity='channel')
    quantized = mmquant.quantize(randomize(ResNet()), loader(), NEAREST, 3, 4, weight=grid,
                                 activation=dict(symmetric=True))
    kinds = {n: (type(q).__name__, q.bit_width) for n, q in quantized.weight_quantizers().items()}
    ends = {kinds.pop('conv1'), kinds.pop('fc')}
    assert ends == {('UniformAffineQuantizer', 8)} and set(kinds.values()) == {('APoTQuantizer', 3)}
    places = {p.what: p.quantizer for p in quantized.plan.places if p.name in ('layer1.0.conv2', 'layer1.0')}
    assert places['input'] == places['output'] == dict(type='mmquant.UniformAffineQuantizer', bits=4, symmetric=True)
    assert quantized(images(2, 3, 16, 16)).isfinite().all()
    twice = mmquant.quantize(randomize(ResNet()), loader(), NEAREST, 3, 4, weight=dict(bits=5), overrides=[])
    assert {q.bit_width for q in twice.weight_quantizers().values()} == {5}


def test_recipes_are_the_shipped_files():
    assert list(recipe_steps('lapq')) == ['fold', 'insert', 'nearest', 'joint']
    assert list(recipe_steps('lapq_official')) == ['insert', 'nearest', 'joint']
    steps = recipe_steps('brecq')
    assert {name: s['type'].split('.')[1] for name, s in steps.items()} == dict(
        fold='FoldBatchNorm', insert='InsertQuantizers', nearest_weights='InitWeightRange',
        nearest='InitActivationRange', weights='Reconstruction', activation_ranges='InitActivationRange',
        activations='Reconstruction')
    assert iters(steps) == dict(weights=20000, activations=5000)
    assert iters(recipe_steps('brecq', num_iters=dict(weights=7))) == dict(weights=7, activations=5000)
    assert iters(recipe_steps('brecq')) == dict(weights=20000, activations=5000)
    assert iters(recipe_steps('brecq_short')) == dict(weights=1000, activations=500)
    assert iters(recipe_steps('repapq_w4', num_iters=dict(joint=9))) == dict(joint=9)
    assert config_root().endswith('configs')


@torch.no_grad()
def test_nearest_is_a_recipe():
    """Ranges alone: what BRECQ begins with, in seconds."""
    x = images(6, 3, 16, 16, seed=5)
    quantized = mmquant.quantize(randomize(ResNet()), loader(), 'nearest', 8, 8)
    first = {name: step for name, step in recipe_steps('brecq').items() if name in recipe_steps('nearest')}
    assert torch.equal(quantized(x), mmquant.quantize(randomize(ResNet()), loader(), first, 8, 8)(x))
    exact = randomize(ResNet())(x)
    assert 0 < (quantized(x) - exact).norm() < 0.05 * exact.norm() and quantized.ready == (True, True)


def test_summary(monkeypatch):
    """Widths and units in the log; all of it from mmquant.summary, the numbers those of one image."""
    overrides = [dict(pattern='layer1.0.conv1', w_bits=None, a_bits=None)]
    told = []
    monkeypatch.setattr(sys.modules['mmquant.apis.quantize'], 'print_log', lambda text, logger: told.append(text))
    quantized = mmquant.quantize(randomize(ResNet()), loader(), NEAREST, 4, 8, overrides=overrides)
    log = '\n'.join(told)
    layers = len(quantized.plan.layers)
    assert f'{layers - 1} of {layers} layers with weights are quantized ({layers - 1} at 4 bits)' in log
    assert 'float: layer1.0.conv1 (' in log and f'{len(quantized.units())} units (' in log
    found = agreement(quantized)
    assert told[-1] == agreement_line(found) and found['reference'] == 'original' and found['images'] >= 8
    x = torch.cat(loader())[:found['images']]
    with torch.no_grad():
        exact, rough = randomize(ResNet())(x), quantized(x)
    sqnr = 10 * torch.log10(exact.square().sum() / (rough - exact).square().sum()).item()
    share = (exact.argmax(1) == rough.argmax(1)).double().mean().item()
    assert found['sqnr_db'] == pytest.approx(sqnr, abs=0.01) and found['top1_agreement'] == share
    text = mmquant.summary(quantized)
    assert f'Coverage: {layers - 1} of {layers}' in text and f'Units: {len(quantized.units())}' in text
    assert f'{model_cost(quantized, 2).macs / 1e9:.3f} GMACs' in text
    with pytest.raises(ConfigError, match='this model has no quantizers yet'):
        mmquant.summary(QuantizedModel(ResNet(), quantizer_cfg(), 'random'))


def test_undecided_roundings_are_told_last(monkeypatch):
    told = []
    monkeypatch.setattr(sys.modules['mmquant.apis.quantize'], 'print_log', lambda *args: told.append(args))
    mmquant.quantize(randomize(ResNet()), loader(), 'brecq_short', 4, None, num_iters=2, batch_size=4)
    text, *level = told[-1]
    assert text.startswith('Undecided roundings: weights: ') and level == ['current']
    assert 9 < int(text.split('weights: ')[1].split('%')[0]) <= 100 and 'relative=True' in text


def test_numbers_of_a_recipe():
    """One for all steps that take it, or by name; rates also by what trains."""
    steps = recipe_steps('brecq', num_iters=9, batch_size=dict(weights=4), lr=dict(weights=1e-2))
    assert iters(steps) == dict(weights=9, activations=9)
    assert steps['weights']['batch_size'] == 4 and 'batch_size' not in steps['activations']
    assert steps['weights']['train'] == dict(rounding=dict(lr=1e-2))
    assert steps['activations']['train'] == dict(activation_scale=dict(lr=4e-4, schedule='cosine'))
    joint = recipe_steps('qdrop', lr=dict(joint=dict(rounding=0.5)))['joint']['train']
    assert (joint['rounding']['lr'], joint['activation_scale']['lr']) == (0.5, 4e-5)
    assert recipe_steps('qdrop', lr=0.5)['joint']['train']['activation_scale']['lr'] == 0.5
    assert recipe_steps('qdrop')['joint']['train']['rounding']['lr'] == 1e-3  # the shipped recipe stays


@pytest.mark.parametrize('change, error, text', [
    (dict(recipe='breqc'), ConfigError, r"unknown recipe 'breqc'; did you mean 'brecq'\?"),
    (dict(recipe='xyz'), ConfigError, "unknown recipe 'xyz'; valid ones: .*brecq"),
    (dict(w_bits=1), ConfigError, r'quantizer\.weight .*bits=1 is not supported: expected an int in 2\.\.16'),
    (dict(a_bits=17), ConfigError, r'quantizer\.activation .*bits=17 is not supported'),
    (dict(w_bits=4.5), ConfigError, r'bits must be int, got 4\.5'),
    (dict(overrides=[dict(position='frist')]), ConfigError, 'position must be "first" or "last"'),
    (dict(overrides=[dict(pattern='a', w_bit=3)]), ConfigError, r"unknown key 'w_bit'; did you mean 'w_bits'\?"),
    (dict(recipe=[dict(type='mmquant.FoldBatchNrm')]), ConfigError,
     r"recipe\.FoldBatchNrm: unknown type .* 'mmquant.FoldBatchNorm'\?"),
    (dict(recipe=[dict(type='mmquant.Reconstruction', iters=3)]), ConfigError,
     r"recipe\.Reconstruction \(Reconstruction\): unknown key 'iters'"),
    (dict(num_iters=dict(wieghts=3)), ConfigError,
     r"num_iters: unknown key 'wieghts'; did you mean 'weights'\?"),
    (dict(recipe=[]), ConfigError, 'recipe must be a name, or at least one step'),
    (dict(calib_loader=[]), ValueError, 'the calibration set is empty: calib_loader yielded nothing'),
    (dict(calib_loader=iter(())), ValueError, 'the calibration set is empty'),
    (dict(calib_loader=[torch.full((2, 3, 16, 16), float('nan'))]), ValueError,
     'the calibration images hold NaN or infinite values'),
    (dict(calib_loader=[torch.full((2, 3, 16, 16), float('inf'))]), ValueError, 'hold NaN or infinite values'),
    (dict(calib_loader=[dict(paths=['a.png'])]), ConfigError, 'calib_loader.*expected image tensors.*got str'),
    (dict(calib_loader=[[]]), ConfigError, 'calib_loader.*expected image tensors.*empty'),
    (dict(sed=1), ConfigError, r"quantize: unknown key 'sed'; did you mean 'seed'\?"),
    (dict(seed='1'), ConfigError, r"quantize: seed must be int, got '1'"),
    (dict(settings=dict(seed=1)), ConfigError, "quantize: unknown key 'settings'"),
    (dict(seed=None), ConfigError, 'quantize: seed must be int, got None'),
    (dict(chunk_size=0), ConfigError, 'chunk_size must be at least 1, a whole number, got 0'),
    (dict(recipe='nearest', num_iters=5), ConfigError, 'num_iters: none of the steps takes it: fold, insert'),
    (dict(lr=dict(weights=dict(ronding=1e-2))), ConfigError, r"lr\.weights: .* 'ronding'; did you mean 'rounding'\?"),
    (dict(lr=dict(nearest=1e-2)), ConfigError, "lr: unknown key 'nearest'; valid ones: activations, weights"),
    (dict(batch_size=dict(weights=0)), ConfigError, 'batch_size must be positive, got 0'),
    (dict(block_types=('BasicBlok',)), ConfigError, r"block_types: .* class 'BasicBlok'; did you mean 'BasicBlock'\?"),
    (dict(block_types=['Fir']), ConfigError, "block_types: .* class 'Fir'; valid ones: .*Conv2d"),
    (dict(weight=dict(type='mmquant.APoT')), ConfigError, r"quantizer\.weight: unknown type .*APoTQuantizer'"),
    (dict(weight=dict(simmetric=True)), ConfigError, r"quantizer\.weight .*'simmetric'; did you mean 'symmetric'\?"),
    (dict(w_bits=None, a_bits=None, recipe=NEAREST), ValueError, 'leaves every layer float'),
])
def test_wrong_input(change, error, text):
    few = {} if isinstance(change.get('recipe'), list) or change.get('recipe') == 'nearest' else dict(num_iters=FEW)
    arguments = dict(model=randomize(ResNet()), calib_loader=loader(), recipe='brecq', **few)
    with pytest.raises(error, match=text):
        mmquant.quantize(**{**arguments, **change})


def test_mistakes_are_found_before_the_model_is_touched():
    model = randomize(ResNet())
    for change in (dict(w_bits=1), dict(recipe='breqc'), dict(calib_loader=[])):
        with pytest.raises(ValueError):
            mmquant.quantize(**{**dict(model=model, calib_loader=loader()), **change})
    assert not any('uantiz' in type(m).__name__ for m in model.modules()) and isinstance(model.bn1, nn.BatchNorm2d)
    assert model.conv1.bias is None and quantizer_cfg()['weight']['bits'] == 4


def test_torchscript_is_told():
    with pytest.raises(ConfigError, match='give the eager model'):
        mmquant.quantize(torch.jit.trace(nn.Conv2d(3, 4, 3), images(2, 3, 8, 8)), [images(2, 3, 8, 8)], 'nearest')


@pytest.mark.parametrize('given', [lambda p: p, lambda p: p.module()], ids=['program', 'module'])
def test_a_program_of_torch_export_is_told(given):
    x = images(2, 3, 8, 8)
    program = torch.export.export(nn.Conv2d(3, 4, 3).eval(), (x, ))
    with pytest.raises(ConfigError, match='model is a program of torch.export, .* give the eager model'):
        mmquant.quantize(given(program), [x], 'nearest')


def test_a_traced_graph_of_layers_is_quantized():
    x = images(2, 3, 8, 8)
    net = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval())
    assert len(mmquant.quantize(net, [x], 'nearest').quantized_layers()) == 2


def test_exporting_a_quantized_model_is_told():
    x = images(2, 3, 8, 8)
    model = mmquant.quantize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)), [x], 'nearest')
    with pytest.raises(NotImplementedError, match=r'cannot be exported by torch.export.*\.save\(path\)'):
        torch.export.export(model, (x, ), strict=False)
