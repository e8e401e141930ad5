import os
import pickle
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from models_for_tests import MLP, calibrated, change_quantized, full_disk, images
from torch import nn

from mmquant.models import QuantizedModel
from mmquant.models.checkpoint import (
    CheckpointError,
    load_float_weights,
    read_quantized,
    read_tensors,
    write_atomically,
)
from mmquant.models.packed_state import grow


class Payload:
    """Runs a command when it is unpickled the ordinary way."""

    def __init__(self, function, *args) -> None:
        self.call = function, args

    def __reduce__(self):
        return self.call


class Foreign:
    """Some class of a training framework, with state."""

    def __init__(self) -> None:
        self.x = [1, 2]


class ForeignDict(dict):
    """PyTorch fills no container of a class it does not know."""


def saved(path: Path, data) -> str:
    torch.save(data, path)
    return str(path)


def test_missing_file():
    with pytest.raises(CheckpointError, match='checkpoint no/such.pth does not exist; give the path of a file, or'):
        read_tensors('no/such.pth')


@pytest.mark.parametrize('damage', ['truncated', 'empty', 'text', 'flipped'])
def test_damaged_file(tmp_path, damage):
    path = Path(saved(tmp_path / 'w.pth', MLP().state_dict()))
    data = path.read_bytes()
    broken = bytearray(data)
    at = data.index(b'data.pkl') + 70
    broken[at:at + 20] = bytes(20)
    path.write_bytes(dict(truncated=data[:len(data) // 2], empty=b'', text=b'<html>Not found</html>',
                          flipped=bytes(broken))[damage])
    with pytest.raises(CheckpointError, match=r'w\.pth cannot be read .* Copy or download it again'):
        read_tensors(str(path))


@pytest.mark.parametrize('function', ['os.system', 'subprocess', 'eval', 'exec', 'open'])
@pytest.mark.parametrize('zipped', [True, False])
def test_code_in_a_checkpoint_never_runs(tmp_path, function, zipped):
    mark = tmp_path / 'ran'
    payload = {'os.system': Payload(os.system, f'touch {mark}'),
               'subprocess': Payload(subprocess.call, ['touch', str(mark)]),
               'eval': Payload(eval, f'open({str(mark)!r}, "w")'), 'exec': Payload(exec, f'open({str(mark)!r}, "w")'),
               'open': Payload(open, str(mark), 'w')}[function]
    pickle.loads(pickle.dumps(payload))
    assert mark.exists()  # it would run
    mark.unlink()
    data = dict(state_dict=MLP().state_dict(), meta=dict(payload=payload))
    torch.save(data, tmp_path / 'w.pth', _use_new_zipfile_serialization=zipped)
    assert not mark.exists()
    try:
        loaded = read_tensors(str(tmp_path / 'w.pth'))
    except CheckpointError:
        loaded = None
    assert not mark.exists()
    if loaded is not None:
        assert type(loaded['meta']['payload']).__name__ == '_Ignored'
        load_float_weights(MLP(), str(tmp_path / 'w.pth'))
    assert not mark.exists()


def test_foreign_classes_become_inert(tmp_path):
    meta = dict(cfg=ConfigDict(a=1, b=dict(c=2)), history=HistoryBuffer([1.0], [1]), number=np.float64(2),
                array=np.arange(3), own=Foreign(), path=Path('x'), epoch=7)
    state = MLP().state_dict()
    data = read_tensors(saved(tmp_path / 'w.pth', dict(state_dict=state, meta=meta)))
    assert data['meta']['epoch'] == 7 and torch.equal(data['state_dict']['fc1.weight'], state['fc1.weight'])
    for key in ('cfg', 'history', 'own'):
        assert type(data['meta'][key]).__name__ == '_Ignored' and not getattr(data['meta'][key], '__dict__', None)
    model = MLP()
    load_float_weights(model, str(tmp_path / 'w.pth'))
    assert torch.equal(model.fc1.weight, state['fc1.weight'])


def test_foreign_containers_are_refused_without_advice_to_load_unsafely(tmp_path):
    path = saved(tmp_path / 'w.pth', dict(state_dict=MLP().state_dict(), meta=ForeignDict(a=1)))
    with pytest.raises(CheckpointError, match='objects other than tensors .* save its state_dict alone') as caught:
        read_tensors(path)
    assert 'weights_only` set to `False' not in str(caught.value)


def test_reading_changes_no_global_state(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    read_tensors(saved(tmp_path / 'w.pth', dict(state_dict={}, meta=Foreign())))
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize('wrap', [lambda s: s, lambda s: dict(state_dict=s, meta={}),
                                  lambda s: dict(state_dict={f'module.{k}': v for k, v in s.items()})])
def test_float_weights(tmp_path, wrap):
    state, model = MLP().state_dict(), MLP()
    load_float_weights(model, saved(tmp_path / 'w.pth', wrap(state)))
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_random_weights_only_on_purpose():
    model = MLP()
    before = model.fc1.weight.clone()
    load_float_weights(model, 'random')
    assert torch.equal(model.fc1.weight, before)
    for source in (None, ''):
        with pytest.raises(CheckpointError, match='gives no float weights: set model.float_checkpoint .*"random"'):
            load_float_weights(model, source)


def change(**new):

    def f(state):
        state = {**state, **new}
        return {k: v for k, v in state.items() if v is not None}

    return f


@pytest.mark.parametrize('edit, text', [
    (change(**{'fc1.weight': None, 'fc2.bias': None}), r'2 missing keys \(first: fc1.weight\)'),
    (change(**{'fc3.weight': torch.ones(1)}), r'1 unexpected keys \(first: fc3.weight\)'),
    (change(**{'fc1.weight': torch.ones(8, 9)}), r'1 wrong shapes \(first: fc1.weight: \(8, 9\) instead of \(8, 8\)\)'),
    (change(**{'fc1.bias': torch.full((8,), float('nan'))}), r'NaN or infinite .* 1 tensors \(first: fc1.bias\)'),
    (change(**{'fc1.bias': torch.full((8,), float('inf'))}), r'NaN or infinite values in 1 tensors'),
    (change(**{'fc1.bias': [1.0] * 8}), 'w.pth holds list at fc1.bias, expected tensors only'),
])
def test_unsuitable_weights(tmp_path, edit, text):
    path = saved(tmp_path / 'w.pth', dict(state_dict=edit(MLP().state_dict())))
    with pytest.raises(CheckpointError, match=text):
        load_float_weights(MLP(), path)


@pytest.mark.parametrize('data', [[1, 2], dict(state_dict=[1]), torch.ones(3), dict(epoch=3)])
def test_no_state_dict(tmp_path, data):
    with pytest.raises(CheckpointError, match='w.pth.*expected (a dict with "state_dict"|tensors only)'):
        load_float_weights(MLP(), saved(tmp_path / 'w.pth', data))


def test_wrong_kind_of_checkpoint(tmp_path):
    path = saved(tmp_path / 'w.pth', dict(state_dict=MLP().state_dict(), meta={}))
    with pytest.raises(CheckpointError, match=r'no checkpoint of mmquant .* quantize the model with tools/ptq\.py'):
        read_quantized(path)
    path = calibrated(MLP(), images(8, 8)).model.save(str(tmp_path / 'q.pth'))
    with pytest.raises(CheckpointError, match='q.pth is a quantized checkpoint, which holds codes .* give the float'):
        load_float_weights(MLP(), path)


def test_newer_format(tmp_path):
    path = saved(tmp_path / 'q.pth', dict(format=99, meta={}, plan={}, state_dict={}))
    with pytest.raises(CheckpointError, match='has format 99, this mmquant reads up to 2; update mmquant'):
        read_quantized(path)


def test_broken_quantized_checkpoint_names_the_file(tmp_path):
    wrapped = calibrated(MLP(), images(8, 8)).model
    path = wrapped.save(str(tmp_path / 'q.pth'))
    entries = grow(torch.load(path, weights_only=True)['about'])['entries']
    path = change_quantized(path, entries=[e for e in entries if e[1] != 'fc1.weight'])
    with pytest.raises(CheckpointError, match=r'q\.pth does not fit the model: 1 missing keys \(first: fc1\.weight\)'):
        QuantizedModel(MLP(), wrapped.quantizer_cfg, 'random').load(path)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    return tmp_path / 'hub' / 'checkpoints'


@pytest.mark.parametrize('url', ['http://127.0.0.1:9/w.pth', 'https://no-such-host.invalid/w.pth'])
def test_unreachable_address(hub, url):
    with pytest.raises(CheckpointError, match=r'/w\.pth cannot be downloaded .* pass its path: --cfg-options '
                       r'model\.float_checkpoint=PATH\. .*configs/brecq/resnet18_w2a4_digits\.py needs no download'):
        load_float_weights(MLP(), url)
    assert not list(hub.glob('*'))


def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = str(tmp_path / 'deep' / 'q.pth')
    write_atomically(path, dict(a=1))

    def broken(data, file):
        file.write(b'half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(torch, 'save', broken)
    with pytest.raises(CheckpointError, match='cannot write .*No space left.*The previous file is untouched'):
        write_atomically(path, dict(a=2))
    monkeypatch.undo()
    assert read_tensors(path) == dict(a=1) and [p.name for p in (tmp_path / 'deep').iterdir()] == ['q.pth']


def test_checkpoints_are_plain(tmp_path):
    """No class of ours inside: any PyTorch reads it."""
    path = calibrated(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)), images(8, 3)).model.save(
        str(tmp_path / 'q.pth'))
    assert torch.serialization.get_unsafe_globals_in_checkpoint(path) == []
    with zipfile.ZipFile(path) as archive:
        text = archive.read(next(n for n in archive.namelist() if n.endswith('data.pkl')))
    assert b'mmquant.models' not in text


def same(a, b) -> bool:
    """Equal nested plain values and tensors."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return a == b


@pytest.mark.parametrize('kind', ['float', 'quantized'])
def test_flipped_bits_are_refused_or_harmless(tmp_path, kind):
    """Anywhere in the file; no wrong weight gets through, though torch.load itself would let it."""
    path = tmp_path / 'w.pth'
    if kind == 'float':
        torch.save(MLP().state_dict(), path)
    else:
        calibrated(MLP(), images(8, 8)).model.save(str(path))
    data, whole = path.read_bytes(), read_tensors(str(path))
    refused, at = 0, np.random.RandomState(0).randint(0, len(data), 100)
    numbers = whole['codes'] if kind == 'quantized' else whole['fc1.weight']
    inside = data.index(numbers.numpy().tobytes())
    for position in (inside + 6, *at):
        broken = bytearray(data)
        broken[position] ^= 1 << position % 8
        path.write_bytes(bytes(broken))
        try:
            found = read_tensors(str(path))
        except CheckpointError as error:
            refused += 1
            assert 'w.pth cannot be read' in str(error) and 'opy or download it again' in str(error)
        else:
            assert position != inside + 6 and same(found, whole)
    assert refused > 20


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / 'q.pth'
    calibrated(MLP(), images(8, 8)).model.save(str(path))
    data = path.read_bytes()
    for length in range(0, len(data), len(data) // 40):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r'q\.pth cannot be read'):
            read_quantized(str(path))


def test_code_in_a_quantized_checkpoint_never_runs(tmp_path):
    wrapped, mark = calibrated(MLP(), images(8, 8)).model, tmp_path / 'ran'
    whole = wrapped.save(str(tmp_path / 'whole.pth'))
    data = torch.load(whole, weights_only=True)
    inner = grow(data['about'])
    payload = Payload(os.system, f'touch {mark}')
    for place in ('meta', 'plan', 'versions', 'entries', 'outside', 'codes'):
        shutil.copy(whole, tmp_path / 'q.pth')
        if place == 'outside':
            path = saved(tmp_path / 'q.pth', dict(data, x=payload))
        elif place == 'codes':
            path = saved(tmp_path / 'q.pth', dict(data, codes=payload))
        else:
            broken = [*inner[place], payload] if place == 'entries' else {**inner[place], 'x': payload}
            path = change_quantized(str(tmp_path / 'q.pth'), **{place: broken})
        try:
            QuantizedModel(MLP(), wrapped.quantizer_cfg, 'random').load(path)
        except CheckpointError:
            pass
        assert not mark.exists()


@pytest.mark.parametrize('plan', [None, [], dict(layers=3), dict(layers=[dict(nome='fc1')]), dict(layers=['fc1'])])
def test_broken_plan(tmp_path, plan):
    wrapped = calibrated(MLP(), images(8, 8)).model
    path = change_quantized(wrapped.save(str(tmp_path / 'q.pth')), plan=plan)
    with pytest.raises(CheckpointError, match=r'q\.pth holds a quantization plan that cannot be read .*Quantize again'):
        QuantizedModel(MLP(), wrapped.quantizer_cfg, 'random').load(path)


def test_full_disk(tmp_path):
    """An error that says what to do, the old file untouched, no remains."""
    path = str(tmp_path / 'q.pth')
    write_atomically(path, dict(a=1))
    with full_disk(100_000), pytest.raises(CheckpointError, match='free some disk space or choose another --work-dir. '
                                           'The previous file is untouched'):
        write_atomically(path, dict(a=torch.zeros(100_000)))
    assert read_tensors(path) == dict(a=1) and [p.name for p in tmp_path.iterdir()] == ['q.pth']
