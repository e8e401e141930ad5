import pytest
import torch
from models_for_tests import MLP, ResNet, images, inserted, quantizer_cfg, randomize, silent
from torch import nn

from mmquant.algorithms import (
    CalibrationContext,
    FoldBatchNorm,
    InitWeightRange,
    InsertQuantizers,
    Reparameterize,
    Step,
)
from mmquant.models import QuantizedModel
from mmquant.models.edits import Merged
from mmquant.registry import STEPS
from mmquant.utils.building import ConfigError


def context_of(model, x, chunk=8, **cfg):
    model = QuantizedModel(model, quantizer_cfg(**cfg), 'random')
    return CalibrationContext(model, list(x.split(chunk)), progress=silent)


def test_fold_reports_pairs_and_changes_structure():
    context = context_of(randomize(ResNet()), images(4, 3, 8, 8))
    FoldBatchNorm().run(context)
    assert context.records == [dict(kind='folded', pairs=10)]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in context.model.modules())
    assert FoldBatchNorm.structural and InsertQuantizers.structural and Reparameterize.structural


def test_insert_freezes_weights_and_records_the_flow():
    model = inserted(randomize(ResNet()), images(4, 3, 8, 8)).model
    assert not any(p.requires_grad for p in model.parameters())
    assert len(model.units('block')) == 6 and len(model.quantized_layers()) == 11


def test_nothing_to_quantize():
    context = context_of(MLP(), images(4, 8), w_bits=None, a_bits=None, overrides=())
    with pytest.raises(ValueError, match='leaves every layer float: give bits to quantizer.weight or'):
        InsertQuantizers().run(context)


def test_patterns_that_match_nothing_are_named():
    context = context_of(MLP(), images(4, 8), overrides=[dict(pattern='fc2', w_bits=3), dict(pattern='fc_1', w_bits=3)])
    with pytest.raises(ConfigError, match=r"quantizer\.overrides\[1\]: the pattern 'fc_1' matches no layer .*'fc1'"):
        InsertQuantizers().run(context)


class RepBlock(nn.Module):
    """Two parallel convolutions that become one."""

    def __init__(self, exact: bool = True) -> None:
        super().__init__()
        self.a, self.b, self.exact, self.deploy = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), exact, False

    def forward(self, x):
        return self.merged(x) if self.deploy else self.a(x) + self.b(x)

    def switch_to_deploy(self):
        self.merged = nn.Conv2d(3, 3, 1)
        self.merged.weight.data = self.a.weight.data + self.b.weight.data * (1 if self.exact else 0.9)
        self.merged.bias.data = self.a.bias.data + self.b.bias.data
        del self.a, self.b
        self.deploy = True


@torch.no_grad()
def test_reparameterize_merges_branches():
    model, x = nn.Sequential(RepBlock(), nn.ReLU(), RepBlock()), images(4, 3, 6, 6)
    before = model(x)
    context = context_of(model, x)
    Reparameterize().run(context)
    torch.testing.assert_close(context.model(x), before, rtol=0, atol=1e-5)
    assert context.records == [dict(kind='reparameterized', modules=2)]
    assert context.model.plan.edits == (Merged(), )
    FoldBatchNorm().run(context)
    InsertQuantizers().run(context)
    assert list(context.model.quantized_layers()) == ['0.merged', '2.merged']
    assert context.model.plan.edits == (Merged(), )


def test_inexact_merging_is_refused():
    context = context_of(nn.Sequential(RepBlock(exact=False)), images(4, 3, 6, 6))
    with pytest.raises(RuntimeError, match=r'Merged\(\) changed the float output by .* than the tolerance 1e-03; the '
                       r'first module whose output differs is 0 \(RepBlock\)'):
        Reparameterize().run(context)
    Reparameterize(tolerance=1.0).run(context_of(nn.Sequential(RepBlock(exact=False)), images(4, 3, 6, 6)))


@torch.no_grad()
def test_repvgg_of_mmpretrain(tmp_path):
    from mmpretrain.models import RepVGG

    def backbone(seed):
        arch = dict(num_blocks=[1, 1, 1, 1], width_factor=[1 / 8] * 4, group_layer_map=None, se_cfg=None)
        return randomize(RepVGG(arch), seed)

    model, x = backbone(0), images(4, 3, 32, 32)
    before = model(x)[0]
    branches = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    context = context_of(model, x, a_bits=None, overrides=())
    for step in (Reparameterize(), FoldBatchNorm(), InsertQuantizers(), InitWeightRange()):
        step.run(context)
    layers = context.model.quantized_layers()
    assert len(layers) == 5 and branches == 10 and all(n.endswith('branch_reparam') for n in layers)
    with context.model.quantization(weights=False, activations=False):
        torch.testing.assert_close(context.model(x)[0], before, rtol=0, atol=1e-3 * before.abs().max().item())
    path = context.model.save(str(tmp_path / 'q.pth'))
    fresh = QuantizedModel(backbone(1), quantizer_cfg(a_bits=None, overrides=()), 'random')
    fresh.load(path)
    assert torch.equal(fresh(x)[0], context.model(x)[0])


def test_context():
    context = context_of(MLP(), images(20, 8), chunk=8)
    assert [len(c) for c in context.images(12)] == [8, 4] and [len(c) for c in context.images(99)] == [8, 8, 4]
    assert context.sample.shape == (2, 8) and context.device == torch.device('cpu')
    seeds = set()
    for context.step_index in range(5):
        seeds |= {context.seed_for(u) for u in range(50)}
    context.seed = 1
    assert len(seeds) == 250 and context.seed_for(0) not in seeds


def test_bfloat16_only_where_the_processor_computes_it(monkeypatch):
    for able in (True, False):
        monkeypatch.setattr('mmquant.calibration.context.computes_bfloat16', lambda device, able=able: able)
        assert CalibrationContext(QuantizedModel(MLP(), quantizer_cfg()), [images(2, 8)], amp=True).amp is able
        assert CalibrationContext(QuantizedModel(MLP(), quantizer_cfg()), [images(2, 8)], amp=False).amp is False


def test_a_step_of_ones_own():
    with pytest.raises(NotImplementedError, match=r'Own does not define run\(context\)'):
        type('Own', (Step,), {})().run(None)
    assert STEPS.build(dict(type='FoldBatchNorm', name='fold')).name == 'fold'
    assert FoldBatchNorm().name == 'FoldBatchNorm'
