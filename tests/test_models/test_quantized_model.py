import copy

import pytest
import torch
from mmengine.registry import init_default_scope
from models_for_tests import MLP, BasicBlock, ResNet, ViT, calibrated, images, inserted, quantizer_cfg, randomize
from torch import nn

from mmquant.models import QuantizedModel
from mmquant.models.checkpoint import CheckpointError, read_quantized
from mmquant.utils.building import ConfigError


def fresh(model, **cfg) -> QuantizedModel:
    """A float model of the same architecture with other weights, as a process that only evaluates has."""
    return QuantizedModel(randomize(copy.deepcopy(model), seed=99), quantizer_cfg(**cfg), 'random')


@torch.no_grad()
@pytest.mark.parametrize('make, shape', [(ResNet, (3, 16, 16)), (ViT, (3, 16, 16)),
                                         (lambda: ViT(fused=True), (3, 16, 16)), (MLP, (8,))])
@pytest.mark.parametrize('cfg', [dict(), dict(w_bits=2, a_bits=None, overrides=()), dict(w_bits=9, a_bits=12)])
def test_save_and_load_give_identical_outputs(make, shape, cfg, tmp_path):
    torch.manual_seed(0)
    model, x = randomize(make()), images(8, *shape)
    wrapped = calibrated(model, x, **cfg).model
    for layer in wrapped.quantized_layers().values():
        codes = layer.weight_quantizer.encode(layer._parameters['weight'])
        layer.weight_quantizer.set_codes(layer.weight_quantizer.grid.q_max - codes)
    path = wrapped.save(str(tmp_path / 'q.pth'), dict(note='hello', numbers=[1, 2.5]))
    loaded = fresh(model, **cfg)
    assert not torch.equal(loaded(x), wrapped(x))
    assert loaded.load(path) == dict(note='hello', numbers=[1, 2.5])
    assert torch.equal(loaded(x), wrapped(x)) and loaded.plan == wrapped.plan
    with loaded.frozen(weights=True, activations=True):
        assert torch.equal(loaded(x), wrapped(x))
    data = read_quantized(path)
    assert data['absent'] == {f'{name}.weight' for name in wrapped.quantized_layers()}
    assert not data['absent'] & set(data['state_dict'])


@torch.no_grad()
def test_saved_again_it_is_the_same(tmp_path):
    model, x = randomize(ResNet()), images(8, 3, 16, 16)
    path = calibrated(model, x).model.save(str(tmp_path / 'a.pth'))
    loaded = fresh(model)
    loaded.load(path)
    loaded.save(str(tmp_path / 'b.pth'))
    assert (tmp_path / 'a.pth').read_bytes() == (tmp_path / 'b.pth').read_bytes()


@torch.no_grad()
def test_modes():
    model, x = randomize(ResNet()), images(8, 3, 16, 16)
    before = model(x)
    wrapped = calibrated(model, x, w_bits=3, a_bits=3).model
    outs = {}
    for mode in ((False, False), (True, False), (False, True), (True, True)):
        with wrapped.quantization(*mode):
            outs[mode] = wrapped(x)
        with wrapped.frozen(*mode):
            assert torch.equal(wrapped(x), outs[mode])
    torch.testing.assert_close(outs[False, False], before, rtol=0, atol=1e-4 * before.abs().max().item())
    assert torch.equal(outs[True, True], wrapped(x))
    assert len({tuple(v.flatten().tolist()) for v in outs.values()}) == 4


@torch.no_grad()
def test_float_mode_is_the_folded_model_bit_for_bit():
    """Quantizers that are off leave no trace: the float output is the same before and behind calibration."""
    context = inserted(randomize(ResNet()), x := images(8, 3, 16, 16))
    with context.model.quantization(weights=False, activations=False):
        before = context.model(x)
    wrapped = calibrated(randomize(ResNet()), x).model
    with wrapped.quantization(weights=False, activations=False):
        assert torch.equal(wrapped(x), before)


@torch.no_grad()
def test_eight_bits_change_little():
    model, x = randomize(ResNet()), images(16, 3, 16, 16)
    before = model(x)
    after = calibrated(model, x, w_bits=8, a_bits=8, overrides=()).model(x)
    assert 0 < (after - before).norm() / before.norm() < 0.02


def test_stays_in_eval_mode():
    wrapped = QuantizedModel(nn.Sequential(nn.Linear(3, 3), nn.Dropout()), quantizer_cfg(), 'random')
    wrapped.train()
    assert not wrapped.training and not wrapped.architecture[1].training


def test_names_of_quantizers():
    model = randomize(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), BasicBlock(3, 3)))
    wrapped = inserted(model, images(2, 3, 8, 8)).model
    assert list(wrapped.weight_quantizers()) == ['0', '2.conv1', '2.conv2'] == list(wrapped.quantized_layers())
    assert list(wrapped.activation_quantizers()) == ['1.output', '2.conv2.input']


def test_quantizing_without_ranges_says_so():
    wrapped = inserted(MLP(), images(4, 8)).model
    with pytest.raises(RuntimeError, match='has no range yet'):
        wrapped(images(4, 8))


