"""Training a float model and publishing its weights, through the command lines."""
import hashlib
import runpy
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / 'configs/float/resnet18_digits.py')
SHORT = ('train_dataloader.dataset.indices=64', 'val_dataloader.dataset.indices=20',
         'default_hooks.checkpoint.interval=1')


def run(monkeypatch, script, *args):
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.setattr(sys, 'argv', [script, *map(str, args)])
    runpy.run_path(str(ROOT / 'tools' / script), run_name='__main__')


def test_train_then_publish(monkeypatch, tmp_path):
    work_dir = tmp_path / 'run'
    run(monkeypatch, 'train.py', CONFIG, '--work-dir', work_dir, '--seed', 3, '--cfg-options',
        'train_cfg.max_epochs=1', *SHORT)
    assert (work_dir / 'resnet18_digits.py').is_file()
    assert (work_dir / 'last_checkpoint').read_text().endswith('epoch_1.pth')
    dumped = Config.fromfile(work_dir / 'resnet18_digits.py')
    assert dumped.randomness == dict(seed=3, deterministic=False)

    published, checksums = tmp_path / 'out' / 'a.pth', tmp_path / 'checksums.sha256'
    checksums.write_text('0  a.pth\n1  b.pth\n')
    run(monkeypatch, 'model_converters/publish_model.py', CONFIG, work_dir / 'epoch_1.pth', published, '--checksums',
        checksums, '--command', 'train it', '--work-dir', tmp_path / 'publish')
    checkpoint = torch.load(published, weights_only=True)
    assert set(checkpoint) == {'state_dict', 'meta'}
    assert checkpoint['meta']['command'] == 'train it' and checkpoint['meta']['seed'] == 3
    assert 0 <= checkpoint['meta']['metrics']['accuracy/top1'] <= 100
    digest = hashlib.sha256(published.read_bytes()).hexdigest()
    assert checksums.read_text() == f'{digest}  a.pth\n1  b.pth\n'

    run(monkeypatch, 'train.py', CONFIG, '--work-dir', work_dir, '--resume', '--cfg-options',
        'train_cfg.max_epochs=2', *SHORT)
    assert (work_dir / 'epoch_2.pth').is_file()


def test_config_without_training(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match='only evaluates. Use tools/test.py'):
        run(monkeypatch, 'train.py', ROOT / 'configs/float/resnet20_cifar10.py', '--work-dir', tmp_path)


def test_missing_data(monkeypatch, tmp_path):
    config = tmp_path / 'c.py'
    config.write_text(f"_base_ = '{CONFIG}'\n"
                      "train_dataloader = dict(dataset=dict(_delete_=True, type='ImageNet', data_root='no/such'))\n")
    with pytest.raises(SystemExit, match='FileNotFoundError: .*no/such'):
        run(monkeypatch, 'train.py', config, '--work-dir', tmp_path)


@pytest.mark.parametrize('script', ['train.py', 'model_converters/publish_model.py'])
def test_help(monkeypatch, capsys, script):
    with pytest.raises(SystemExit, match='0'):
        run(monkeypatch, script, '--help')
    text = capsys.readouterr().out
    assert 'usage' in text
    if script == 'train.py':
        assert '--local-rank' in text and '--local_rank' in text
