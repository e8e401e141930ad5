"""Detectors of mmdet as they are: what is quantized, by which quantizers, as which units."""
from dataclasses import replace

import pytest
import torch
from detectors_for_tests import context_of, detector, needs_detectors, spec
from models_for_tests import calibrated, images, quantizer_cfg
from reconstruction_for_tests import run, weights
from torch import nn

from mmquant.losses.divergence import float_tensors
from mmquant.models import QuantizedModel
from mmquant.models.detection import Decisions, is_detector, plain_samples
from mmquant.utils.building import ConfigError

pytestmark = needs_detectors


def test_every_layer_of_backbone_neck_and_head_is_quantized():
    for name in ('retinanet', 'faster-rcnn'):
        model = context_of(detector(name), images(2, 3, 64, 64).split(2)).model
        assert not model.plan.float_layers, name
        parts = {n.split('.')[0] for n in model.quantized_layers()}
        assert parts == {'backbone', 'neck', *(('bbox_head', ) if name == 'retinanet' else ('rpn_head', 'roi_head'))}


def test_output_layers_count_as_last():
    """Those of the region proposal network too, though they are no outputs of the net."""
    model = context_of(detector('faster-rcnn'), images(2, 3, 64, 64).split(2)).model
    last = {n for n, q in model.weight_quantizers().items() if q.grid.bits == 8}
    assert last == {'backbone.conv1', 'rpn_head.rpn_cls', 'rpn_head.rpn_reg', 'roi_head.bbox_head.fc_cls',
                    'roi_head.bbox_head.fc_reg'}


def test_head_shared_over_levels():
    """One unit for all levels, one quantizer a tensor for all levels; both branches share that of the pyramid."""
    context = context_of(detector(), images(2, 3, 64, 64).split(2))
    model = context.model
    unit = next(u for u in model.units() if u.layers == ('bbox_head.cls_convs.1.conv', ))
    assert unit.name == 'bbox_head.cls_convs.1' and len(unit.spans) == 4
    assert model.plan.inputs['bbox_head.reg_convs.0.conv'].name == 'bbox_head.cls_convs.0.conv'
    head = [n for n in model.activation_quantizers() if n.startswith('bbox_head')]
    assert len(head) == 5  # levels, two layers of each branch: one behind the first and one behind the second


def test_a_quantizer_for_each_level(tmp_path):
    x = images(2, 3, 64, 64)
    model = context_of(detector(), [x], per_call=True).model
    first = model.architecture.bbox_head.cls_convs[0].conv.input_quantizer
    scales = [q.scale.item() for q in first]
    assert len(first) == 4 and len(set(scales)) == 4
    twin = model.architecture.bbox_head.reg_convs[0].conv.input_quantizer
    assert twin is not first and all(a is b for a, b in zip(twin, first))
    seen = []
    for k, quantizer in enumerate(first):
        quantizer.register_forward_pre_hook(lambda m, args, k=k: seen.append((k, args[0].shape[-1])))
    with torch.no_grad():
        out = model.run(x)
    assert seen[::2] == [(0, 8), (1, 4), (2, 2), (3, 1)]  # cls and reg branch call it once each
    model.save(str(tmp_path / 'q.pth'))
    other = QuantizedModel(detector(), spec(per_call=True), 'random')
    other.load(str(tmp_path / 'q.pth'))
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(float_tensors(other.run(x)), float_tensors(out)))


def test_scope_of_the_literature():
    """Backbone and neck only: the head is float, and so is what the neck hands to it."""
    model = context_of(detector(), images(2, 3, 64, 64).split(2), scope=('backbone', 'neck')).model
    assert {n.split('.')[0] for n in model.quantized_layers()} == {'backbone', 'neck'}
    assert not any(n.startswith('bbox_head') or 'fpn_convs' in n and n.endswith('output')
                   for n in model.activation_quantizers())
    assert dict(model.plan.float_layers)['bbox_head.retina_cls'] == 'outside the scope (backbone, neck)'
    assert 'bbox_head.retina_cls' not in model.plan.inputs
    assert {q.grid.bits for n, q in model.weight_quantizers().items() if n != 'backbone.conv1'} == {4}


@torch.no_grad()
@pytest.mark.parametrize('name', ['retinanet', 'faster-rcnn'])
def test_an_unquantized_model_is_the_float_model(name):
    """Regions are pooled by an operator of mmcv that does not look at the memory format of what it reads."""
    plain, x = detector(name), images(2, 3, 64, 64)
    expected = float_tensors(plain(x, plain_samples(x), mode='tensor'))
    found = float_tensors(QuantizedModel(detector(name), spec(), 'random').run(x))
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-3), (a - b).abs().max()


