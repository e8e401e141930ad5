"""Two processes on a CPU (gloo): ranges of one process, agreeing ranks, one that writes, resuming on another number."""
import multiprocessing
import os
import socket
import traceback

import pytest
import torch
from detectors_for_tests import needs_detectors
from reconstruction_for_tests import ST, activations, joint, weights
from tools_for_tests import ROOT, STEPS, quantized_of, results_of, runner_of

from mmquant.algorithms.step import Step
from mmquant.apis.config import build_runner, calibration_config, load_config
from mmquant.datasets import digits_det
from mmquant.engine import CalibrationLoop
from mmquant.engine.loops import calibration_loop as loops
from mmquant.engine.progress_file import ProgressFile
from mmquant.engine.sources import source
from mmquant.models.checkpoint import write_atomically

LP = dict(type='mmquant.LpNormObserver', p=2.4, num_candidates=20, max_samples=3000)
RANGES = [*STEPS[:2], dict(type='mmquant.InitWeightRange', observer=LP),
          dict(type='mmquant.InitActivationRange', observer=LP, num_images=16, name='nearest')]
TUNED = [*RANGES, weights(num_iters=3, batch_size=8), activations(num_iters=3, batch_size=8)]
AFFINE = [*STEPS[:2], dict(type='mmquant.InsertOutputAffine', layers='all'), *RANGES[2:],
          joint(dict(weight=1e-3, affine=1e-3, bias=1e-3, activation_scale=1e-3), ST, num_iters=3, batch_size=8,
                tail=dict(end='stage'), hooks={}),
          dict(type='mmquant.FoldOutputAffine'), dict(type='mmquant.CorrectBias')]
SOLVED = [*RANGES, dict(type='mmquant.SolveWeights')]
SEARCHED = [*STEPS[:2],
            dict(type='mmquant.NormSweep', norms=(2, 3, 4), observer=dict(LP, p=2), num_images=32, init_images=16),
            dict(type='mmquant.JointSearch', searcher=dict(type='mmquant.PatternSearch', num_sweeps=1), num_images=32),
            dict(type='mmquant.JointSearch', searcher=dict(type='mmquant.GradientSearch', num_steps=4, batch_size=16),
                 name='gradient')]
HOOKS = [dict(type='mmquant.EvaluationHook')]


@pytest.fixture(autouse=True)
def fast_convolutions():
    """As users have them (see conftest.py): without oneDNN the last bits depend on how images are shared out."""
    with torch.backends.mkldnn.flags(enabled=True):
        yield


class Killed(BaseException):
    """Stands for kill -9, in all processes at once."""


@pytest.fixture(scope='module', autouse=True)
def imported():
    """Forks have what this process has; mmquant is there already, as it must be before mmpretrain."""
    import mmpretrain.datasets
    import mmpretrain.evaluation
    import mmpretrain.models  # noqa: F401


def detector_runner(work_dir, steps, hooks, images, launcher, resume):
    """A Runner of the embedded RetinaNet on four scenes of one size, with their boxes; without evaluation."""
    cfg = load_config(str(ROOT / 'configs/lapq/retinanet_w4a4_digitsdet.py'))
    dataset = cfg.train_cfg.dataloader.dataset
    dataset.update(indices=4, data_root=str(work_dir.parent / 'scenes'))
    dataset.pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True),
                        dict(type='Resize', scale=(128, 128), keep_ratio=False),
                        dict(type='PackDetInputs', meta_keys=('img_id', 'ori_shape', 'img_shape'))]
    cfg.train_cfg.update(steps=steps, resume=resume)
    cfg = calibration_config(cfg)
    for part in ('val', 'test'):
        cfg[f'{part}_dataloader'] = cfg[f'{part}_evaluator'] = cfg[f'{part}_cfg'] = None
    cfg.work_dir, cfg.custom_hooks, cfg.launcher = str(work_dir), [], launcher
    cfg.randomness, cfg.experiment_name = dict(seed=5), f'loops_{work_dir.name}'
    return build_runner(cfg)


