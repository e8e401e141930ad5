import pytest
import torch
from models_for_tests import MLP, Chain, ResNet, calibrated, images, inserted, randomize
from torch import nn

from mmquant.analysis.tables import coverage_table, summary_table, units_table
from mmquant.models.cost import model_cost
from mmquant.models.layers import Adapter


def cost_of(model, x, **cfg):
    context = inserted(model, x, **cfg)
    return model_cost(context.model, len(context.sample)), context.model


def test_by_hand():
    """Two linear layers 8 -> 8 -> 4: weights at 4 bits with a scale and a zero point for each output."""
    cost, _ = cost_of(MLP(), images(6, 8), overrides=())
    assert cost.params == 64 + 8 + 32 + 4 and cost.macs == 64 + 32
    assert [(x.name, x.w_bits, x.a_bits) for x in cost.layers] == [('fc1', 4, 32), ('fc2', 4, 4)]
    assert cost.bops == 64 * 4 * 32 + 32 * 4 * 4
    bits = (64 + 32) * 4 + (8 + 4) * (32 + 4) + (8 + 4) * 32
    assert cost.size_mb == pytest.approx(bits / 8e6) and cost.float_size_mb == pytest.approx(108 * 4 / 1e6)


@pytest.mark.parametrize('make, shape, macs', [
    (lambda: nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1, groups=2)), (4, 8, 8), 6 * 4 * 4 * 2 * 9),
    (lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, groups=2)), (4, 5, 5), 4 * 5 * 5 * 3 * 9),
    (lambda: nn.Sequential(nn.ConvTranspose3d(4, 6, 2, 2, groups=2)), (4, 2, 5, 5), 4 * 2 * 5 * 5 * 3 * 8),
    (lambda: nn.Sequential(nn.Conv1d(4, 6, 3)), (4, 10), 6 * 8 * 4 * 3),
    (lambda: nn.Sequential(nn.Linear(4, 6)), (7, 4), 7 * 4 * 6),
])
def test_multiply_accumulates(make, shape, macs):
    for batch in (1, 5):
        assert cost_of(make(), images(batch, *shape), a_bits=None, overrides=())[0].macs == macs


def test_agrees_with_mmengine():
    from mmengine.analysis import get_model_complexity_info
    model = randomize(ResNet())
    cost, wrapped = cost_of(model, images(4, 3, 16, 16))
    x = torch.zeros(1, 3, 16, 16)
    with wrapped.quantization(weights=False, activations=False):
        reference = get_model_complexity_info(wrapped.architecture, inputs=x, show_table=False, show_arch=False)
    assert cost.params == reference['params']
    assert cost.macs == pytest.approx(reference['flops'], rel=0.05)


def test_fewer_bits_cost_less():
    found = [cost_of(randomize(ResNet()), images(4, 3, 16, 16), w_bits=b, a_bits=b)[0] for b in (2, 4, 8)]
    assert found[0].size_mb < found[1].size_mb < found[2].size_mb < found[2].float_size_mb
    assert found[0].bops < found[1].bops < found[2].bops and found[0].macs == found[2].macs
    plain = {k: v for k, v in found[0].to_dict().items() if k != 'layers'}
    assert plain['macs'] == found[0].macs


def test_inputs_quantized_at_their_producer_count():
    cost, _ = cost_of(randomize(ResNet()), images(4, 3, 16, 16))
    bits = {x.name: (x.w_bits, x.a_bits) for x in cost.layers}
    assert bits['layer1.0.conv1'] == (4, 8) and bits['layer1.1.conv1'] == (4, 4) and bits['conv1'] == (8, 32)


def test_shared_layers_count_each_call():

    class Twice(nn.Module):

        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(self.fc(x))

    cost, _ = cost_of(Twice(), images(3, 4))
    assert cost.macs == 32 and cost.params == 20


def test_tables():
    float_head = dict(pattern='fc', w_bits=None, a_bits=None)
    context = calibrated(randomize(ResNet()), images(4, 3, 16, 16), overrides=[float_head])
    cost = model_cost(context.model, 2)
    text = coverage_table(cost)
    assert 'Coverage: 10 of 11 layers with weights are quantized' in text
    assert 'float weights by configuration' in text and 'quantized at maxpool' in text
    bits = {x.name: (x.w_bits, x.a_bits) for x in cost.layers}
    text = units_table(context.model.units('block'), bits)
    assert 'Units: 6 (2 layer, 4 block)' in text and 'layer2.0' in text and '4/4' in text
    text = summary_table([dict(name='float', metrics={'top1': 99.0}, seconds=0.0),
                          dict(name='final', metrics={'top1': 98.5, 'top5': 100.0}, seconds=1.5)], cost, 3.0, 2**30)
    assert '98.50' in text and 'times smaller' in text and 'peak memory 1.00 GiB' in text and ' - ' in text


def test_adapters_count():
    context = calibrated(randomize(Chain()), images(4, 3, 8, 8), overrides=())
    before = model_cost(context.model).size_mb
    layer = context.model.architecture.convs[0]
    layer.adapters.append(Adapter())
    layer.adapters[0].register_buffer('factor', torch.ones(10))
    assert model_cost(context.model).size_mb == pytest.approx(before + 40e-6)
