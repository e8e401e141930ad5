"""Float checkpoints as training frameworks write them: taken as they are meant, or refused by name."""
import copy
import logging

import pytest
import torch
from mmengine.logging import MMLogger
from models_for_tests import MLP
from torch import nn
from torch.optim.swa_utils import AveragedModel

from mmquant.models.checkpoint import CheckpointError, load_float_weights


class Named(nn.Module):
    """With a submodule called as wrappers call theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.module = MLP()

    def forward(self, x):
        return self.module(x)


class Counted(MLP):
    """With a state that is no tensor."""
    count = 0

    def get_extra_state(self):
        return dict(count=self.count)

    def set_extra_state(self, state):
        self.count = state['count']


def prefixed(state, prefix):
    return {prefix + k: v for k, v in state.items()}


def with_ema(state):
    return {**state, **{'ema_' + k.replace('.', '_'): v * 0 for k, v in state.items()}}


KINDS = dict(
    plain=lambda s: s, meta=lambda s: dict(state_dict=s, meta={}), ddp=lambda s: prefixed(s, 'module.'),
    compiled=lambda s: prefixed(s, '_orig_mod.'), both=lambda s: prefixed(s, 'module._orig_mod.'),
    part_compiled=lambda s: {k.replace('fc1.', 'fc1._orig_mod.'): v for k, v in s.items()},
    model=lambda s: dict(model=s, epoch=299, optimizer=dict(state={})), lightning=lambda s: dict(
        state_dict=prefixed(s, 'net.'), epoch=3), mmdet2_ema=lambda s: dict(state_dict=with_ema(s)),
    double=lambda s: {k: v.double() for k, v in s.items()})


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('make', [MLP, Named])
def test_kinds(tmp_path, caplog, kind, make):
    state, model = make().state_dict(), make()
    torch.save(KINDS[kind](state), tmp_path / 'w.pth')
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, logger.name):
            load_float_weights(model, tmp_path / 'w.pth')
    finally:
        logger.removeHandler(caplog.handler)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    told = dict(compiled="the names without '_orig_mod.'", model="the weights under 'model'", ddp="without 'module.'",
                lightning="without 'net.'", mmdet2_ema='all but 4 copies of weights (ema_')
    assert told.get(kind, '') in caplog.text


def test_versions_of_modules_follow_their_names(tmp_path):
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    state = nn.ModuleDict(dict(module=net)).state_dict()
    assert state._metadata['module.1']['version'] == 2
    seen = []
    other = copy.deepcopy(net)
    other[1]._register_load_state_dict_pre_hook(lambda *args: seen.append(args[2].get('version')))
    torch.save(state, tmp_path / 'w.pth')
    load_float_weights(other, tmp_path / 'w.pth')
    assert seen == [2]


def test_averaged_weights_and_extra_state(tmp_path):
    averaged, model = AveragedModel(MLP()), MLP()
    torch.save(averaged.state_dict(), tmp_path / 'w.pth')
    load_float_weights(model, tmp_path / 'w.pth')
    assert torch.equal(model.fc1.weight, averaged.module.fc1.weight)
    counted, other = Counted(), Counted()
    counted.count = 7
    torch.save(counted.state_dict(), tmp_path / 'w.pth')
    load_float_weights(other, tmp_path / 'w.pth')
    assert other.count == 7 and torch.equal(other.fc2.weight, counted.fc2.weight)


@pytest.mark.parametrize('change, text', [
    ({'module.fc1.weight': torch.zeros(8, 8)}, r'1 unexpected keys \(first: module.fc1.weight\)'),
    ({1: torch.zeros(3)}, 'holds a tensor of torch.strided, torch.float32 at 1, expected tensors only'),
    ({'fc1.weight': torch.eye(8).to_sparse()}, 'holds a tensor of torch.sparse_coo, torch.float32 at fc1.weight'),
    ({'fc1.weight': torch.eye(8) > 0}, r'1 wrong values \(first: fc1.weight: torch.bool instead'),
    ({'fc1.weight': torch.eye(8).to(torch.int8)}, 'torch.int8 instead of torch.float32'),
    ({'fc1.weight': torch.eye(8) > 0}, '1 wrong values .first: fc1.weight: torch.bool instead of torch.float32'),
])
def test_refused(tmp_path, change, text):
    model = MLP()
    before = copy.deepcopy(model.state_dict())
    torch.save({**{k: v * 2 for k, v in MLP().state_dict().items()}, **change}, tmp_path / 'w.pth')
    with pytest.raises(CheckpointError, match=text):
        load_float_weights(model, tmp_path / 'w.pth')
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