def child(rank: int, world: int, port: int, work_dir, steps, saves, resume, make) -> None:
    """One rank of a run; it must never return into the test session."""
    code = 1
    try:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR='127.0.0.1',
                          MASTER_PORT=str(port))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if saves:
            original, count = ProgressFile.save, [0]

            def save(self, *args):
                original(self, *args)
                count[0] += 1
                if count[0] == saves:
                    raise Killed

            ProgressFile.save = save
        launcher = 'pytorch' if world > 1 else 'none'
        runner = make(work_dir, steps, HOOKS, images=32, launcher=launcher, resume=resume)
        try:
            model = runner.train()
            write_atomically(str(work_dir / f'rank{rank}.pth'), dict(model.architecture.state_dict()))
        except Killed:
            pass
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def run(world: int, work_dir, steps, saves: int = 0, resume: bool = False, make=runner_of):
    work_dir.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context('fork')
    ranks = [fork.Process(target=child, args=(r, world, port, work_dir, steps, saves, resume, make))
             for r in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(400)
        process.kill()
    assert [process.exitcode for process in ranks] == [0] * world
    return work_dir


def state(work_dir, name: str) -> dict:
    return torch.load(work_dir / name, weights_only=True)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_ranges_are_those_of_one_process(tmp_path):
    """Scattered images, gathered statistics: to 1e-6, with an observer that samples."""
    one, two = (run(n, tmp_path / str(n), RANGES) for n in (1, 2))
    a, b = (quantized_of(d)['state_dict'] for d in (one, two))
    scales = [k for k in a if k.endswith('scale')]
    assert a.keys() == b.keys() and len(scales) == 39
    assert all(torch.allclose(a[k].double(), b[k].double(), rtol=1e-6, atol=0) for k in a)
    assert same(state(two, 'rank0.pth'), state(two, 'rank1.pth'))
    first, second = (results_of(d)['stages'] for d in (one, two))
    assert [s['metrics'] for s in first] == [s['metrics'] for s in second]
    meta = quantized_of(two)['meta']
    assert meta['calibration']['images'] == 32 and len(list(two.glob('*/*.log'))) == 1


@pytest.mark.slow
@pytest.mark.parametrize('steps, count', [(TUNED, 19), (AFFINE, 10), (SOLVED, 21)], ids=['brecq', 'repapq', 'gptq'])
def test_reconstruction_agrees_and_is_reproducible(tmp_path, steps, count):
    one, again = (run(2, tmp_path / str(n), steps) for n in (1, 2))
    assert same(state(one, 'rank0.pth'), state(one, 'rank1.pth'))
    assert same(quantized_of(one)['state_dict'], quantized_of(again)['state_dict'])
    units = [r for r in results_of(one)['records'] if r['kind'] == 'unit']
    assert len(units) == count and any(u['flipped'] > 0 for u in units if 'flipped' in u)


@pytest.mark.slow
def test_search_agrees_and_is_reproducible(tmp_path):
    """LAPQ: the processes go the same way, each time, and it is that of one process."""
    alone, two, again = (run(n, tmp_path / name, SEARCHED) for n, name in ((1, 'a'), (2, 'b'), (2, 'c')))
    assert same(state(two, 'rank0.pth'), state(two, 'rank1.pth'))
    assert same(quantized_of(two)['state_dict'], quantized_of(again)['state_dict'])
    one, joint = ([r for r in results_of(d)['records'] if r['kind'] in ('norm', 'search')] for d in (alone, two))
    *one, gradient = one
    *joint, apart = joint  # the gradient steps of two processes draw other images
    assert [r.get('p') for r in one] == [r.get('p') for r in joint]
    assert [r['loss'] for r in joint] == pytest.approx([r['loss'] for r in one], rel=1e-6)
    for key in ('evaluations', 'image_forwards', 'image_forwards_saved'):
        assert joint[-1][key] == pytest.approx(one[-1][key])
    assert joint[-1]['loss'] < joint[-1]['start_loss'] and apart['loss'] <= apart['start_loss']
    assert apart['image_forwards'] == pytest.approx(gradient['image_forwards'])


@needs_detectors
@pytest.mark.slow
def test_training_loss_agrees_and_is_reproducible(tmp_path, monkeypatch):
    """Each process has the boxes of its own images; all see one sum of the losses and go one way."""
    monkeypatch.setattr(digits_det, 'NUM_IMAGES', dict(train=1, calibration=4, test=1))
    digits_det.DigitsDetDataset(split='calibration', data_root=str(tmp_path / 'scenes'))  # made before two need it
    objective = dict(type='mmquant.TrainingLoss')
    steps = [*STEPS[:2], dict(type='mmquant.NormSweep', norms=(2, 3), observer=dict(LP, p=2), num_images=4,
                              init_images=4, objective=objective),
             dict(type='mmquant.JointSearch', searcher=dict(type='mmquant.PatternSearch', num_sweeps=1), num_images=4,
                  objective=objective)]
    two, again = (run(2, tmp_path / name, steps, make=detector_runner) for name in ('a', 'b'))
    assert same(state(two, 'rank0.pth'), state(two, 'rank1.pth'))
    assert same(quantized_of(two)['state_dict'], quantized_of(again)['state_dict'])
    search, = [r for r in quantized_of(two)['meta']['records'] if r['kind'] == 'search']
    assert search['objective'] == 'TrainingLoss' and 0 < search['loss'] <= search['start_loss']


@pytest.mark.slow
@pytest.mark.parametrize('before, after', [(2, 1), (1, 2)])
def test_resumed_on_another_number_of_processes(tmp_path, before, after):
    work_dir = run(before, tmp_path / 'run', TUNED, saves=6)
    assert (work_dir / 'progress.pth').exists() and not (work_dir / 'quantized.pth').exists()
    run(after, work_dir, TUNED, resume=True)
    stages = [s['name'] for s in results_of(work_dir)['stages']]
    assert stages == ['float', 'nearest_weights', 'nearest', 'weights', 'activations', 'final']


def test_processes_with_other_images_say_so(monkeypatch):
    """Sizes that differ, or images that one process had to leave out: an error in all of them, not a wait."""
    chunks = [torch.zeros(4, 3, 8, 8), torch.zeros(1, 3, 6, 8)]
    source.check_shares(chunks)
    monkeypatch.setattr(source, 'gather_list', lambda own: [*own, [(4, 3, 8, 8), (1, 3, 6, 8)]])
    source.check_shares(chunks)
    monkeypatch.setattr(source, 'gather_list', lambda own: [*own, [(5, 3, 8, 8)]])
    text = r'\(process 0: 4 of 3x8x8, 1 of 3x6x8; process 1: 5 of 3x8x8\); resize or pad them'
    with pytest.raises(ValueError, match=text):
        source.check_shares(chunks)
    monkeypatch.setattr(source, 'gather_list', lambda own: [*own, [(2, 7)]])
    with pytest.raises(ValueError, match=r'\(process 0: 3 of 7; process 1: 2 of 7\)'):  # rows of features
        source.check_shares([torch.zeros(3, 7)])


class Alone(Step):
    """Looks at the images of its own process."""
    distributed = False


def test_steps_that_need_one_process_say_so(monkeypatch):
    monkeypatch.setattr(loops, 'alone', lambda: False)
    with pytest.raises(ValueError, match='the steps own do not run in several processes; start tools/ptq.py without'):
        CalibrationLoop(None, None, [*STEPS, dict(type=Alone, name='own')])
