"""Float and calibration configs: keys, models, and the real data behind them where it is there."""
import os
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from mmquant.datasets import check_dataset_cfg, overlap
from mmquant.registry import DATASETS, MODELS

CONFIGS = Path(__file__).parents[2] / 'configs'
CALIBRATION = sorted(path.name for path in (CONFIGS / '_base_/calibration').glob('*.py'))
FLOAT = sorted(path.name for path in (CONFIGS / 'float').glob('*.py'))
INPUT_SHAPES = {'mobilenet-v2_val1300.py': (3, 224, 224)}
RUNNER_KEYS = {
    'model', 'data_preprocessor', 'train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'val_dataloader',
    'val_cfg', 'val_evaluator', 'test_dataloader', 'test_cfg', 'test_evaluator', 'default_scope', 'default_hooks',
    'env_cfg', 'vis_backends', 'visualizer', 'log_level', 'load_from', 'resume', 'randomness'
}
DETECTION = {'digitsdet.py', 'val2017-328.py'}  # their bases are mmdet's; see tests/test_configs.py
REAL_DATA = os.environ.get('MMQUANT_REAL_DATA')
needs_real_data = pytest.mark.skipif(not REAL_DATA, reason='the environment variable MMQUANT_REAL_DATA is not set')


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmpretrain')


@pytest.mark.parametrize('name', [name for name in FLOAT if name.rpartition('_')[2] not in DETECTION])
def test_float_config(name):
    cfg = Config.fromfile(CONFIGS / 'float' / name)
    assert set(cfg.keys()) <= RUNNER_KEYS
    model = MODELS.build(cfg.model).eval()
    with torch.no_grad():
        scores = model(torch.zeros(1, *INPUT_SHAPES.get(name, (3, 32, 32))))
    assert scores.shape == (1, cfg.data_preprocessor.num_classes)


@pytest.mark.parametrize('name', CALIBRATION)
def test_calibration_config(name):
    cfg = Config.fromfile(CONFIGS / '_base_/calibration' / name)
    assert set(cfg.keys()) == {'calibration_dataloader', 'calibration_input_shape'}
    assert len(cfg.calibration_input_shape) == 3


def test_real_data_root_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv('MMQUANT_REAL_DATA', str(tmp_path))
    cfg = Config.fromfile(CONFIGS / 'float/resnet20_cifar10.py')
    assert cfg.test_dataloader.dataset.data_root == str(tmp_path)
    with pytest.raises(FileNotFoundError, match='test_jpg.tar'):
        check_dataset_cfg(cfg.test_dataloader.dataset)


def test_digits_calibration_batches():
    cfg = Config.fromfile(CONFIGS / '_base_/calibration/digits_256.py')
    loader = Runner.build_dataloader(cfg.calibration_dataloader, seed=0)
    batches = [torch.stack(batch['inputs']) for batch in loader]
    assert [tuple(batch.shape) for batch in batches] == [(64, *cfg.calibration_input_shape)] * 4
    test = Config.fromfile(CONFIGS / 'float/resnet18_digits.py').test_dataloader.dataset
    assert overlap(loader.dataset, DATASETS.build(test)) == 0


@needs_real_data
@pytest.mark.parametrize('calibration, evaluation, size', [
    ('cifar10_1000.py', 'resnet20_cifar10.py', 10000),
    ('val1300_calib1000.py', 'mobilenet-v2_val1300.py', 1300),
])
def test_real_data(calibration, evaluation, size):
    cfg = Config.fromfile(CONFIGS / '_base_/calibration' / calibration)
    loader = cfg.calibration_dataloader
    loader.num_workers = 0
    check_dataset_cfg(loader.dataset)
    loader = Runner.build_dataloader(loader, seed=0)
    assert len(loader.dataset) == 1000
    assert torch.stack(next(iter(loader))['inputs']).shape[1:] == cfg.calibration_input_shape
    test = DATASETS.build(Config.fromfile(CONFIGS / 'float' / evaluation).test_dataloader.dataset)
    assert len(test) == size
    assert overlap(loader.dataset, test) == 0


@needs_real_data
@pytest.mark.slow
@pytest.mark.parametrize('config, weights, top1', [
    ('resnet20_cifar10.py', 'resnet20_cifar10_mmpretrain.pth', 81.03),
    ('resnet56_cifar10.py', 'resnet56_cifar10_mmpretrain.pth', 83.20),
    ('mobilenet-v2_val1300.py', 'mobilenet_v2_1.0_224_tf_mmpretrain.pth', 80.00),
])
def test_real_accuracy(config, weights, top1, tmp_path):
    cfg = Config.fromfile(CONFIGS / 'float' / config)
    cfg.work_dir, cfg.experiment_name = str(tmp_path), f'test_{config}'
    cfg.load_from = str(Path(REAL_DATA) / 'weights' / weights)
    assert Runner.from_cfg(cfg).test()['accuracy/top1'] == pytest.approx(top1, abs=0.1)
