import math

import pytest
import torch
from models_for_tests import MLP, Chain, ResNet, ViT, calibrated, images, inserted, randomize
from torch import nn

from mmquant.analysis.inspection import BINS, histogram, inspect, sqnr_db
from mmquant.quantizers import NoZeroQuantizer, UniformAffineQuantizer


def test_sqnr():
    assert sqnr_db(100.0, 1.0) == pytest.approx(20) and sqnr_db(1.0, 2.0) == pytest.approx(-3.0103)
    assert sqnr_db(1.0, 0.0) == math.inf and sqnr_db(0.0, 1.0) == -math.inf and math.isnan(sqnr_db(math.nan, 1.0))


def test_histogram_counts_in_steps_of_the_grid():
    """Scale 0.5, levels 0..3 with zero point 1: -0.5 is level 0, 1.0 is level 3."""
    quantizer = UniformAffineQuantizer(bits=2)
    quantizer.set_range(torch.tensor(-0.5), torch.tensor(1.0))
    assert quantizer.scale.item() == 0.5 and quantizer.zero_point.item() == 1
    h = histogram('w', torch.tensor([-0.5, 0.0, 0.0, 1.0, 1.3, -0.8]), quantizer)
    assert (h.low, h.high, h.bits, h.name) == (-0.5, 3.5, 2, 'w') and h.clipped == pytest.approx(2 / 6)
    assert len(h.counts) == BINS and sum(h.counts) == 6 and h.edges[0] == pytest.approx(-0.6)
    zero = next(i for i in range(BINS) if h.edges[i] <= 1 < h.edges[i + 1])
    assert h.counts[zero] == 2


def test_levels_of_a_grid_without_a_zero_lie_at_their_codes():
    """Levels -1.5, -0.5, 0.5, 1.5 are codes -2 .. 1."""
    quantizer = NoZeroQuantizer(bits=2)
    quantizer.set_range(torch.tensor(-1.5), torch.tensor(1.5))
    x = torch.tensor([-1.5, -0.5, 0.5, 1.5])
    h = histogram('w', torch.cat([x, torch.tensor([-2.1])]), quantizer)
    assert quantizer.positions(x).tolist() == quantizer.encode(x).tolist() == [-2, -1, 0, 1]
    assert (h.low, h.high) == (-2.5, 1.5) and h.clipped == pytest.approx(1 / 5)


def test_outliers_do_not_stretch_the_picture():
    quantizer = UniformAffineQuantizer(bits=4)
    quantizer.set_range(torch.tensor(0.0), torch.tensor(15.0))
    h = histogram('w', torch.tensor([0.0, 1.0, 1e6]), quantizer)
    assert h.edges[-1] == 15.5 + 16 and h.counts[-1] == 1 and h.clipped == pytest.approx(1 / 3)


def test_each_channel_in_its_own_steps():
    quantizer = UniformAffineQuantizer(bits=2, granularity='channel')
    quantizer.allocate((2, 4))
    quantizer.set_range(torch.zeros(2), torch.tensor([3.0, 300.0]))
    h = histogram('w', torch.tensor([[0.0, 1, 2, 3], [0.0, 100, 200, 300]]), quantizer)
    assert sorted(c for c in h.counts if c) == [2, 2, 2, 2] and h.clipped == 0


def test_errors_by_hand():
    """One linear layer: the noise of weights and outputs, computed here."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 8)), images(6, 8)
    context = calibrated(model, x, overrides=(), a_bits=None)
    found = inspect(context.model, [x[:4], x[4:]])
    layer = context.model.architecture[0]
    w, w_hat = layer._parameters['weight'], layer.weight_quantizer(layer._parameters['weight'])
    ratio = (w.square().sum() / (w - w_hat).square().sum()).item()
    assert found.weight_sqnr == {'0': pytest.approx(10 * math.log10(ratio), rel=1e-5)}
    clean = nn.functional.linear(x, w, layer.bias)
    noise = clean - nn.functional.linear(x, w_hat, layer.bias)
    ratio = (clean.square().sum() / noise.square().sum()).item()
    assert found.output_sqnr == {'0': pytest.approx(10 * math.log10(ratio), rel=1e-4)}
    assert [h.name for h in found.weights] == ['0'] and found.activations == ()


def test_layers_in_execution_order_and_nothing_is_changed():
    x = images(5, 3, 16, 16)
    context = calibrated(randomize(ResNet()), x)
    before = {k: v.clone() for k, v in context.model.architecture.state_dict().items()}
    found = inspect(context.model, context.images(5))
    assert list(found.output_sqnr)[0] == 'conv1' and list(found.output_sqnr)[-1] == 'fc'
    assert set(found.weight_sqnr) == set(found.output_sqnr) == {h.name for h in found.weights}
    assert found.weight_sqnr['conv1'] > 30 > found.weight_sqnr['layer2.0.conv1'] > 5
    assert {h.name for h in found.activations} == set(context.model.activation_quantizers())
    after = context.model.architecture.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for n, m in context.model.architecture.named_modules()
                   if n.endswith('quantizer'))


def test_shared_layers_attention_and_missing_ranges():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x):
            return self.head(torch.relu(self.fc(torch.relu(self.fc(x)))))

    context = calibrated(Twice(), images(8, 8))
    assert set(inspect(context.model, context.images(4)).output_sqnr) == {'fc', 'head'}
    context = calibrated(randomize(ViT()), images(4, 3, 16, 16))
    found = inspect(context.model, context.images(2))
    assert any('matmul' in h.name for h in found.activations)
    for model, x in ((MLP(), images(4, 8)), (Chain(), images(4, 3, 8, 8))):
        found = inspect(inserted(model, x).model, [x])
        assert found.weights == () == found.activations and all(v is None for v in found.output_sqnr.values())
