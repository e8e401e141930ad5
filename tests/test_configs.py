"""Every config parses and builds; one of each architecture is quantized from the first step to the last."""
import re
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from detectors_for_tests import needs_detectors
from mmengine.registry import init_default_scope
from torch.nn.modules.batchnorm import _BatchNorm

from mmquant.algorithms import CalibrationContext
from mmquant.algorithms.step_list import build_steps, ordered_steps
from mmquant.apis.config import build_runner, calibration_config, load_config
from mmquant.apis.quantize import run_steps
from mmquant.models.edits import Merged
from mmquant.models.units import layer_calls
from mmquant.registry import MODELS, QUANTIZERS
from mmquant.search.problem import find_clips
from mmquant.utils.building import build, differing_keys, plain
from mmquant.utils.progress import progress

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(str(p.relative_to(ROOT)) for p in (ROOT / 'configs').rglob('*.py') if '_base_' not in p.parts)
FLOAT = [name for name in CONFIGS if name.startswith('configs/float/')]
QUANTIZED = [name for name in CONFIGS if name not in FLOAT]
PARENT = {name: match.group(1) for name in QUANTIZED
          if (match := re.search(r"^_base_ = './(.*)\.py'$", (ROOT / name).read_text(), re.M))}
slow = pytest.mark.slow


def scoped(name):
    cfg = load_config(str(ROOT / name))
    init_default_scope(cfg.default_scope)
    return cfg


def fresh(cfg):
    """The quantized model, still float, with random weights."""
    return MODELS.build(dict(cfg.model, float_checkpoint='random', data_preprocessor=cfg.get('data_preprocessor')))


def of_detectors(name):
    """Marks of a config: detectors need compiled operators."""
    return pytest.param(name, marks=[needs_detectors] if name.endswith(('_coco.py', 'det.py', '-328.py')) else [])


@cache
def settled(name):
    """A config as plain values, with its steps in the order in which they run."""
    cfg = load_config(str(ROOT / name))
    cfg.train_cfg.steps = [[step, settings] for step, settings in ordered_steps(cfg.train_cfg.steps).items()]
    return plain(cfg._cfg_dict.to_dict())


@pytest.mark.parametrize('name', [pytest.param(n, marks=needs_detectors) if 'det.py' in n or '328' in n else n
                                  for n in FLOAT])
def test_float_config_builds(name):
    cfg = scoped(name)
    assert sum(p.numel() for p in MODELS.build(cfg.model).parameters()) > 0
    assert cfg.val_cfg is not None and cfg.test_cfg is not None


@pytest.mark.parametrize('name', map(of_detectors, QUANTIZED))
def test_quantization_config(name):
    """What the file says of itself is so, and the Runner gets what it needs."""
    cfg = scoped(name)
    source, lines = cfg.model.float_checkpoint, (ROOT / name).read_text().splitlines()
    assert source.endswith('.pth') and len(lines) <= 25
    bits = next(part for part in Path(name).stem.split('_') if part.startswith('w'))
    assert f'w{cfg.model.quantizer.weight.bits or 32}a{cfg.model.quantizer.activation.bits or 32}' == bits
    cfg = calibration_config(cfg)
    assert cfg.val_cfg is not None and cfg.test_cfg is not None
    assert cfg.train_dataloader.dataset and cfg.calibration_input_shape
    assert not cfg.get('custom_hooks')  # those of the base are for training
    assert build_steps(cfg.train_cfg.steps)[-1].evaluates == (True, True)


@pytest.mark.parametrize('name', map(of_detectors, sorted({*QUANTIZED} - {*PARENT})))
def test_model_builds(name):
    cfg = scoped(name)
    model = fresh(cfg)
    model.load_float_checkpoint()
    assert not model.architecture.training


@pytest.mark.parametrize('name', sorted(PARENT))
def test_width_is_all_that_a_child_changes(name):
    """Two lines, unless a comment says why the recipe changes, too."""
    text, parent = (ROOT / name).read_text(), settled(str(Path(name).with_name(f'{PARENT[name]}.py')))
    changed = {line.split(':')[0] for line in differing_keys(parent, settled(name))}
    bits = {key for key in changed if key in ('model.quantizer.weight.bits', 'model.quantizer.activation.bits')}
    assert bits and (changed == bits or text.startswith('#'))
    assert all(key.startswith(('train_cfg.steps', 'train_cfg.amp')) for key in changed - bits)
    if changed == bits:
        assert len(text.splitlines()) == 3


