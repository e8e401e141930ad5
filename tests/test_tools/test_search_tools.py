"""LAPQ on the command line: resumption, the landscape, the benchmark."""
import json

import pytest
import torch
from tools_for_tests import ROOT, log_of, quantized_of, results_of, run_tool, without_seconds

from mmquant.engine.progress_file import ProgressFile

CONFIG = str(ROOT / 'configs/lapq/resnet18_w4a4_digits.py')
DATA = ('train_cfg.dataloader.dataset.indices=16', 'val_dataloader.dataset.indices=20',
        'test_dataloader.dataset.indices=20')
TINY = (*DATA, 'train_cfg.steps.nearest.norms=[2,3,4]', 'train_cfg.steps.nearest.init_images=4',
        'train_cfg.steps.joint.num_images=4', 'train_cfg.steps.joint.searcher.num_sweeps=2')


class Killed(BaseException):
    """Stands for kill -9."""


def quantize(work_dir, *args) -> None:
    run_tool('ptq.py', CONFIG, '--work-dir', work_dir, *args, '--cfg-options', *TINY)


def test_killed_resumed_and_evaluated_again(monkeypatch, tmp_path):
    """Killed in the sweep of norms and between the phases of the search: the same result to the bit."""
    quantize(tmp_path / 'whole')
    original, left = ProgressFile.save, [3]

    def save(self, *args):
        original(self, *args)
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    with monkeypatch.context() as m:
        m.setattr(ProgressFile, 'save', save)
        with pytest.raises(Killed):
            quantize(tmp_path / 'killed')
        left[0] = 4
        with pytest.raises(Killed):
            quantize(tmp_path / 'killed', '--resume')
    assert torch.load(tmp_path / 'killed/progress.pth', weights_only=True)['step'] >= 2
    quantize(tmp_path / 'killed', '--resume')
    a, b = (quantized_of(tmp_path / name)['state_dict'] for name in ('whole', 'killed'))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    results = results_of(tmp_path / 'whole')
    assert without_seconds(results_of(tmp_path / 'killed')) == without_seconds(results)
    assert [s['name'] for s in results['stages']] == ['float', 'nearest', 'joint', 'final']
    run_tool('test.py', CONFIG, tmp_path / 'killed/quantized.pth', '--work-dir', tmp_path / 'test', '--out',
             tmp_path / 'm.json', '--cfg-options', *DATA)
    assert json.loads((tmp_path / 'm.json').read_text()) == results['stages'][-1]['metrics']


def test_landscape(tmp_path):
    run_tool('analysis_tools/loss_landscape.py', CONFIG, '--work-dir', tmp_path, '--bits', 2, '--norms', 2, 4,
             '--points', 2, '--hessian', 2, '--num-images', 4, '--cfg-options', *DATA)
    result, = json.loads((tmp_path / 'landscape.json').read_text())
    assert result['bits'] == 2 and 0 <= result['coupling'] <= 1 and len(result['hessian']) == 2
    assert {p.name for p in tmp_path.glob('*.png')} == {f'{n}_2bit.png' for n in ('norms', 'surface', 'hessian')}
    scalars = [json.loads(line) for path in tmp_path.glob('*/vis_data/scalars.json') for line in path.open()]
    assert any('landscape/gaussian_log10' in s for s in scalars)
    with pytest.raises(SystemExit, match='--points must be at least 2, and --hessian 0 or at least 2'):
        run_tool('analysis_tools/loss_landscape.py', CONFIG, '--work-dir', tmp_path, '--hessian', 1)


def test_benchmark(tmp_path):
    run_tool('analysis_tools/benchmark_search.py', CONFIG, '--work-dir', tmp_path, '--num-images', 4, '--norms', 3,
             '--max-evaluations', 20, '--others', '--cfg-options', *DATA)
    found = json.loads((tmp_path / 'benchmark_search.json').read_text())
    whole, cached = found['Powell, whole network'], found['Powell, cached prefixes']
    assert whole['loss'] == cached['loss'] and whole['evaluations'] == cached['evaluations']
    assert cached['image_forwards'] <= whole['image_forwards'] == 4 * whole['evaluations']
    assert "at Powell's loss behind" in log_of(tmp_path)
