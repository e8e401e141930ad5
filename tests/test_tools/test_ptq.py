"""The whole command line: quantize, evaluate again, look before, resume."""
import json
import subprocess
import sys

import mmengine
import pytest
import torch
from models_for_tests import full_disk
from tools_for_tests import CONFIG, ROOT, TINY, log_of, quantized_of, results_of, run_tool, without_seconds

from mmquant.engine.progress_file import ProgressFile

STAGES = ['float', 'nearest_weights', 'nearest', 'weights', 'activation_ranges', 'activations', 'final']
KEYS = {'config', 'seed', 'stages', 'size_mb', 'bops', 'peak_memory_bytes', 'checkpoint', 'seconds', 'cpu_seconds',
        'records', 'agreement'}


def quantize(work_dir, *args, options=TINY, seed=3) -> None:
    run_tool('ptq.py', CONFIG, '--work-dir', work_dir, '--seed', seed, '--no-report', *args, '--cfg-options', *options)


def evaluate(work_dir, *args) -> None:
    run_tool('test.py', CONFIG, work_dir / 'quantized.pth', *args)


def same_state(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    """Work dir of an uninterrupted tiny run with seed 3."""
    work_dir = tmp_path_factory.mktemp('ptq') / 'run'
    quantize(work_dir)
    return work_dir


def test_fresh_process(tmp_path):
    """The whole way in a process of its own; then tools/test.py agrees to the last digit."""
    work_dir = tmp_path / 'run'
    command = [sys.executable, 'tools/ptq.py', CONFIG, '--work-dir', str(work_dir), '--cfg-options', *TINY]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    results = results_of(work_dir)
    assert set(results) == KEYS and results['seed'] == 0
    assert results['config'] == 'configs/brecq/resnet18_w2a4_digits.py'
    assert [s['name'] for s in results['stages']] == STAGES
    assert all(set(s) == {'name', 'metrics', 'seconds', 'cpu_seconds'} for s in results['stages'])
    top1 = {s['name']: s['metrics']['accuracy/top1'] for s in results['stages']}
    assert top1['float'] > 98 and 10 < top1['nearest_weights'] < 90 and top1['final'] == top1['activations']
    assert 0.15 < results['size_mb'] < 0.25 and 0.3e9 < results['bops'] < 0.5e9
    assert 50e6 < results['peak_memory_bytes'] < 5e9 and results['checkpoint'] == str(work_dir / 'quantized.pth')
    steps = [s for s in results['stages'] if s['name'] not in ('float', 'final')]
    assert all(s['seconds'] > 0 and s['cpu_seconds'] > 0 for s in steps)
    units = [r for r in results['records'] if r['kind'] == 'unit']
    assert len([r for r in units if r['step'] == 'weights']) == 9 and all(r['held_tuned'] >= 0 for r in units)
    assert 'Coverage: 21 of 21 layers with weights are quantized' in log_of(work_dir)
    assert results['agreement']['reference'] == 'original' and 0 < results['agreement']['sqnr_db'] < 40
    assert 'Outputs against the original float model on ' in log_of(work_dir)
    last = log_of(work_dir).split('Outputs against the original')[1]  # four steps decide nothing
    assert f'Undecided roundings: weights: {max(u.get("undecided", 0) for u in units):.0%} of ' in last
    assert (work_dir / 'report.html').read_text().count('<svg') == 7

    evaluate(work_dir, '--work-dir', tmp_path / 'test', '--out', tmp_path / 'm.json', '--cfg-options', *TINY)
    assert json.loads((tmp_path / 'm.json').read_text()) == results['stages'][-1]['metrics']


def test_same_seed_is_bit_identical(tiny, tmp_path):
    quantize(tmp_path)
    assert same_state(quantized_of(tmp_path)['state_dict'], quantized_of(tiny)['state_dict'])
    assert without_seconds(results_of(tmp_path)) == without_seconds(results_of(tiny))
    assert results_of(tmp_path)['seed'] == 3


class Killed(BaseException):
    """Stands for kill -9."""


def run_and_kill(monkeypatch, work_dir, saves: int, *args):
    """A run that dies right behind the given number of saved states."""
    original, count = ProgressFile.save, [0]

    def save(self, *a):
        original(self, *a)
        count[0] += 1
        if count[0] == saves:
            raise Killed

    with monkeypatch.context() as m, pytest.raises(Killed):
        m.setattr(ProgressFile, 'save', save)
        quantize(work_dir, *args)


def test_killed_and_resumed_is_bit_identical(monkeypatch, tiny, tmp_path):
    """Killed behind a weight unit, again behind an activation unit, again behind the last one."""
    work_dir = tmp_path / 'killed'
    run_and_kill(monkeypatch, work_dir, 5)
    assert not (work_dir / 'quantized.pth').exists()
    run_and_kill(monkeypatch, work_dir, 12, '--resume')
    run_and_kill(monkeypatch, work_dir, 7, '--resume')
    state = torch.load(work_dir / 'progress.pth', weights_only=True)
    assert (state['step'], state['unit']) == (7, -1) and not (work_dir / 'quantized.pth').exists()
    quantize(work_dir, '--resume')
    assert same_state(quantized_of(work_dir)['state_dict'], quantized_of(tiny)['state_dict'])
    assert quantized_of(work_dir)['plan'] == quantized_of(tiny)['plan']
    assert without_seconds(results_of(work_dir)) == without_seconds(results_of(tiny))


@pytest.mark.slow
def test_full_disk_and_resumed_is_bit_identical(monkeypatch, tiny, tmp_path):
    """The state of the unit before stays whole, the error says how to go on, and nothing is lost."""
    work_dir, original, count = tmp_path / 'full', ProgressFile.save, [0]

    def save(self, *args):
        count[0] += 1
        if count[0] < 6:
            return original(self, *args)
        with full_disk(500_000):
            return original(self, *args)

    with monkeypatch.context() as m, pytest.raises(SystemExit, match=r'cannot write .*progress\.pth .*free some disk '
                                                   r'space or choose another --work-dir\. The previous file'):
        m.setattr(ProgressFile, 'save', save)
        quantize(work_dir)
    state = torch.load(work_dir / 'progress.pth', weights_only=True)
    assert state['step'] == 4 and not list(work_dir.glob('*.tmp')) and not (work_dir / 'quantized.pth').exists()
    quantize(work_dir, '--resume')
    assert same_state(quantized_of(work_dir)['state_dict'], quantized_of(tiny)['state_dict'])
    assert without_seconds(results_of(work_dir)) == without_seconds(results_of(tiny))


def test_resuming_a_finished_run_gives_it_again(tiny, tmp_path):
    work_dir = tmp_path / 'again'
    quantize(work_dir, '--resume', tiny / 'progress.pth')
    assert same_state(quantized_of(work_dir)['state_dict'], quantized_of(tiny)['state_dict'])
    assert without_seconds(results_of(work_dir)) == without_seconds(results_of(tiny))


@pytest.mark.parametrize('change, what', [
    (('train_cfg.steps.weights.train.rounding.lr=0.002',),
     r'another config \(steps\.weights\.train\.rounding\.lr: 0\.01 instead of 0\.002\)'),
    (('model.quantizer.weight.bits=3',), r'another config \(quantizer\.weight\.bits: 2 instead of 3\)'),
    (('model.float_checkpoint=random',), r"other float weights \(float_checkpoint: .* instead of 'random'\)"),
    (('train_cfg.dataloader.dataset.indices=31',), r'other calibration images \(images: 32 instead of 31\)'),
    (('val_dataloader.dataset.indices=99', 'test_dataloader.dataset.indices=99'),
     r'another evaluation \(val_dataloader\.dataset\.indices: 100 instead of 99, val_dataloader\.list_sha256: .*\)'),
    (('val_evaluator.topk=(1,2)', 'test_evaluator.topk=(1,2)'),
     r'another evaluation \(val_evaluator\.topk\.1: 5 instead of 2\)'),
])
def test_another_run_is_not_resumed(tiny, tmp_path, change, what):
    options = [o for o in TINY if o.split('=')[0] != change[0].split('=')[0]]
    with pytest.raises(SystemExit, match=rf'cannot resume from .*progress\.pth: it was made with {what}; '
                       'use the same config, model, float weights and images, or start without --resume'):
        quantize(tmp_path, '--resume', tiny / 'progress.pth', options=[*options, *change])


def test_another_seed_is_not_resumed(tiny, tmp_path):
    with pytest.raises(SystemExit, match=r'made with another config \(seed: 3 instead of 4\)'):
        quantize(tmp_path, '--resume', tiny / 'progress.pth', seed=4)


def test_nothing_to_resume(tmp_path):
    with pytest.raises(SystemExit, match=r'nothing to resume: .*progress\.pth does not exist; start without --resume'):
        quantize(tmp_path, '--resume')


def test_evaluation_of_the_checkpoint(tiny, tmp_path):
    evaluate(tiny, '--work-dir', tmp_path, '--out', tmp_path / 'm.json', '--cfg-options', *TINY)
    metrics = json.loads((tmp_path / 'm.json').read_text())
    assert metrics == results_of(tiny)['stages'][-1]['metrics']
    evaluate(tiny, '--work-dir', tmp_path, '--out', tmp_path / 'p.pkl', '--out-item', 'pred', '--cfg-options', *TINY)
    predictions = mmengine.load(tmp_path / 'p.pkl')
    right = sum(int(p['pred_label']) == int(p['gt_label']) for p in predictions)
    assert len(predictions) == 100 and right == pytest.approx(metrics['accuracy/top1'])


def test_dry_run(tiny, tmp_path, capfd):
    """Units, bits and cost without data and weights; size and bit operations are those of the real run."""
    quantize(tmp_path, '--dry-run', options=['model.float_checkpoint=no/such.pth'])
    report = json.loads((tmp_path / 'dry_run.json').read_text())
    assert [u['name'] for u in report['units']] == [
        'backbone.conv1', *(f'backbone.layer{i}.{j}' for i in (1, 2, 3, 4) for j in (0, 1)), 'head']
    assert [u['kind'] for u in report['units']] == ['layer'] + ['block'] * 8 + ['layer']
    assert report['units'][3]['bits']['backbone.layer2.0.downsample.0'] == dict(w=2, a=4)
    assert report['units'][1]['bits']['backbone.layer1.0.conv1'] == dict(w=2, a=8)
    assert len(report['layers']) == 21 and report['params'] == sum(x['params'] for x in report['layers'])
    real = results_of(tiny)
    assert (report['size_mb'], report['bops']) == (real['size_mb'], real['bops']) and report['estimated_seconds'] > 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ['dry_run.json']
    out = ''.join(capfd.readouterr())
    assert 'Units: 10 (2 layer, 8 block)' in out and 'Coverage: 21 of 21' in out and 'Estimated time' in out


def test_calibrating_on_evaluation_images_is_loud(tmp_path):
    few = [o for o in TINY if 'val' not in o]
    options = [*few, 'train_cfg.dataloader.dataset.split=test', 'val_dataloader.dataset.indices=20']
    quantize(tmp_path, options=options)
    text = log_of(tmp_path)
    assert 'WARNING: 20 of the calibration images are also EVALUATION images' in text
    assert 'must not be published; calibrate on training images' in text


def test_clean_run_has_no_such_warning(tiny):
    assert 'EVALUATION images' not in log_of(tiny)


def test_float_model(tiny, tmp_path):
    """tools/test.py --float gives the run's own float figure; without a checkpoint or with both it says so."""
    run_tool('test.py', CONFIG, '--float', '--work-dir', tmp_path, '--out', tmp_path / 'm.json', '--cfg-options', *TINY)
    assert json.loads((tmp_path / 'm.json').read_text()) == results_of(tiny)['stages'][0]['metrics']
    assert not list(tmp_path.glob('record*.json'))
    for arguments in ((), ('--float', tiny / 'quantized.pth')):
        with pytest.raises(SystemExit, match='give the checkpoint of a quantized model, or --float'):
            run_tool('test.py', CONFIG, *arguments)


@pytest.mark.parametrize('given, text', [
    (('wieghts=3',), r"num_iters: unknown key 'wieghts'; did you mean 'weights'\?"),
    (('weights=x',), '--num-iters: expected a number, or names with numbers'),
    (('3', 'weights=2'), 'expected a number')])
def test_num_iters_by_name(tmp_path, given, text):
    with pytest.raises(SystemExit, match=text):
        quantize(tmp_path, '--num-iters', *given)


def test_num_iters_for_all(tmp_path):
    quantize(tmp_path, '--dry-run', '--num-iters', '1', options=['model.float_checkpoint=no/such.pth'])
    few = json.loads((tmp_path / 'dry_run.json').read_text())['estimated_seconds']
    quantize(tmp_path, '--dry-run', options=['model.float_checkpoint=no/such.pth'])
    assert few < json.loads((tmp_path / 'dry_run.json').read_text())['estimated_seconds'] / 50


@pytest.mark.parametrize('script', ['ptq.py', 'test.py'])
def test_help(script, capsys):
    with pytest.raises(SystemExit, match='0'):
        run_tool(script, '--help')
    text = capsys.readouterr().out
    expected = ['--work-dir', '--cfg-options', '--launcher', '--local-rank', '--local_rank', '--amp']
    own = dict([('ptq.py', ['--resume', '--dry-run', '--seed']), ('test.py', ['--out', '--out-item', '--show-dir'])])
    expected += own[script]
    assert all(option in text for option in expected)