def test_no_base_is_unused():
    """Every file of _base_ is built on by a leaf, directly or through other files."""
    texts = {path: path.read_text() for path in (ROOT / 'configs').rglob('*.py')}
    named = {Path(base).name for text in texts.values() for base in re.findall(r"'(\.[./\w-]+\.py)'", text)}
    tests = {'digitsdet_128_boxes.py'}  # built on by tests, and for users
    unused = {path.name for path in texts if '_base_' in path.parts and path.parent.name != 'variants'} - named - tests
    assert not unused


@pytest.mark.parametrize('path', sorted((ROOT / 'configs/_base_/quantizers').glob('*.py')), ids=lambda p: p.stem)
def test_quantizer_bases(path):
    cfg = load_config(str(path)).quantizer
    for part in ('weight', 'activation'):
        assert build(QUANTIZERS, dict(cfg[part], bits=4), part).bits == 4


@pytest.mark.parametrize('name', ['convnext-tiny_w4a4', 'regnetx-400mf_w2a4'])  # their bases have hooks for training
def test_runner_builds(name, tmp_path):
    cfg = calibration_config(scoped(f'configs/brecq/{name}.py'))
    cfg.work_dir, cfg.experiment_name, cfg.model.float_checkpoint = str(tmp_path), f'build_{name}', 'random'
    hooks = {type(hook).__name__ for hook in build_runner(cfg).hooks}
    assert 'LoggerHook' in hooks and not {'EMAHook', 'PreciseBNHook'} & hooks


# ---- from the first step to the last ------------------------------------------------------------------------------
FAMILIES = [  # config, side of the images, blocks, all units
    ('resnet18_w2a4', 32, 8, 10),
    pytest.param('resnet50_w4a4', 32, 16, 18, marks=slow),
    ('mobilenet-v2_w4a4', 32, 17, 20),
    ('regnetx-400mf_w4a4', 32, 22, 24),
    pytest.param('regnetx-3.2gf_w4a4', 32, 25, 27, marks=slow),
    ('repvgg-a0_w4a4', 32, 0, 23),
    ('deit-tiny_w4a4', 224, 12, 14),
    pytest.param('swin-tiny_w4a4', 224, 12, 17, marks=slow),
    pytest.param('convnext-tiny_w4a4', 64, 18, 23, marks=slow),
    ('mobilenet-v2_w8a8_val1300', 32, 17, 20),
    ('resnet18_w2a4_digits', 32, 8, 10),
    ('resnet20_w2a4_cifar10', 32, 9, 11),
    pytest.param('../repapq/repvgg-a0_w6a6', 32, 22, 23, marks=slow),
    pytest.param('../repapq/repvgg-b1g2_w8a8', 32, 28, 29, marks=slow),
    pytest.param('../repapq/mobileone-s0_w8a8', 32, 43, 44, marks=slow),
    pytest.param('../repapq/repvgg-a0_w4a4', 32, 22, 23, marks=slow),
    ('../repapq/repvgg_w4a4_digits', 32, 12, 13),
    pytest.param('../repapq/mobilenet-v2_w6a6_per-tensor_val1300', 32, 17, 20, marks=slow),
]


