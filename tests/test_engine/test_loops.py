"""The calibration loop and the evaluation hook in a Runner, without the command line."""
import json

import pytest
import torch
from mmengine.hooks import Hook
from tools_for_tests import CONFIG, STEPS, log_of, runner_of

from mmquant.algorithms import Step
from mmquant.apis.config import load_config
from mmquant.engine import CalibrationLoop, EvaluationHook
from mmquant.engine.evaluation import unlike_evaluations
from mmquant.models.checkpoint import read_quantized
from mmquant.registry import HOOKS, LOOPS


class Spy(Hook):
    """Notes the hook points."""

    def __init__(self) -> None:
        self.seen = []

    def before_train(self, runner) -> None:
        self.seen.append('before_train')

    def before_calibration(self, runner, context) -> None:
        self.seen.append(('before_calibration', [len(c) for c in context.chunks], context.seed, context.amp))

    def after_calibration_step(self, runner, context, step: Step, seconds: float) -> None:
        self.seen.append((step.name, runner.iter, seconds >= 0))

    def after_calibration(self, runner, context, path: str) -> None:
        self.seen.append(('after_calibration', path))

    def after_train(self, runner) -> None:
        self.seen.append('after_train')


def test_hook_points_and_chunks(tmp_path):
    spy = Spy()
    runner = runner_of(tmp_path, chunk_size=10)
    runner.register_hook(spy)
    model = runner.train()
    path = str(tmp_path / 'quantized.pth')
    assert spy.seen == [
        'before_train', ('before_calibration', [10, 10, 4], 5, False), ('FoldBatchNorm', 1, True),
        ('InsertQuantizers', 2, True), ('nearest_weights', 3, True), ('nearest', 4, True), ('after_calibration', path),
        'after_train']
    assert model is runner.model and runner.train_loop.max_iters == 4 == runner.train_loop.iter
    saved = read_quantized(path)
    assert saved['meta']['seed'] == 5 and "type='mmquant.QuantizedModel'" in saved['meta']['config']
    assert not (tmp_path / 'results.json').exists()


def test_images_are_preprocessed(tmp_path):
    runner = runner_of(tmp_path)
    loop = CalibrationLoop(runner, runner.cfg.train_dataloader, STEPS, chunk_size=7)
    chunks, samples = loop.collect(runner.model)
    assert [len(x) for x in samples] == [len(x) for x in chunks]
    dataset = loop.source.dataset
    assert [int(x.gt_label) for x in samples[1]] == [int(dataset[i]['data_samples'].gt_label) for i in range(7, 14)]
    images = torch.cat(chunks)
    assert [len(c) for c in chunks] == [7, 7, 7, 3] and images.shape == (24, 3, 32, 32)
    assert abs(images.mean()) < 0.3 and abs(images.std() - 1) < 0.3 and images.dtype == torch.float32
    assert chunks[0].is_contiguous(memory_format=torch.channels_last)


def test_images_that_do_not_batch(tmp_path):
    runner = runner_of(tmp_path)
    sizes = dict(type='RandomChoiceResize', scales=[(16, 16), (32, 24)], keep_ratio=False)
    runner.cfg.train_dataloader.dataset.pipeline[0] = sizes
    stacking = dict(runner.cfg.train_dataloader, collate_fn=dict(type='default_collate'))
    with pytest.raises(ValueError, match=r'the calibration images have different sizes and do not batch: set '
                       r'train_cfg\.dataloader\.batch_size=1, or let the pipeline resize or pad them to one size'):
        CalibrationLoop(runner, stacking, STEPS).collect(runner.model)
    loader = dict(runner.cfg.train_dataloader, batch_size=1)
    chunks, samples = CalibrationLoop(runner, loader, STEPS, chunk_size=5).collect(runner.model)
    assert {tuple(c.shape[2:]) for c in chunks} == {(16, 16), (24, 32)} and sum(map(len, chunks)) == 24
    assert max(map(len, chunks)) == 5 and [len(x) for x in samples] == [len(x) for x in chunks]


