"""What may be wrong with the data of a detector, or with the detector, through the command line."""
import json

import pytest
from detectors_for_tests import ROOT, detector, needs_detectors, quick_config
from models_for_tests import images
from tools_for_tests import log_of, results_of, run_tool
from torch import nn

from mmquant.apis.quantize import quantize
from mmquant.datasets import digits_det

pytestmark = needs_detectors


@pytest.fixture
def config(tmp_path, monkeypatch):
    return quick_config(tmp_path, monkeypatch)


def ptq(config, tmp_path, *options, more=()):
    run_tool('ptq.py', config, '--work-dir', tmp_path / 'run', '--no-report', *more,
             *(('--cfg-options', *options) if options else ()))


def test_no_ground_truth_file(config, tmp_path):
    """Below the folder of a data set that makes its files it is made; elsewhere it must be there."""
    with pytest.raises(SystemExit, match=r'The metric CocoMetric needs no/such\.json \(ann_file\), which does not exist'
                       r'.*set ann_file in the config or with --cfg-options'):
        ptq(config, tmp_path, 'val_evaluator.ann_file=no/such.json')
    with pytest.raises(SystemExit, match=r'The data set CocoDataset needs .*data/coco.* which does not exist'):
        ptq(str(ROOT / 'configs/brecq/retinanet-r18_w8a8_coco.py'), tmp_path)


@pytest.mark.slow
def test_images_without_objects(config, tmp_path):
    """Calibration asks for none; the metric has nothing to find, which is said."""
    root = tmp_path / 'scenes'
    for split in ('calibration', 'test'):
        path = digits_det.make(str(root), split)
        with open(path) as stream:
            content = json.load(stream)
        with open(path, 'w') as stream:
            json.dump(dict(content, annotations=[]), stream)
    ptq(config, tmp_path)
    stages = results_of(tmp_path / 'run')['stages']
    assert [s['name'] for s in stages] == ['float', 'nearest_weights', 'nearest', 'final']
    assert (tmp_path / 'run/quantized.pth').is_file()
    assert 'coco/bbox_mAP_l are -1: the evaluation images show no object of any class' in log_of(tmp_path / 'run')


class NoTensors(nn.Module):
    """A head that decodes even in tensor mode."""

    def forward(self, feats):
        return [dict(label='digit', score=float(x.mean())) for x in feats]


def test_head_without_tensors():
    model = detector('retinanet')
    model.bbox_head = NoTensors()
    with pytest.raises(ValueError, match=r'RetinaNet returned no tensor that depends on the images in tensor mode, but '
                       r'str, float, so .*return the raw outputs of bbox_head \(NoTensors\), before boxes are decoded'):
        quantize(model, [images(2, 3, 64, 64)], [dict(type='mmquant.FoldBatchNorm')])


def test_plain_model_without_tensors():

    class Net(nn.Conv2d):

        def forward(self, x):
            return super().forward(x).argmax().item()

    with pytest.raises(ValueError, match=r'Net returned no tensor .* but int, so .*outputs of the last layers'):
        quantize(Net(3, 2, 1), [images(2, 3, 8, 8)], [dict(type='mmquant.InsertQuantizers')])
