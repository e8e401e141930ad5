"""What is refused or fails leaves a model as it was; what was quantized can be copied, pickled, sent."""
import copy
import io
import pickle

import pytest
import torch
from models_for_tests import MIN_MAX, ResNet, ViT, calibrated, images, quantizer_cfg, randomize
from torch import nn

import mmquant
from mmquant.algorithms import InitWeightRange
from mmquant.models import QuantizedModel
from mmquant.models.checkpoint import CheckpointError
from mmquant.models.unchanged import unchanged_on_error
from mmquant.utils.building import ConfigError

NEAREST = [dict(type='mmquant.FoldBatchNorm'), dict(type='mmquant.InsertQuantizers'),
           dict(type='mmquant.InitWeightRange', observer=MIN_MAX),
           dict(type='mmquant.InitActivationRange', observer=MIN_MAX)]
X = images(16, 3, 16, 16)


class Fails:
    """A loader that ends in an error after its first batch."""

    def __iter__(self):
        yield X[:4]
        raise OSError('unplugged')


class Late(InitWeightRange):
    """Fails with quantizers in place."""

    def run(self, context):
        super().run(context)
        raise OSError('unplugged')


def test_everything_comes_back():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before, layout = copy.deepcopy(model.state_dict()), model[0].weight.stride()
    with pytest.raises(KeyError), unchanged_on_error(model):
        model[0].weight.data = model[0].weight.data.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            model[0].weight.mul_(2)
            model[1].running_mean.add_(1)
        model[1], model[0].stride, model.extra = nn.Identity(), (2, 2), 5
        model[0].register_forward_hook(lambda *args: None)
        model.eval()
        raise KeyError
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and model.training
    assert isinstance(model[1], nn.BatchNorm2d) and model[0].stride == (1, 1) and not hasattr(model, 'extra')
    assert not model[0]._forward_hooks and model[0].weight.stride() == layout


def test_a_failed_run_leaves_the_float_model():
    model = randomize(ResNet())
    expected = model(X)
    for loader, steps in ((Fails(), NEAREST), ([X], [*NEAREST[:2], Late(observer=MIN_MAX)])):
        with pytest.raises(OSError, match='unplugged'):
            mmquant.quantize(model, loader, steps)
        assert torch.equal(model(X), expected) and type(model.conv1) is nn.Conv2d
        assert type(model.bn1) is nn.BatchNorm2d
    mmquant.quantize(model, [X], NEAREST)


def test_quantizing_again():
    model = randomize(ResNet())
    quantized = mmquant.quantize(model, [X], NEAREST)
    out = quantized(X)
    shared = nn.Sequential(model.conv1, nn.ReLU())
    for again in (model, quantized, shared):
        with pytest.raises(ConfigError, match='is quantized already: a model is changed in place.*Build the float'):
            mmquant.quantize(again, [X], NEAREST)
    assert torch.equal(quantized(X), out)


@pytest.mark.parametrize('other', [dict(classes=7), dict(width=8)])
def test_a_refused_load_changes_nothing(tmp_path, other):
    path = calibrated(randomize(ResNet()), X).model.save(tmp_path / 'q.pth')
    model = QuantizedModel(randomize(ResNet(**other)), quantizer_cfg(), 'random')
    before = model(X)
    with pytest.raises(CheckpointError, match='does not fit the model'):
        model.load(path)
    assert torch.equal(model(X), before) and model.plan is None and not model.quantized_layers()


@torch.no_grad()
@pytest.mark.parametrize('make', [ResNet, ViT])
def test_copies(tmp_path, make):
    model = calibrated(randomize(make()), X).model
    model.decide()
    path, out = model.save(tmp_path / 'q.pth'), model(X)
    packed = mmquant.load(make(), path)
    torch.save(model, buffer := io.BytesIO())
    buffer.seek(0)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False),
                  pickle.loads(pickle.dumps(packed)), copy.deepcopy(packed)):
        assert torch.equal(again(X), out) and type(again) is QuantizedModel
        assert [type(m).__name__ for m in again.modules()] == [type(m).__name__ for m in model.modules()]