@torch.no_grad()
def enliven(model, images):
    """Random weights whose signal neither dies nor explodes: statistics of these images, affine factors near one."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    for norm in norms:
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.uniform_(-0.5, 0.5)
        norm.momentum, norm.training = 1.0, True
    for name, parameter in model.named_parameters():
        if name.endswith('.gamma'):  # factor of a residual branch, initially next to zero
            parameter.uniform_(0.1, 0.3)
    model.run(images)
    for norm in norms:
        norm.training = False


def cheap(step):
    """The same step with two iterations and without searching ranges."""
    changes = dict(num_iters=2, num_images=2, observer=dict(type='mmquant.MinMaxObserver'), init_images=2, norms=(2, 3),
                   searcher=dict(type='mmquant.GradientSearch', num_steps=2), objective=None)
    known = dict(Reconstruction=('num_iters', ), InitActivationRange=('num_images', 'observer'),
                 InitWeightRange=('observer', ), NormSweep=('num_images', 'init_images', 'norms', 'objective'),
                 JointSearch=('num_images', 'searcher', 'objective')).get(step['type'].removeprefix('mmquant.'), ())
    return {**step, **{key: changes[key] for key in known}}


def cheap_steps(cfg):
    return build_steps({name: cheap(step) for name, step in ordered_steps(cfg.train_cfg.steps).items()})


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize('name, side, blocks, units', FAMILIES)
def test_all_steps(name, side, blocks, units, tmp_path):
    cfg = calibration_config(scoped(f'configs/brecq/{name}.py'))
    torch.manual_seed(0)
    model, images = fresh(cfg), torch.randn(4, 3, side, side)
    enliven(model, images)
    with torch.no_grad():
        before = model(images)
    assert before.std(0).max() > 1e-3 * before.abs().max()  # images can be told apart

    run_steps(CalibrationContext(model, [images], progress=progress), cheap_steps(cfg))

    found = model.units()
    assert (sum(u.kind == 'block' for u in found), len(found)) == (blocks, units)
    reached = {c.name for c in layer_calls(model.architecture, model.flow)}
    assert sorted(n for u in found for n in u.layers) == sorted(reached)
    assert set(model.quantized_layers()) == reached == set(model.plan.weights)

    with torch.no_grad():
        after = model(images)
        with model.quantization(weights=False, activations=False):
            assert relative(model(images), before) < 1e-3
        assert torch.isfinite(after).all() and relative(after, before) > 1e-3

        model.save(str(tmp_path / 'quantized.pth'))
        other = fresh(cfg)
        other.load(str(tmp_path / 'quantized.pth'))
        assert torch.equal(other(images), after)
        assert other.plan == model.plan
        assert (Merged() in other.plan.edits) == ('Reparameterize' in str(cfg.train_cfg.steps))


LAPQ = ('resnet18_w4a4_digits', 'resnet18_w4a4_official_digits', 'resnet18_w2a4_brecq_digits')


@pytest.mark.parametrize('name', LAPQ)
def test_all_steps_of_lapq(name, tmp_path):
    cfg = calibration_config(scoped(f'configs/lapq/{name}.py'))
    torch.manual_seed(0)
    model, images = fresh(cfg), torch.randn(4, 3, 32, 32)
    enliven(model, images)
    context = CalibrationContext(model, [images], progress=progress)
    run_steps(context, cheap_steps(cfg))
    assert context.records[-1]['kind'] == ('unit' if 'brecq' in name else 'search')
    with torch.no_grad():
        after = model(images)
        model.save(str(tmp_path / 'quantized.pth'))
        other = fresh(cfg)
        other.load(str(tmp_path / 'quantized.pth'))
        assert torch.equal(other(images), after)


@pytest.mark.parametrize('name, clips', [
    ('resnet18_w4a4_official', 33), ('resnet18_w4a32_official', 18), ('resnet18_w32a4_official', 15),
    ('resnet18_w4a4', 39), pytest.param('mobilenet-v2_w4a4_official', 50 + 33, marks=slow)])
def test_number_of_clips(name, clips):
    """For ResNet-18 those of the authors' saved vectors: 33, 18 and 15."""
    cfg = calibration_config(scoped(f'configs/lapq/{name}.py'))
    context = CalibrationContext(fresh(cfg), [torch.randn(2, 3, 32, 32)], progress=progress)
    run_steps(context, [s for s in build_steps(cfg.train_cfg.steps) if s.structural])
    assert len(find_clips(context.model)) == clips


# ---- what is written about the configs -----------------------------------------------------------------------------
def metafiles():
    return yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']


@pytest.mark.parametrize('path', metafiles())
def test_metafile(path):
    data = yaml.safe_load((ROOT / path).read_text())
    collections = {c['Name']: c for c in data['Collections']}
    assert all((ROOT / c['README']).is_file() and c['Paper']['URL'] for c in collections.values())
    names = [m['Name'] for m in data['Models']]
    assert len(set(names)) == len(names)
    for model in data['Models']:
        assert model['In Collection'] in collections
        assert '_'.join(Path(model['Config']).with_suffix('').parts[1:]) == model['Name']
        source = settled(model['Config'])['model']['float_checkpoint']
        if source.startswith('https://'):
            assert model['Metadata']['Float Model']['Weights'] == source
    folder = Path(path).parent
    assert {m['Config'] for m in data['Models']} == {n for n in QUANTIZED if Path(n).parent == folder}


@pytest.mark.parametrize('name', QUANTIZED)
def test_readme_lists_the_config(name):
    assert f'](./{Path(name).name})' in (ROOT / name).with_name('README.md').read_text()
