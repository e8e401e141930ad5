"""Clips of detectors: outputs over levels, pinned proposals."""
from pathlib import Path

import pytest
import torch
from mmengine.registry import init_default_scope
from models_for_tests import MIN_MAX, images, silent

from mmquant.algorithms import CalibrationContext, FoldBatchNorm, InitActivationRange, InitWeightRange, InsertQuantizers
from mmquant.apis.config import load_config
from mmquant.apis.quantize import run_steps
from mmquant.losses import OutputDivergence
from mmquant.losses.objectives import build_objective
from mmquant.registry import MODELS
from mmquant.search import ClipProblem

ROOT = Path(__file__).parents[2]
pytest.importorskip('mmdet')
pytest.importorskip('mmcv.ops', reason='mmcv was built without operators', exc_type=ImportError)


def problem_of(name) -> ClipProblem:
    cfg = load_config(str(ROOT / f'configs/brecq/{name}_w4a4_digitsdet.py'))
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(dict(cfg.model, float_checkpoint='random'))
    context = CalibrationContext(model, list(images(3, 3, 64, 64).split(2)), progress=silent)
    run_steps(context, [FoldBatchNorm(), InsertQuantizers(), InitWeightRange(observer=MIN_MAX),
                        InitActivationRange(observer=MIN_MAX)])
    return ClipProblem(context, build_objective(context, None, 'test'))


@pytest.mark.parametrize('name', ['retinanet', 'faster-rcnn'])
def test_values_are_those_of_full_forward_passes(name):
    losses = []
    with problem_of(name) as problem:
        assert isinstance(problem.objective, OutputDivergence)
        last = problem.size - 1
        walk = [{}, {0: 0.2}, {0: 0.2, last // 2: -0.3}, {0: 0.2, last // 2: 0.1}, {0: 0.2, last: 0.3}]
        walk = [[moves.get(i, 0.0) for i in range(problem.size)] for moves in walk]
        for problem.use_cache in (True, False):
            losses.append([problem.loss(x) for x in walk])
        loss, slopes = problem.gradient(walk[0], 0, torch.tensor([0]))
        assert loss > 0 and any(slopes)
    assert losses[0] == losses[1] and len(set(losses[0])) == len(walk) and problem.counts.image_forwards_saved > 0
