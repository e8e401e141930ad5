"""The training loss of a detector as objective: its value, cached prefixes, what it cannot be used for."""
import pytest
import torch
from detectors_for_tests import ROOT, context_of, detector, needs_detectors
from models_for_tests import images
from reconstruction_for_tests import run, weights
from tools_for_tests import results_of, run_tool

from mmquant.apis.config import load_config
from mmquant.datasets import digits_det
from mmquant.losses import TrainingLoss
from mmquant.losses.objectives import build_objective
from mmquant.models.detection import plain_samples
from mmquant.registry import OBJECTIVES
from mmquant.search import ClipProblem
from mmquant.utils.building import ConfigError

pytestmark = needs_detectors


def samples_with_boxes(chunk, boxes=((8, 8, 40, 44), (30, 20, 60, 62))):
    """Data samples with boxes of classes 1, 2, ...; the second image shows the first box only."""
    from mmengine.structures import InstanceData
    samples = plain_samples(chunk)
    for i, sample in enumerate(samples):
        found = torch.tensor(boxes[:len(boxes) - i], dtype=torch.float).reshape(-1, 4)
        sample.gt_instances = InstanceData(bboxes=found, labels=torch.arange(1, len(found) + 1))
    return samples


def samples_without(chunk):
    """As from a pipeline that loads no annotations."""
    from mmengine.structures import InstanceData
    samples = plain_samples(chunk)
    for sample in samples:
        sample.gt_instances = InstanceData()
    return samples


def calibration_with(samples_of, name='retinanet'):
    chunks = images(3, 3, 64, 64).split(2)
    context = context_of(detector(name), chunks)
    context.samples = samples_of and [samples_of(chunk) for chunk in chunks]
    return context


@pytest.fixture(scope='module')
def calibration():
    return calibration_with(samples_with_boxes)


def test_the_value_is_that_of_training(calibration):
    objective = build_objective(calibration, dict(type='mmquant.TrainingLoss'), 'test')
    assert isinstance(objective, TrainingLoss) and OBJECTIVES.get('mmquant.TrainingLoss') is TrainingLoss
    model = calibration.model.architecture
    with calibration.model.quantization(weights=False, activations=False), torch.no_grad():
        for chunk in (0, 1):
            losses = model.loss(calibration.chunks[chunk], calibration.samples[chunk])
            expected = model.parse_losses(losses)[0].item() * calibration.sizes[chunk]
            value = objective(calibration.run(chunk), chunk)
            assert value.dtype == torch.float64 and value.item() == pytest.approx(expected, rel=1e-6) and expected > 0
        rows = torch.tensor([1])
        alone = model.parse_losses(model.loss(calibration.chunks[0][1:], calibration.samples[0][1:]))[0].item()
        assert objective(calibration.run(0, rows), 0, rows).item() == pytest.approx(alone, rel=1e-5)


def test_searched_with_cached_prefixes(calibration):
    """Every value is that of a full forward pass, again and again; clips have slopes."""
    losses = []
    with ClipProblem(calibration, build_objective(calibration, dict(type='mmquant.TrainingLoss'), 'test')) as problem:
        last = problem.size - 1
        walk = [{}, {0: 0.2}, {last // 2: -0.3}, {last: 0.3}]
        walk = [[moves.get(i, 0.0) for i in range(problem.size)] for moves in walk]
        for problem.use_cache in (True, False):
            losses.append([problem.loss(x) for x in walk])
        assert problem.check_deterministic() == losses[0][-1]
        loss, slopes = problem.gradient(walk[0], 0, torch.tensor([0, 1]))
        assert loss > 0 and any(slopes)
    assert losses[0] == losses[1] and len(set(losses[0])) == len(walk)


@pytest.mark.parametrize('name, samples_of, text', [
    ('retinanet', None, r'needs the boxes of the calibration images: put dict\(type="LoadAnnotations"'),
    ('retinanet', samples_without, r'needs the boxes of the calibration images'),
    ('retinanet', lambda chunk: samples_with_boxes(chunk, ()), 'found no object on any calibration image'),
    ('faster-rcnn', samples_with_boxes, r'needs a detector of one stage.*got FasterRCNN; use objective=dict\(type='
                                        r'"mmquant.OutputDivergence"\)'),
])
def test_what_it_cannot_be_used_for(name, samples_of, text):
    with pytest.raises(ConfigError, match=text):
        build_objective(calibration_with(samples_of, name), dict(type='mmquant.TrainingLoss'), 'test')


def test_weighs_the_errors_of_a_unit():
    """As the loss whose squared gradients FisherLoss takes; without boxes that is refused."""
    terms = dict(unit=dict(type='mmquant.FisherLoss', objective=dict(type='mmquant.TrainingLoss')))
    found = []
    for samples_of in (samples_with_boxes, lambda chunk: samples_with_boxes(chunk, ((10, 12, 20, 22),))):
        context = context_of(detector('retinanet'), images(3, 3, 64, 64).split(2))
        context.samples = [samples_of(chunk) for chunk in context.chunks]
        context.first_unit = len(context.model.units('block')) - 2
        run(context, weights(terms=terms, num_iters=2, batch_size=2))
        found.append([r['held_nearest'] for r in context.records if r['kind'] == 'unit'])
    assert len(found[0]) == len(found[1]) > 0 and found[0] != found[1]  # other boxes, other weights
    context.samples = [samples_without(chunk) for chunk in context.chunks]
    with pytest.raises(ConfigError, match='needs the boxes of the calibration images'):
        run(context, weights(terms=terms, num_iters=2))


@pytest.mark.slow
def test_lapq_from_the_shipped_parts(tmp_path, monkeypatch):
    """A leaf of configs/_base_: boxes reach the objective, and the search lowers the training loss."""
    monkeypatch.setattr(digits_det, 'NUM_IMAGES', dict(train=2, calibration=3, test=3))
    text = (ROOT / 'configs/lapq/retinanet_w4a4_digitsdet.py').read_text().replace("'../", f"'{ROOT}/configs/")
    text += '''
for step in (_base_.lapq.nearest, _base_.lapq.joint):
    step.objective = dict(type='mmquant.TrainingLoss')
'''
    (tmp_path / 'leaf.py').write_text(text.replace('digitsdet_128.py', 'digitsdet_128_boxes.py'))
    cfg, root = load_config(str(tmp_path / 'leaf.py')), tmp_path / 'scenes'
    assert [s.objective.type for s in cfg.train_cfg.steps.values() if 'objective' in s] == ['mmquant.TrainingLoss'] * 2
    run_tool('ptq.py', tmp_path / 'leaf.py', '--work-dir', tmp_path / 'run', '--no-report', '--cfg-options',
             f'train_cfg.dataloader.dataset.data_root={root}', 'train_cfg.dataloader.dataset.indices=2',
             f'val_dataloader.dataset.data_root={root}', f'val_evaluator.ann_file={root}/annotations/test.json',
             'train_cfg.steps.nearest.norms=[2,3]', 'train_cfg.steps.nearest.init_images=2',
             'train_cfg.steps.joint.searcher.num_sweeps=1')
    search, = [r for r in results_of(tmp_path / 'run')['records'] if r['kind'] == 'search']
    assert search['objective'] == 'TrainingLoss' and 0 < search['loss'] <= search['start_loss']
