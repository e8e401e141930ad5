"""Checkpoints of the first release: ``tests/data`` holds plans and one small checkpoint that it wrote."""
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from models_for_tests import ResNet, ViT, calibrated, images, inserted, quantizer_cfg, randomize
from torch import nn

from mmquant.models import QuantizedModel
from mmquant.models.checkpoint import FORMAT, CheckpointError, read_quantized
from mmquant.models.edits import AddOutputAffine, CallsLayers, Folded, Merged, SplitAttention
from mmquant.models.old_plans import from_old_dict
from mmquant.models.plan import Plan

DATA = Path(__file__).parents[1] / 'data'
PLANS = json.loads((DATA / 'old_plans.json').read_text())


class TwoReaders(nn.Module):

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid, self.a, self.b = (nn.Conv2d(3, 3, 1) for _ in range(4))
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        y = F.hardswish(self.mid(self.stem(x)))
        return self.last(torch.cat([self.a(y), self.b(y)], 1))


class Depthwise(nn.Module):
    """Two pyramid levels through a depthwise head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act = nn.Conv2d(3, 4, 1), nn.SiLU()
        self.dw, self.pw, self.last = nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return [self.last(self.pw(self.dw(y))) for y in (self.act(self.stem(x)), self.act(self.stem(x))[:, :, 1:])]


MODELS = dict(resnet=(ResNet, (3, 16, 16), {}), vit=(ViT, (3, 16, 16), {}),
              fused=(lambda: ViT(fused=True), (3, 16, 16), {}), two_readers=(TwoReaders, (3, 4, 4), dict(overrides=())),
              depthwise=(Depthwise, (3, 8, 8), dict(depthwise_channels=True, per_call=True)),
              resnet_w32a4=(ResNet, (3, 16, 16), dict(w_bits=None, overrides=())))


@pytest.mark.parametrize('name', MODELS)
def test_an_old_plan_is_the_one_that_is_made_today(name):
    make, shape, cfg = MODELS[name]
    model = inserted(randomize(make()), images(2, *shape), **cfg).model
    old = from_old_dict(PLANS[name], model.policy)
    if name != 'resnet_w32a4':
        assert old == model.plan and Plan.from_dict(old.to_dict()) == old
        return
    # of float layers the note said why they are float, not where their input is quantized
    assert [(p.name, p.what, p.quantizer) for p in old.places] == [(p.name, p.what, p.quantizer)
                                                                   for p in model.plan.places]
    assert not any(p.readers for p in old.places if p.what == 'output')


def test_old_edits():
    old = {**PLANS['resnet'], 'reparameterized': True, 'split_attention': True, 'affine': ['fc'],
           'functional': {'attn': ['attn.qkv']}, 'folded': [['conv1', 'bn1']]}
    edits = from_old_dict(old, QuantizedModel(ResNet(), quantizer_cfg()).policy).edits
    assert edits == (Merged(), Folded('conv1', 'bn1'), SplitAttention(), CallsLayers('attn', ('attn.qkv', )),
                     AddOutputAffine('fc'))


@torch.no_grad()
def test_an_old_checkpoint_loads():
    """Codes, nearest rounding, output affines and shared quantizers: the outputs that the first release gave."""
    model = QuantizedModel(randomize(ResNet(), seed=99), quantizer_cfg(w_bits=3), 'random')
    outputs = model.load(str(DATA / 'old_resnet.pth'))['outputs']
    torch.testing.assert_close(model(images(2, 3, 16, 16, seed=3)), outputs, rtol=0, atol=1e-6)


@torch.no_grad()
def test_float_layers_used_to_hold_an_idle_quantizer(tmp_path):
    model = calibrated(randomize(ResNet()), x := images(8, 3, 16, 16), w_bits=None, overrides=()).model
    data = dict(read_quantized(model.save(str(tmp_path / 'q.pth'))), format=1)
    for name in ('layer1.0.conv2', 'fc'):
        data['state_dict'][f'{name}.weight_quantizer.scale'] = torch.ones(4, 1, 1, 1)
    torch.save(dict(data, plan=PLANS['resnet_w32a4']), tmp_path / 'old.pth')
    other = QuantizedModel(randomize(ResNet(), seed=99), quantizer_cfg(w_bits=None, overrides=()), 'random')
    other.load(str(tmp_path / 'old.pth'))
    assert torch.equal(other(x), model(x))
    torch.save(data, tmp_path / 'new.pth')
    with pytest.raises(CheckpointError, match=r'2 unexpected keys \(first: layer1\.0\.conv2\.weight_q'):
        QuantizedModel(ResNet(), quantizer_cfg(w_bits=None, overrides=())).load(str(tmp_path / 'new.pth'))
    assert FORMAT >= 1
