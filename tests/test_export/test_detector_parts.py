"""Which files a detector becomes, deformable convolutions, and batch sizes that torch takes for constants."""
import pytest
import torch
from detectors_for_tests import context_of, detector, needs_detectors
from torch import nn

pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

import mmquant  # noqa: E402
from mmquant.export.parts import parts_of  # noqa: E402
from mmquant.export.qdq import export_qdq  # noqa: E402
from mmquant.export.runtime import RuntimeSession  # noqa: E402
from mmquant.export.tracing import ExportError  # noqa: E402

STEPS = [dict(type='FoldBatchNorm'), dict(type='InsertQuantizers'), dict(type='InsertDeployQuantizers'),
         dict(type='InitWeightRange'), dict(type='InitActivationRange'), dict(type='MakeWeightsSymmetric'),
         dict(type='RoundBiases')]


@needs_detectors
def test_each_head_on_regions_is_a_part(monkeypatch):
    torch.manual_seed(0)
    model = context_of(detector('faster-rcnn'), [torch.randn(1, 3, 64, 64)]).model
    assert [part.title for part in parts_of(model)] == ['features', 'regions']
    roi_head = model.architecture.roi_head
    head = roi_head.bbox_head
    roi_head.bbox_head = nn.ModuleList([head, head])
    roi_head.mask_head = head
    monkeypatch.setattr(model, 'quantized_layers', lambda: {'backbone.conv1': None, 'roi_head.bbox_head.1.fc': None})
    assert [part.title for part in parts_of(model)] == ['features', 'bbox_head_0', 'bbox_head_1', 'mask_head']
    monkeypatch.setattr(model, 'quantized_layers', lambda: {'backbone.conv1': None, 'roi_head.grid_head.conv': None})
    with pytest.raises(ValueError, match='has 1 layers between or beside its stages, first roi_head.grid_head.conv'):
        parts_of(model)


@needs_detectors
def test_a_head_with_more_inputs_is_refused(monkeypatch):
    model = context_of(detector('faster-rcnn'), [torch.randn(1, 3, 64, 64)]).model
    part = parts_of(model)[1]
    monkeypatch.setattr(part.head, 'forward', lambda x, more=None: x, raising=False)
    for call, text in ((lambda _: part.head(torch.zeros(1), more=1), 'takes 2 inputs; only heads that take the pooled'),
                       (lambda _: None, 'is not called in tensor mode')):
        monkeypatch.setattr(model, 'raw', call)
        with pytest.raises(ValueError, match=f'roi_head.bbox_head .* {text}'):
            part.example(model, torch.zeros(1))


@needs_detectors
def test_deformable_convolutions_become_nodes():
    from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), DeformConv2dPack(4, 6, 3, padding=1, groups=2),
                        ModulatedDeformConv2dPack(6, 4, (3, 1), stride=2, padding=(1, 0), deform_groups=2))
    for module in net[1:]:
        module.conv_offset.weight.data.normal_(std=0.1)
    images = torch.randn(4, 3, 12, 12)
    model = mmquant.quantize(net, [images], STEPS, 8, 8)
    part, = parts_of(model)
    proto = export_qdq(model, part, images)
    assert sum(n.op_type == 'DeformConv' for n in proto.graph.node) == 2
    found, = RuntimeSession(proto, optimize=False).run({'images': images.numpy()}).values()
    with torch.no_grad():
        expected, = part(images)
    assert torch.tensor(found).allclose(expected, atol=1e-4 * float(expected.abs().max()))


class Counted(nn.Module):
    """Computes with the batch size as a float, as the window attention of some models does."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.conv(x).relu().permute(0, 2, 3, 1).reshape(-1, 10, 4)
        return self.last(x.view(int(x.shape[0] / 10.0), 10, 10, -1).permute(0, 3, 1, 2))


def test_a_batch_size_taken_for_a_constant_is_refused():
    torch.manual_seed(0)
    images = torch.randn(4, 3, 12, 12)
    model = mmquant.quantize(Counted(), [images], STEPS, 8, 8)
    part, = parts_of(model)
    with pytest.raises(ExportError, match='for a batch of 2 alone.*give a fixed one: batch=1'):
        export_qdq(model, part, images)
    assert export_qdq(model, part, images, batch=1)
