"""Small detectors of mmdet with random weights, for the tests that need some."""
import copy
import functools
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.registry import init_default_scope
from models_for_tests import silent

from mmquant.algorithms import CalibrationContext, FoldBatchNorm, InitActivationRange, InitWeightRange, InsertQuantizers
from mmquant.apis.config import load_config
from mmquant.datasets import digits_det
from mmquant.models import QuantizedModel
from mmquant.registry import MODELS

ROOT = Path(__file__).parents[1]
NO_MMDET = find_spec('mmdet') is None
NO_OPERATORS = NO_MMDET or find_spec('mmcv') is None or find_spec('mmcv._ext') is None
needs_detectors = pytest.mark.skipif(NO_OPERATORS, reason='needs mmdet and mmcv with its compiled operators')
MIN_MAX = dict(type='mmquant.MinMaxObserver')
QUICK = '''
_base_ = {config!r}
data_root = {root!r}
train_cfg = dict(dataloader=dict(dataset=dict(data_root=data_root)), chunk_size=4, steps=[
    dict(type='mmquant.FoldBatchNorm'), dict(type='mmquant.InsertQuantizers'),
    dict(type='mmquant.InitWeightRange', observer=dict(type='mmquant.MinMaxObserver')),
    dict(type='mmquant.InitActivationRange', observer=dict(type='mmquant.MinMaxObserver'), name='nearest')])
val_dataloader = dict(dataset=dict(data_root=data_root))
val_evaluator = dict(ann_file=data_root + '/annotations/test.json')
test_dataloader, test_evaluator = val_dataloader, val_evaluator
'''


@functools.lru_cache(maxsize=None)
def _float_detector(name: str) -> torch.nn.Module:
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(load_config(str(ROOT / f'configs/float/{name}_digitsdet.py')).model)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_var.uniform_(0.3, 1.0)
            module.running_mean.uniform_(-0.2, 0.2)
    return model.eval()


def detector(name: str = 'retinanet') -> torch.nn.Module:
    """The float model of ``configs/float/<name>_digitsdet.py``; head weights are random, not almost zero."""
    model = copy.deepcopy(_float_detector(name))
    with torch.no_grad():
        for part in (model.get_submodule(n) for n in ('bbox_head', 'rpn_head', 'roi_head') if hasattr(model, n)):
            generator = torch.Generator().manual_seed(1)
            for p in part.parameters():
                if p.dim() > 1:
                    p.copy_(torch.randn(p.shape, generator=generator) * (2 / p[0].numel())**0.5)
    return model


def spec(w_bits=4, a_bits=8, **more) -> dict:
    return dict(weight=dict(type='mmquant.UniformAffineQuantizer', bits=w_bits, granularity='channel'),
                activation=dict(type='mmquant.UniformAffineQuantizer', bits=a_bits),
                overrides=[dict(position='first', w_bits=8, out_bits=8), dict(position='last', w_bits=8, in_bits=8)],
                **more)


def context_of(model, chunks, **cfg) -> CalibrationContext:
    """Folded, with quantizers that have min-max ranges."""
    context = CalibrationContext(QuantizedModel(model, spec(**cfg), 'random'), list(chunks), progress=silent)
    for step in (FoldBatchNorm(), InsertQuantizers(), InitWeightRange(MIN_MAX), InitActivationRange(MIN_MAX)):
        step.run(context)
    return context


def quick_config(folder, monkeypatch) -> str:
    """A config of the embedded RetinaNet: four calibration and three test scenes, min-max ranges at 8 bits."""
    monkeypatch.setattr(digits_det, 'NUM_IMAGES', dict(train=2, calibration=4, test=3))
    path = folder / 'quick.py'
    config = str(ROOT / 'configs/brecq/retinanet_w8a8_digitsdet.py')
    path.write_text(QUICK.format(config=config, root=str(folder / 'scenes')))
    return str(path)
