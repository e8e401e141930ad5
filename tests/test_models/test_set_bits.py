"""Widths that change after quantizers were inserted: plan, quantizers, costs and tables follow together."""
import pytest
import torch
from models_for_tests import MIN_MAX, ResNet, ViT, calibrated, images, inserted, quantizer_cfg, randomize

from mmquant.algorithms import InitActivationRange, InitWeightRange
from mmquant.analysis.tables import coverage_table
from mmquant.models import QuantizedModel
from mmquant.models.cost import model_cost
from mmquant.utils.building import ConfigError


def costs(model) -> dict:
    return {x.name: (x.w_bits, x.a_bits) for x in model_cost(model, 2).layers}


def ranges(context) -> None:
    InitWeightRange(observer=MIN_MAX).run(context)
    InitActivationRange(observer=MIN_MAX, num_images=8).run(context)


@torch.no_grad()
def test_everything_follows(tmp_path):
    context = calibrated(randomize(ResNet()), x := images(8, 3, 16, 16))
    model, layer = context.model, context.model.architecture.layer1[0].conv2
    layer.weight_quantizer.set_codes(layer.weight_quantizer.encode(layer._parameters['weight']))
    before = model_cost(model, 2)
    model.set_bits({'layer1.0.conv2': (2, 3), 'fc': (None, 6), 'layer1.1.conv1': (5, None)})
    assert (layer.weight_quantizer.bit_width, layer.input_quantizer.bit_width) == (2, 3)
    assert layer.weight_quantizer.codes is None and not layer.weight_quantizer.initialized and model.ready == (False,
                                                                                                               False)
    after, bits = model_cost(model, 2), costs(model)
    assert (bits['layer1.0.conv2'], bits['fc'], bits['layer1.1.conv1']) == ((2, 3), (8, 6), (5, 4))
    weights = layer._parameters['weight'].numel()  # a zero point at the weights' bits for each of 4 channels
    assert after.size_mb - before.size_mb == pytest.approx((-2 * weights - 2 * 4 + weights + 4) / 8e6)
    macs = {x.name: x.macs for x in after.layers}
    assert after.bops - before.bops == macs['layer1.0.conv2'] * (6 - 16) + macs['fc'] * (48 - 64) + macs[
        'layer1.1.conv1'] * (20 - 16)
    row = next(line for line in coverage_table(after).splitlines() if 'layer1.0.conv2' in line)
    assert row.replace('│', ' ').split()[1:3] == ['2', '3']
    assert next(p for p in model.plan.to_dict()['places'] if p['name'] == 'layer1.0.conv2' and p['what'] == 'weight'
                )['quantizer'] == dict(type='mmquant.UniformAffineQuantizer', bits=2, granularity='channel')

    ranges(context)
    path = model.save(str(tmp_path / 'q.pth'))
    other = QuantizedModel(randomize(ResNet(), seed=9), quantizer_cfg(), 'random')
    other.load(path)
    assert other.plan == model.plan and torch.equal(other(x), model(x))


def test_as_if_it_had_been_so_from_the_start():
    """The same bits by the config and afterwards give the same model."""
    wide = [dict(position='first', w_bits=8, out_bits=8), dict(position='last', w_bits=8, in_bits=8)]
    x = images(8, 3, 16, 16)
    asked = calibrated(randomize(ResNet()), x, overrides=[*wide, dict(pattern=r'layer2\.0\.conv.', w_bits=3, a_bits=6)])
    later = calibrated(randomize(ResNet()), x, overrides=wide)
    later.model.set_bits({'layer2.0.conv1': (3, 6), 'layer2.0.conv2': (3, 6)})
    ranges(later)
    assert later.model.plan == asked.model.plan and costs(later.model) == costs(asked.model)
    with torch.no_grad():
        assert torch.equal(later.model(x), asked.model(x))


def test_a_shared_tensor_takes_the_widest_wish():
    """layer1.1 is read by conv1 and the downsampling of layer2.0."""
    model = inserted(randomize(ResNet()), images(4, 3, 16, 16)).model
    quantizer = model.architecture.layer1[1].output_quantizer
    for wishes, bits in (({'layer2.0.conv1': (None, 3)}, 4),  # the other reader is silent: it wishes what there is
                         ({'layer2.0.conv1': (None, 3), 'layer2.0.downsample.0': (None, 2)}, 3),
                         ({'layer2.0.downsample.0': (None, 6)}, 6)):
        model.set_bits(wishes)
        assert quantizer.bit_width == bits and costs(model)['layer2.0.conv1'][1] == bits


def test_operands_and_calls():
    model = inserted(randomize(ViT()), images(4, 3, 16, 16)).model
    model.set_bits({'layers.0.attn': (None, 7)})
    found = {n: q.bit_width for n, q in model.activation_quantizers().items() if 'matmul' in n}
    assert found == {n: 7 if n.startswith('layers.0') else 4 for n in found} and len(found) == 8


@pytest.mark.parametrize('bits, text', [
    ({'layer1.0.conv': (4, 4)}, r"no layer 'layer1\.0\.conv' is planned; did you mean 'layer1\.0\.conv\d'"),
    ({'conv1': (None, 4)}, r'the activation of conv1 is float, so that it takes no bits \(got 4\)'),
    ({'fc': (4, None), 'layer1.0.conv1': (1, None)}, r'weight of layer1\.0\.conv1 .*bits=1 is not supported'),
    ({'fc': (4, None), 'layer1.0.conv2': (None, 4.5)}, r'input of layer1\.0\.conv2 .*bits must be .*int'),
])
def test_what_cannot_be_changes_nothing(bits, text):
    model = inserted(randomize(ResNet()), images(4, 3, 16, 16)).model
    before = model.plan, costs(model)
    with pytest.raises(ConfigError, match=f'set_bits.*{text}'):
        model.set_bits(bits)
    assert (model.plan, costs(model)) == before and model.architecture.fc.weight_quantizer.bit_width == 8