def test_chosen_stages(tmp_path):
    runner_of(tmp_path, hooks=[dict(type='mmquant.EvaluationHook', stages=['nearest'])]).train()
    results = json.loads((tmp_path / 'results.json').read_text())
    assert [s['name'] for s in results['stages']] == ['nearest', 'final'] and results['seed'] == 5
    assert results['stages'][0]['metrics'] == results['stages'][1]['metrics']
    scalars = [json.loads(line) for line in next(tmp_path.glob('*/vis_data/scalars.json')).read_text().splitlines()]
    assert any('nearest/accuracy/top1' in s for s in scalars) and any('final/accuracy/top1' in s for s in scalars)


def test_stages_are_checked_and_final_is_not_measured_twice(tmp_path, monkeypatch):
    hook = dict(type='mmquant.EvaluationHook', stages=['nerest'])
    with pytest.raises(ValueError, match=r"EvaluationHook\.stages: no stage 'nerest'; did you mean 'nearest'\?"):
        runner_of(tmp_path / 'wrong', hooks=[hook]).train()
    runner = runner_of(tmp_path, hooks=[dict(hook, stages=['nearest'])])
    calls, run = [], runner.val_loop.run
    monkeypatch.setattr(runner.val_loop, 'run', lambda: calls.append(1) or run())
    runner.train()
    assert len(calls) == 1 and [s['name'] for s in runner.train_loop.stages] == ['nearest', 'final']
    runner = runner_of(tmp_path / 'none', hooks=[dict(hook, stages=[], final=False)])
    runner.train()
    assert runner.train_loop.stages == []


def test_differing_evaluations_are_told(tmp_path):
    """The test set of tools/test.py is another one than that of the run."""
    runner_of(tmp_path, hooks=[dict(type='mmquant.EvaluationHook', stages=[], final=False)]).train()
    assert "differ in dataloader.dataset.indices: 20 instead of None" in log_of(tmp_path)
    cfg = load_config(CONFIG)
    assert unlike_evaluations(cfg) is None
    cfg.test_evaluator = dict(type='Accuracy', topk=(1, ))
    assert 'evaluator.topk: ' in unlike_evaluations(cfg)


def test_the_final_stage_is_the_whole_checkpoint(tmp_path):
    """Also when the last step looked at weights alone."""
    steps = [*STEPS, STEPS[2] | dict(name='again')]
    runner = runner_of(tmp_path, steps, hooks=[dict(type='mmquant.EvaluationHook')])
    model = runner.train()
    stages = {s['name']: s['metrics'] for s in json.loads((tmp_path / 'results.json').read_text())['stages']}
    assert model.ready == (True, True)
    assert stages['final'] == stages['nearest'] and stages['again'] == stages['nearest_weights']


def test_overlap_that_cannot_be_checked_is_said(tmp_path, monkeypatch):
    from mmquant.engine.sources import loader_images

    def fails(a, b):
        raise ValueError('no identity')

    monkeypatch.setattr(loader_images, 'overlap', fails)
    runner_of(tmp_path, hooks=[dict(type='mmquant.EvaluationHook', stages=[])]).train()
    assert 'Could not check whether calibration and evaluation images overlap: no identity' in log_of(tmp_path)


@pytest.mark.parametrize('loop, text', [(dict(chunk_size=0), 'train_cfg.chunk_size must be at least 1, got 0'),
                                        (dict(steps=3), 'train_cfg.steps must be a dict of at least one step')])
def test_wrong_arguments(tmp_path, loop, text):
    with pytest.raises(ValueError, match=text):
        CalibrationLoop(None, None, **{'steps': STEPS, **loop})


def test_registered():
    assert LOOPS.get('mmquant.CalibrationLoop') is CalibrationLoop
    assert HOOKS.get('mmquant.EvaluationHook') is EvaluationHook
