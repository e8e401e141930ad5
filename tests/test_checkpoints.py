"""The shipped checkpoints: checksum, content, measured accuracy."""
import hashlib
from pathlib import Path

import pytest
import torch
from detectors_for_tests import needs_detectors
from mmengine.config import Config
from mmengine.runner import Runner

import mmquant  # noqa: F401  checks the versions

ROOT = Path(__file__).parents[1]
CHECKSUMS = [line.split() for line in (ROOT / 'checkpoints/checksums.sha256').read_text().splitlines()]


def load(name):
    return torch.load(ROOT / 'checkpoints' / name, map_location='cpu', weights_only=True)


@pytest.mark.parametrize('digest, name', CHECKSUMS)
def test_checksum_and_size(digest, name):
    content = (ROOT / 'checkpoints' / name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == digest
    assert len(content) <= (4e6 if 'det.pth' in name else 3e6)  # detectors are larger
    assert digest in (ROOT / 'checkpoints/README.md').read_text()


def test_every_checkpoint_has_a_checksum():
    assert {name for _, name in CHECKSUMS} == {path.name for path in (ROOT / 'checkpoints').glob('*.pth')}


@pytest.mark.parametrize('name, norm', [('resnet18_digits', 'bn1'), ('repvgg_digits', 'branch_norm'),
                                        ('retinanet_digitsdet', 'bn1'), ('faster-rcnn_digitsdet', 'bn1')])
def test_meta(name, norm):
    checkpoint = load(f'{name}.pth')
    meta = checkpoint['meta']
    assert set(checkpoint) == {'state_dict', 'meta'}
    assert (ROOT / meta['config']).is_file() and meta['config'] in meta['command']
    assert meta['seed'] == Config.fromfile(ROOT / meta['config']).randomness.seed
    assert len(meta['dataset_meta']['classes']) == 10
    assert any(f'{norm}.running_var' in name for name in checkpoint['state_dict'])


@pytest.mark.parametrize('name', ['resnet18', 'repvgg'])
def test_accuracy_on_the_test_split(name, tmp_path):
    cfg = Config.fromfile(ROOT / f'configs/float/{name}_digits.py')
    cfg.work_dir = str(tmp_path)
    cfg.load_from = str(ROOT / f'checkpoints/{name}_digits.pth')
    cfg.experiment_name = f'test_checkpoints_{name}'
    top1 = Runner.from_cfg(cfg).test()['accuracy/top1']
    assert top1 >= 99.0
    assert top1 == pytest.approx(load(f'{name}_digits.pth')['meta']['metrics']['accuracy/top1'], abs=0.21)


@needs_detectors
@pytest.mark.slow
@pytest.mark.parametrize('name', ['retinanet', 'faster-rcnn'])
def test_average_precision_on_the_test_scenes(name, tmp_path):
    cfg = Config.fromfile(ROOT / f'configs/float/{name}_digitsdet.py')
    cfg.work_dir, cfg.load_from = str(tmp_path), str(ROOT / f'checkpoints/{name}_digitsdet.pth')
    cfg.experiment_name = f'test_checkpoints_{name}'
    found = Runner.from_cfg(cfg).test()['coco/bbox_mAP']
    expected = load(f'{name}_digitsdet.pth')['meta']['metrics']['coco/bbox_mAP']
    assert found == pytest.approx(expected, abs=0.003)
