import copy
import os

import pytest
import torch
from models_for_tests import MLP, calibrated, images

from mmquant.engine.progress_file import ProgressFile, digest, fingerprint
from mmquant.models.checkpoint import CheckpointError


@pytest.fixture
def context():
    return calibrated(MLP(), images(8, 8))


def test_digest_sees_every_bit_and_no_layout():
    x = images(2, 3, 4, 4)
    assert digest([x]) == digest([x.contiguous(memory_format=torch.channels_last)]) == digest([x.clone()])
    y = x.clone()
    y[1, 2, 3, 3] = torch.nextafter(y[1, 2, 3, 3], torch.tensor(9.))
    assert digest([y]) != digest([x]) and digest([torch.tensor(1)]) != digest([torch.tensor(2)])
    assert digest([x.bfloat16()]) != digest([x]) and len(digest([])) == 64


def test_fingerprint_tells_apart_settings_weights_and_images(context):
    before = fingerprint(context, dict(lr=1, steps=['a']))
    assert before == fingerprint(context, dict(steps=['a'], lr=1))
    assert set(before) == {'config', 'model', 'weights', 'calibration', 'evaluation'}

    def differing(after):
        return [k for k in before if before[k] != after[k]]

    assert differing(fingerprint(context, dict(lr=2, steps=['a']))) == ['config']
    other = copy.deepcopy(context)
    with torch.no_grad():
        other.model.architecture.fc1.bias[0] += 1e-6
    assert differing(fingerprint(other, dict(lr=1, steps=['a']))) == ['weights']
    other = copy.deepcopy(context)
    other.model.structure['act']['type'] = 'GELU'
    assert differing(fingerprint(other, dict(lr=1, steps=['a']))) == ['model']
    assert differing(fingerprint(context, dict(lr=1, steps=['a']), dict(topk=[1]))) == ['evaluation']
    context.chunks[0][0, 0] += 1e-6
    assert differing(fingerprint(context, dict(lr=1, steps=['a']))) == ['calibration']


def test_round_trip(context, tmp_path):
    file = ProgressFile(str(tmp_path / 'progress.pth'), dict(config='a', weights='b', calibration='c'))
    context.records = [dict(kind='unit', loss=0.5, unit='fc1')]
    file.save(context, 3, 7, [dict(name='float', metrics=dict(top1=99.2), seconds=0.1)])
    state = file.load(file.path)
    assert (state['step'], state['unit'], state['records']) == (3, 7, context.records)
    assert state['stages'][0]['metrics'] == dict(top1=99.2) and state['plan'] == context.model.plan.to_dict()
    own = context.model.architecture.state_dict()
    assert all(torch.equal(v, own[k]) for k, v in state['state_dict'].items()) and len(own) == len(state['state_dict'])
    torch.load(file.path, weights_only=True)


def test_refusals(context, tmp_path):
    file = ProgressFile(str(tmp_path / 'progress.pth'), dict(config='a', weights='b', calibration='c'))
    with pytest.raises(CheckpointError, match=r'nothing to resume: .*progress\.pth does not exist; start without'):
        file.load(file.path)
    file.save(context, 0, -1, [])
    for key, text in (('config', 'another config'), ('weights', 'other float weights'),
                      ('calibration', 'other calibration images')):
        other = ProgressFile(file.path, {**file.fingerprint, key: 'x'})
        with pytest.raises(CheckpointError, match=f'progress.pth: it was made with {text}; use the same config, model'):
            other.load(file.path)
    told = dict(config=dict(steps=[dict(lr=1)], seed=0), weights=dict(float_checkpoint='a.pth'))
    ProgressFile(file.path, file.fingerprint, told).save(context, 0, -1, [])
    now = dict(config=dict(steps=[dict(lr=2)], seed=0), weights=dict(float_checkpoint='a.pth'))
    other = ProgressFile(file.path, dict(config='x', weights='y', calibration='c'), now)
    with pytest.raises(CheckpointError, match=r'made with another config \(steps\.0\.lr: 1 instead of 2\) and '
                       'other float weights; use the same config, model, float weights'):
        other.load(file.path)
    (tmp_path / 'progress.pth').write_bytes((tmp_path / 'progress.pth').read_bytes()[:200])
    with pytest.raises(CheckpointError, match='cannot be read'):
        file.load(file.path)
    foreign = tmp_path / 'w.pth'
    torch.save(MLP().state_dict(), foreign)
    with pytest.raises(CheckpointError, match='it holds no state of a run; give the progress.pth of a work dir'):
        file.load(str(foreign))


def test_a_state_that_says_too_little_is_refused(context, tmp_path):
    file = ProgressFile(str(tmp_path / 'progress.pth'), dict(config='a', weights='b', calibration='c'))
    file.save(context, 0, -1, [])
    now = ProgressFile(file.path, {**file.fingerprint, 'model': 'd', 'evaluation': 'e'})
    with pytest.raises(CheckpointError, match=r'another model \(an older mmquant did not record it\) and another eval'):
        now.load(file.path)
    told = dict(model=dict(conv=dict(stride=[1])), evaluation=dict(val_dataloader=dict(dataset=dict(indices=100))))
    before = ProgressFile(file.path, {**file.fingerprint, 'model': 'd', 'evaluation': 'e'}, told)
    before.save(context, 0, -1, [])
    told = dict(model=dict(conv=dict(stride=[2])), evaluation=dict(val_dataloader=dict(dataset=dict(indices=3))))
    now = ProgressFile(file.path, {**file.fingerprint, 'model': 'f', 'evaluation': 'g'}, told)
    with pytest.raises(CheckpointError, match=r'another model \(conv\.stride\.0: 1 instead of 2\) and another '
                       r'evaluation \(val_dataloader\.dataset\.indices: 100 instead of 3\)'):
        now.load(file.path)


def test_damaged_and_hostile_states(context, tmp_path):
    """One flipped bit of a weight is found by its checksum; code in a state never runs."""
    file = ProgressFile(str(tmp_path / 'progress.pth'), dict(config='a', weights='b', calibration='c'))
    file.save(context, 1, 0, [])
    data = (tmp_path / 'progress.pth').read_bytes()
    at = data.index(context.model.architecture.state_dict()['fc1.bias'].numpy().tobytes())
    (tmp_path / 'progress.pth').write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1:])
    with pytest.raises(CheckpointError, match='cannot be read .wrong checksum: '):
        file.load(file.path)

    class Payload:

        def __reduce__(self):
            return os.system, (f'touch {tmp_path}/ran',)

    for place in ('context_state', 'fingerprint'):
        (tmp_path / 'progress.pth').write_bytes(data)
        torch.save({**torch.load(file.path, weights_only=True), place: Payload()}, file.path)
        try:
            assert type(file.load(file.path)['context_state']).__name__ == '_Ignored'
        except CheckpointError as error:
            assert 'cannot be read' in str(error) or 'it holds no state of a run' in str(error)
        assert not (tmp_path / 'ran').exists()