class Deformed(nn.Module):
    """A deformable convolution between two plain ones."""

    def __init__(self) -> None:
        from mmcv.ops import ModulatedDeformConv2dPack
        super().__init__()
        self.first, self.deformed = nn.Conv2d(3, 8, 3), ModulatedDeformConv2dPack(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 4, 1)
        nn.init.normal_(self.deformed.conv_offset.weight, std=0.1)

    def forward(self, x):
        return self.last(self.deformed(self.first(x).relu()).relu())


@torch.no_grad()
def test_offsets_of_a_deformable_convolution_are_read_as_they_are():
    """Its inner convolution must not lay them out with channels last: the operator takes them for plain ones."""
    torch.manual_seed(0)
    net, x = Deformed().eval(), images(2, 3, 12, 12)
    expected = net(x)
    model = QuantizedModel(net, quantizer_cfg(), 'random')
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), expected)


def test_deformable_convolutions_are_reconstructed_in_float32():
    """Their inputs come from the cache with channels last; mmcv computes them with plain memory and in float32 only."""
    context = replace(context_of(Deformed(), images(16, 3, 12, 12).split(8)), amp=True)
    run(context, weights(unit='layer', num_iters=20, lr=1e-2, batch_size=8))
    found = {r['unit']: r for r in context.records if r.get('kind') == 'unit'}
    assert not context.amp and {'deformed', 'deformed.conv_offset', 'last'} <= set(found)
    assert 0 < found['deformed']['held_nearest'] < 1


def test_wrong_scope():
    with pytest.raises(ValueError, match="quantizer.scope: the model has no module 'nek'; did you mean 'neck'"):
        context_of(detector(), [images(1, 3, 64, 64)], scope=('backbone', 'nek'))
    with pytest.raises(ConfigError, match='scope must be a list of module paths'):
        QuantizedModel(nn.Linear(2, 2), spec(scope='backbone'), 'random')


def test_data_samples_for_images_alone():
    model = detector('faster-rcnn')
    assert is_detector(model) and not is_detector(nn.Linear(2, 2))
    sample, = plain_samples(images(1, 3, 32, 64))
    assert sample.img_shape == sample.batch_input_shape == (32, 64)
    assert sample.gt_instances.bboxes.tolist() == [[16, 8, 48, 24]]


@torch.no_grad()
def test_proposals_stay_the_same():
    """Second-stage outputs can be compared row by row, however rough the quantization."""
    context = context_of(detector('faster-rcnn'), images(2, 3, 64, 64).split(1), w_bits=2, a_bits=2)
    model, rois = context.model, []
    model.architecture.roi_head.bbox_roi_extractor.register_forward_pre_hook(lambda m, args: rois.append(args[1]))
    for index in (0, 1):
        with model.quantization(weights=False, activations=False):
            context.run(index)
        context.run(index)
    assert torch.equal(rois[0], rois[1]) and torch.equal(rois[2], rois[3])
    assert rois[0].shape != rois[2].shape or not torch.equal(rois[0], rois[2])
    model.run(context.chunks[0])
    assert rois[4].shape != rois[0].shape or not torch.equal(rois[4], rois[0])  # free again outside
    assert not any('predict_by_feat' in m.__dict__ for m in model.modules())


def test_decisions_are_kept_per_batch():

    class Head(nn.Module):

        def predict_by_feat(self, x):
            return [x + 1]

    head, decisions = Head(), Decisions()
    with decisions.pinned(head, 0):
        assert head.predict_by_feat(torch.zeros(1))[0].item() == 1
        assert head.predict_by_feat(torch.ones(1))[0].item() == 1
    with decisions.pinned(head, 1):
        assert head.predict_by_feat(torch.ones(1))[0].item() == 2
    assert head.predict_by_feat(torch.ones(1))[0].item() == 2


class Depthwise(nn.Module):

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act = nn.Conv2d(3, 4, 1), nn.SiLU()
        self.dw, self.pw, self.last = nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.last(self.pw(self.dw(self.act(self.stem(x)))))


@torch.no_grad()
def test_a_scale_for_each_channel_of_a_depthwise_input():
    torch.manual_seed(0)
    float_model = Depthwise()
    float_model.stem.weight.data[0] *= 100
    x = images(4, 3, 8, 8)
    rough = calibrated(float_model, x, depthwise_channels=False).model
    fine = calibrated(float_model, x, depthwise_channels=True).model
    assert {p.name: p.shape for p in fine.plan.places if p.shape} == dict(dw=(1, 4, 1, 1))
    assert fine.architecture.dw.input_quantizer.scale.shape == (1, 4, 1, 1)
    y = float_model.act(float_model.stem(x))
    errors = [(m.architecture.dw.input_quantizer(y) - y)[:, 1:].square().mean() for m in (rough, fine)]
    assert errors[1] < errors[0] / 50
