"""What decides results and has no parameters is compared when a checkpoint is loaded."""
import copy

import pytest
import torch
import torch.nn.functional as F
from models_for_tests import MIN_MAX, MLP, calibrated, change_quantized, images, quantizer_cfg
from torch import nn

import mmquant
from mmquant.models import QuantizedModel
from mmquant.models.checkpoint import CheckpointError, read_quantized
from mmquant.models.made_with import differences, structure
from mmquant.models.packed_state import grow

NEAREST = [dict(type='mmquant.FoldBatchNorm'), dict(type='mmquant.InsertQuantizers'),
           dict(type='mmquant.InitWeightRange', observer=MIN_MAX),
           dict(type='mmquant.InitActivationRange', observer=MIN_MAX)]


class Strided(nn.Module):
    """Settings that no parameter shows."""

    def __init__(self, stride=1, act=F.relu, slope=0.1, p=0.1) -> None:
        super().__init__()
        self.conv, self.drop, self.fc = nn.Conv2d(3, 4, 3, stride), nn.Dropout(p), nn.Linear(4, 2)
        self.act, self.slope = act, slope

    def forward(self, x):
        return self.fc(self.drop(self.act(self.conv(x)) * self.slope).mean((2, 3)))


def saved(tmp_path, **cfg) -> str:
    return calibrated(Strided(), images(8, 3, 8, 8), **cfg).model.save(tmp_path / 'q.pth')


@pytest.mark.parametrize('change, text', [
    (dict(stride=2), r'another model \(conv\.stride\.0: 1 instead of 2, conv\.stride\.1: 1 instead of 2\)'),
    (dict(act=F.gelu), r"another model \(act: 'relu' instead of 'gelu'\)"),
    (dict(slope=0.2), r'another model \(slope: 0\.1 instead of 0\.2\)'),
    (dict(p=0.3), None),
])
def test_another_model(tmp_path, change, text):
    path, model = saved(tmp_path), Strided(**change)
    before, classes = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    wrapped = QuantizedModel(model, quantizer_cfg(), 'random')
    if text is None:
        wrapped.load(path)
        return
    with pytest.raises(CheckpointError, match=f'q.pth was made with {text}, which gives other results'):
        wrapped.load(path)
    assert [type(m) for m in model.modules()] == classes and wrapped.plan is None and not wrapped.weight_quantizers()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize('change, text', [
    (dict(symmetric=True), 'weight.symmetric: False instead of True'),
    (dict(type='mmquant.NoZeroQuantizer'), "weight.type: 'UniformAffineQuantizer' instead of 'NoZeroQuantizer'"),
    (dict(keep_mean=True), 'weight.keep_mean: False instead of True'),
    (dict(bits=5), 'weight.bits: 4 instead of 5'),
    (dict(symmetric=False), None),  # says the default
])
def test_other_quantizers(tmp_path, change, text):
    path, cfg = saved(tmp_path), quantizer_cfg()
    cfg['weight'].update(change)
    wrapped = QuantizedModel(Strided(), cfg, 'random')
    if text is None:
        wrapped.load(path)
        return
    with pytest.raises(CheckpointError, match=rf'made with another quantizer \(.*{text}.*load it into the model'):
        wrapped.load(path)
    assert wrapped.plan is None and not wrapped.weight_quantizers()


def test_a_class_or_its_name_is_the_same(tmp_path):
    from mmquant.quantizers import UniformAffineQuantizer
    path, cfg = saved(tmp_path), quantizer_cfg()
    cfg['weight']['type'] = UniformAffineQuantizer
    QuantizedModel(Strided(), cfg, 'random').load(path)


def test_what_a_call_left_behind_is_no_difference():
    one, other = structure(MLP()), structure(MLP())
    one['fc1']['seen_shape'] = [3, 4]
    assert differences(one, other) == []
    other['fc1']['in_features'] = 9
    assert differences(one, other) == ['fc1.in_features: 8 instead of 9']


def test_mean_and_std_of_the_preprocessor():
    from mmpretrain.models import ClsDataPreprocessor
    given = [structure(nn.ModuleDict(dict(p=ClsDataPreprocessor(mean=[m] * 3, std=[2.] * 3, to_rgb=rgb))))
             for m, rgb in ((1., True), (3., True), (1., False))]
    assert differences(given[0], given[1])[0].startswith('p.mean.0')
    assert any('rgb' in x or 'channel_conversion' in x for x in differences(given[0], given[2]))


def test_lost_and_foreign_codes(tmp_path):
    path = saved(tmp_path)
    entries = grow(torch.load(path, weights_only=True)['about'])['entries']
    data = torch.load(path, weights_only=True)
    whole = read_quantized(path)
    assert len(entries) > 4 and whole['made_with']['model']['conv']['stride'] == [1, 1]
    data['codes'] = data['codes'][:0]
    torch.save(data, path)
    change_quantized(path, entries=[e for e in entries if e[0] != 'codes'])
    with pytest.raises(CheckpointError, match='q.pth lacks the codes of 2 layers .first: conv., without which'):
        QuantizedModel(Strided(), quantizer_cfg(), 'random').load(path)
    state = {**whole['state_dict'], 'no.such.codes': torch.ones(3)}
    old = dict(format=1, plan=whole['plan'], meta={}, state_dict=state)
    torch.save(old, path)
    with pytest.raises(CheckpointError, match=r'no\.such\.codes'):
        QuantizedModel(Strided(), quantizer_cfg(), 'random').load(path)


def test_load_needs_no_config(tmp_path):
    x = images(8, 3, 8, 8)
    model = mmquant.quantize(Strided(), [x], NEAREST, 3, 4, weight=dict(symmetric=True))
    model.save(tmp_path / 'q.pth')
    again = mmquant.load(Strided(), tmp_path / 'q.pth')
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    with pytest.raises(CheckpointError, match='made with another model .conv.stride'):
        mmquant.load(other := Strided(stride=2), tmp_path / 'q.pth')
    assert type(other.conv) is nn.Conv2d and other.training
    with pytest.raises(CheckpointError, match='is not written: the model has no quantizers yet'):
        QuantizedModel(Strided(), quantizer_cfg(), 'random').save(tmp_path / 'none.pth')
