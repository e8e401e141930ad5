"""Models that several tests export: made and exported once."""
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

import mmquant

ROOT = Path(__file__).parents[2]
STEPS = [dict(type='FoldBatchNorm'), dict(type='InsertQuantizers'), dict(type='InsertDeployQuantizers'),
         dict(type='InitWeightRange'), dict(type='InitActivationRange'), dict(type='RoundBiases')]


@pytest.fixture(scope='session')
def digits(tmp_path_factory):
    """The shipped ResNet-18 for digits at W2A4, exported and packed; ``images`` (64, 3, 32, 32)."""
    pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    from mmengine.registry import init_default_scope
    from mmpretrain.registry import MODELS

    from mmquant.datasets import DigitsDataset
    from mmquant.utils.tensor_files import read_tensors
    init_default_scope('mmpretrain')
    cfg = Config.fromfile(ROOT / 'configs/float/resnet18_digits.py')
    net = MODELS.build(dict(cfg.model, data_preprocessor=cfg.data_preprocessor)).eval()
    net.load_state_dict(read_tensors(ROOT / 'checkpoints/resnet18_digits.pth')['state_dict'])
    data = DigitsDataset(split='calibration', pipeline=[])
    raw = torch.stack([torch.as_tensor(data[i]['img']) for i in range(64)]).permute(0, 3, 1, 2).float()
    raw = torch.nn.functional.interpolate(raw, size=32)
    images = net.data_preprocessor(dict(inputs=list(raw)), False)['inputs']
    overrides = [dict(position='first', weight=dict(bits=8, symmetric=True), output=dict(bits=8)),
                 dict(position='last', weight=dict(bits=8, symmetric=True), input=dict(bits=8))]
    model = mmquant.quantize(net, [images], STEPS, 2, 4, overrides=overrides)
    files = model.export(tmp_path_factory.mktemp('digits') / 'model.onnx', images, packed=True)
    return SimpleNamespace(model=model, images=images, files=files, classes=10)
