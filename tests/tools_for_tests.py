"""Running the command-line tools inside the test process."""
import contextlib
import json
import os
import runpy
import sys
from pathlib import Path

from mmquant.apis.config import build_runner, calibration_config, load_config
from mmquant.models.checkpoint import read_quantized

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / 'configs/brecq/resnet18_w2a4_digits.py')
# A run of a few seconds: 4 steps a unit, 32 calibration and 100 evaluation images.
TINY = ('train_cfg.steps.weights.num_iters=4', 'train_cfg.steps.activations.num_iters=4',
        'train_cfg.dataloader.dataset.indices=32', 'val_dataloader.dataset.indices=100',
        'test_dataloader.dataset.indices=100', 'train_cfg.steps.nearest_weights.observer.num_candidates=20',
        'train_cfg.steps.nearest.observer.num_candidates=20',
        'train_cfg.steps.activation_ranges.observer.num_candidates=20')

STEPS = [dict(type='mmquant.FoldBatchNorm'), dict(type='mmquant.InsertQuantizers'),
         dict(type='mmquant.InitWeightRange', observer=dict(type='mmquant.MinMaxObserver')),
         dict(type='mmquant.InitActivationRange', observer=dict(type='mmquant.MinMaxObserver'), name='nearest')]


def run_tool(script: str, *args) -> None:
    """``python tools/<script> <args>``; an error for the user raises SystemExit with its text."""
    argv, rank = sys.argv, os.environ.get('LOCAL_RANK')
    try:
        sys.argv = [script, *map(str, args)]
        with contextlib.chdir(ROOT) if hasattr(contextlib, 'chdir') else _chdir(ROOT):
            runpy.run_path(str(ROOT / 'tools' / script), run_name='__main__')
    finally:
        sys.argv = argv
        if rank is None:
            os.environ.pop('LOCAL_RANK', None)


@contextlib.contextmanager
def _chdir(path):
    before = os.getcwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


def results_of(work_dir) -> dict:
    return json.loads((Path(work_dir) / 'results.json').read_text())


def quantized_of(work_dir) -> dict:
    return read_quantized(str(Path(work_dir) / 'quantized.pth'))


def without_seconds(results: dict) -> list:
    """Stages and records of a run, but for what depends on the clock."""
    return [{k: v for k, v in s.items() if not k.endswith('seconds')} for s in results['stages']] + results['records']


def log_of(work_dir) -> str:
    return '\n'.join(p.read_text() for p in sorted(Path(work_dir).glob('*/*.log')))


def runner_of(work_dir, steps=STEPS, hooks=(), images=24, launcher='none', **loop):
    """A Runner of the digits config on few images, with steps of a second."""
    cfg = load_config(CONFIG)
    cfg.train_cfg.steps, cfg.work_dir, cfg.custom_hooks = list(steps), str(work_dir), list(hooks)
    cfg.train_cfg.update(loop)
    cfg.train_cfg.dataloader.dataset.indices = images
    cfg.val_dataloader.dataset.indices = 20
    cfg.randomness, cfg.launcher = dict(seed=5), launcher
    cfg.experiment_name = f'loops_{work_dir.name}'  # by default the second it started in
    return build_runner(calibration_config(cfg))