def test_architecture_by_config():
    init_default_scope('mmpretrain')  # of the model's data preprocessor, which bears no prefix
    cfg = dict(type='mmpretrain.ImageClassifier',
               backbone=dict(type='mmpretrain.ResNet_CIFAR', depth=18, stem_channels=4, base_channels=4),
               neck=dict(type='mmpretrain.GlobalAveragePooling'),
               head=dict(type='mmpretrain.LinearClsHead', num_classes=3, in_channels=32))
    wrapped = QuantizedModel(cfg, quantizer_cfg(), 'random', dict(mean=[1, 2, 3], std=[4, 5, 6], num_classes=3))
    assert wrapped.data_preprocessor.mean.flatten().tolist() == [1, 2, 3]
    x = images(2, 3, 8, 8)
    with torch.no_grad():
        assert wrapped(x).shape == (2, 3) and torch.equal(wrapped.run(x), wrapped(x))
        assert len(wrapped.predict(x) if hasattr(wrapped, 'predict') else wrapped(x, mode='predict')) == 2


@pytest.mark.parametrize('change, text', [
    (dict(weigth={}), r"quantizer: unknown key 'weigth'; did you mean 'weight'\?"),
    (dict(weight=None), r'quantizer\.weight: expected dict\(type=..., bits=...\), got None; write bits=None'),
    (dict(activation=dict(type='mmquant.UniformAfineQuantizer')),
     r"quantizer\.activation: unknown type 'mmquant.UniformAfineQuantizer'; did you mean 'mmquant.UniformAffine"),
    (dict(weight=dict(type='mmquant.UniformAffineQuantizer', bit=4)),
     r"quantizer\.weight \(UniformAffineQuantizer\): unknown key 'bit'; did you mean 'bits'\?"),
    (dict(weight=dict(type='mmquant.UniformAffineQuantizer', bits=1)), r'bits=1 is not supported: .* 2\.\.16'),
    (dict(activation=dict(type='mmquant.UniformAffineQuantizer', bits=32)), r'2\.\.16'),
    (dict(overrides=[dict(position='first', bits=8)]), r"overrides\[0\]: unknown key 'bits'; did you mean"),
])
def test_wrong_configs(change, text):
    with pytest.raises(ConfigError, match=text):
        QuantizedModel(MLP(), {**quantizer_cfg(), **change}, 'random')


def test_bits_none_keeps_a_kind_float():
    cfg = quantizer_cfg(w_bits=None, a_bits=None, overrides=())
    wrapped = QuantizedModel(MLP(), cfg, 'random')
    plan = wrapped.make_plan(images(2, 8))
    assert not plan.places and len(plan.float_layers) == len(plan.layers) == 2


def test_checkpoint_of_another_model(tmp_path):
    path = calibrated(randomize(ResNet()), images(8, 3, 16, 16)).model.save(str(tmp_path / 'q.pth'))
    with pytest.raises(CheckpointError, match=r'q\.pth.*another'):
        fresh(ViT()).load(path)
    with pytest.raises(CheckpointError, match=r'wrong shapes.*conv1\.bias: \(4,\) instead of \(6,\)'):
        fresh(ResNet(width=6)).load(path)


def test_loading_into_a_quantized_model_replaces_its_state(tmp_path):
    model, x = randomize(ResNet()), images(8, 3, 16, 16)
    wrapped = calibrated(model, x).model
    path = wrapped.save(str(tmp_path / 'q.pth'))
    other = calibrated(model, x * 3).model
    with torch.no_grad():
        assert not torch.equal(other(x), wrapped(x))
        other.load(path)
        assert torch.equal(other(x), wrapped(x))
        wrapped.load(path)
        assert torch.equal(other(x), wrapped(x))


def test_loading_another_plan_into_a_quantized_model_is_refused(tmp_path):
    model, x = randomize(ResNet()), images(8, 3, 16, 16)
    wrapped = calibrated(model, x).model
    wrapped.set_bits({'fc': (5, None)})
    path = wrapped.save(str(tmp_path / 'q.pth'))
    with pytest.raises(CheckpointError, match='already quantized.*fresh'):
        calibrated(model, x).model.load(path)


class Viewing(nn.Module):
    """As VGG: flattens feature maps by a view, which fails on channels that lie last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4 * 6 * 6, 2)

    def forward(self, x):
        x = self.conv(x)
        return self.fc(x.view(x.size(0), -1))


@torch.no_grad()
def test_models_that_view_feature_maps(tmp_path):
    torch.manual_seed(0)
    x = images(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    model = calibrated(Viewing(), x).model
    assert set(model.quantized_layers()) == {'conv', 'fc'}
    model.save(str(tmp_path / 'q.pth'))
    other = QuantizedModel(Viewing(), model.quantizer_cfg, 'random')
    other.load(str(tmp_path / 'q.pth'))
    assert torch.equal(other(x), model(x))


class Pair(nn.Module):
    """Returns its tensor twice, as the reversible blocks of RevViT do at first."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        x = self.fc(x)
        return x, x


class Twins(nn.Module):

    def __init__(self) -> None:
        super().__init__()
        self.pair, self.a, self.b = Pair(), nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x):
        left, right = self.pair(x)
        return self.a(left) + self.b(right)


@torch.no_grad()
def test_a_tensor_returned_in_a_container_is_quantized_where_it_is_made():
    model = calibrated(Twins(), x := images(4, 8), w_bits=8, a_bits=8).model
    assert [p.name for p in model.plan.places if p.what == 'output'] == ['pair.fc']
    assert model(x).shape == (4, 2) and set(model.quantized_layers()) == {'pair.fc', 'a', 'b'}
