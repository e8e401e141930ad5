import pytest
import torch
from models_for_tests import MIN_MAX, Chain, images, quantizer_cfg, randomize, silent
from torch import nn

from mmquant.algorithms import (
    CalibrationContext,
    FoldBatchNorm,
    FoldOutputAffine,
    InitWeightRange,
    InsertOutputAffine,
    InsertQuantizers,
    Reparameterize,
)
from mmquant.models import QuantizedModel
from mmquant.models.edits import AddOutputAffine
from mmquant.models.layers import quantize_layer
from mmquant.models.output_affine import FLOOR, add_output_affine, fold_output_affine, output_affine_of
from mmquant.quantizers import UniformAffineQuantizer
from mmquant.utils.building import ConfigError


def layer_of(granularity='channel', dtype=torch.float32, seed=0, make=None, **quantizer):
    """A quantized convolution with an affine that is not neutral."""
    torch.manual_seed(seed)
    layer = (make or (lambda: nn.Conv2d(4, 6, 3)))().to(dtype)
    weight_quantizer = UniformAffineQuantizer(bits=4, granularity=granularity, **quantizer)
    weight_quantizer.allocate(layer.weight.shape)
    quantize_layer(layer, weight_quantizer.to(dtype))
    add_output_affine(layer)
    return layer


def set_range(layer):
    rows = layer.weight_quantizer.granularity.to_groups(layer.quantized_tensor.detach())
    layer.weight_quantizer.set_range(rows.amin(1), rows.amax(1))


def disturb(layer):
    """As if trained."""
    affine = output_affine_of(layer)
    with torch.no_grad():
        affine.scale.mul_(torch.rand_like(affine.scale) + 0.5)
        layer.quantized_bias.add_(torch.randn_like(layer.quantized_bias))


@torch.no_grad()
@pytest.mark.parametrize('granularity', ['tensor', 'channel'])
def test_the_float_layer_does_not_know_it(granularity):
    layer, x = layer_of(granularity), images(2, 4, 6, 6)
    plain = nn.Conv2d(4, 6, 3)
    plain.load_state_dict({k: layer.state_dict()[k] for k in ('weight', 'bias')})
    output_affine_of(layer).start(torch.rand(6) + 0.1)
    set_range(layer)
    disturb(layer)
    layer.weight_quantizer.enabled = False
    assert torch.equal(layer(x), plain(x))
    layer.weight_quantizer.enabled = True
    assert not torch.allclose(layer(x), plain(x)) and layer.bias is layer._parameters['bias']


@torch.no_grad()
@pytest.mark.parametrize('start', ['identity', 'other'])
def test_insertion_changes_nothing_without_rounding(start):
    """a * ((w / a) * x) + b equals w * x + b, whatever the factor begins with."""
    layer, x = layer_of(), images(2, 4, 6, 6)
    expected = nn.functional.conv2d(x, layer.weight, layer.bias)
    if start == 'other':
        output_affine_of(layer).start(torch.tensor([0.01, 0.5, 1, 3, 100, 7.]))
    layer.weight_quantizer.rounding = lambda: layer.quantized_tensor
    layer.weight_quantizer.initialized = True
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize('dtype, atol', [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize('granularity, more', [('channel', {}), ('group', dict(group_size=9))])
def test_folding_keeps_outputs_and_integers(granularity, more, dtype, atol):
    layer, x = layer_of(granularity, dtype, **more), images(2, 4, 6, 6).to(dtype)
    output_affine_of(layer).start(torch.rand(6, dtype=dtype) + 0.2)
    set_range(layer)
    disturb(layer)
    before, codes = layer(x), layer.weight_quantizer.encode(layer.quantized_tensor)
    assert fold_output_affine(layer)
    torch.testing.assert_close(layer(x), before, rtol=0, atol=atol)
    assert torch.equal(layer.weight_quantizer.codes, codes) and (layer.weight_quantizer.scale > 0).all()
    assert (output_affine_of(layer).scale == 1).all() and fold_output_affine(layer)
    torch.testing.assert_close(layer(x), before, rtol=0, atol=atol)


@torch.no_grad()
def test_linear_layers_fold_too():
    layer, x = layer_of(make=lambda: nn.Linear(8, 6)), images(3, 5, 8)
    set_range(layer)
    disturb(layer)
    before = layer(x)
    assert fold_output_affine(layer)
    torch.testing.assert_close(layer(x), before, rtol=0, atol=1e-5)


@torch.no_grad()
def test_one_scale_a_tensor_keeps_its_multipliers():
    layer, x = layer_of('tensor'), images(2, 4, 6, 6)
    set_range(layer)
    disturb(layer)
    before, scale = layer(x), output_affine_of(layer).scale.clone()
    assert not fold_output_affine(layer)
    assert torch.equal(layer(x), before) and torch.equal(output_affine_of(layer).scale, scale)
    by_hand = nn.functional.conv2d(x, layer.weight_quantizer(layer.weight)) * scale.view(1, -1, 1, 1)
    torch.testing.assert_close(before, by_hand + layer.quantized_bias.view(1, -1, 1, 1), rtol=0, atol=1e-5)


@torch.no_grad()
def test_factors_stay_positive():
    layer = layer_of()
    output_affine_of(layer).start(torch.tensor([0., 1e-5, -1., 0.5, 1., 2.]))  # a dead channel would get infinity
    assert output_affine_of(layer).scale.tolist() == [1, 1, 1, 0.5, 1, 2]
    set_range(layer)
    output_affine_of(layer).scale.copy_(torch.tensor([0., -3., 1e-9, 0.5, 1., 2.]))
    fold_output_affine(layer)
    assert (layer.weight_quantizer.scale > 0).all()
    output_affine_of(layer).scale.fill_(-1)
    output_affine_of(layer).constrain()
    assert (output_affine_of(layer).scale == FLOOR).all() and FLOOR == pytest.approx(1e-6)


@torch.no_grad()
def test_the_start_changes_codes_only_with_one_scale_a_tensor():
    """A scale a channel follows its factor; one scale a tensor sees other proportions of the channels."""
    found = {}
    for granularity in ('channel', 'tensor'):
        for start in (torch.ones(6), torch.tensor([0.25, 0.5, 1, 2, 4, 8.])):
            layer = layer_of(granularity)
            output_affine_of(layer).start(start)
            set_range(layer)
            found[granularity, start[0].item()] = layer.weight_quantizer.encode(layer.quantized_tensor)
    assert torch.equal(found['channel', 1.0], found['channel', 0.25])
    assert not torch.equal(found['tensor', 1.0], found['tensor', 0.25])


@pytest.mark.parametrize('p', [1, 2])
def test_descent_finds_the_best_factor_for_fixed_integers(p):
    """Squared error: <y, z> / <z, z>; absolute error: the median of y / z weighted by |z|."""
    torch.manual_seed(0)
    z = torch.randint(-8, 8, (400,)).float()
    y = 0.3 * z + 0.2 * torch.randn(400) + 5.0 * (torch.rand(400) < 0.05)
    if p == 2:
        best = (y @ z) / (z @ z)
    else:
        ratio, order = torch.sort(torch.where(z == 0, 0, y / torch.where(z == 0, 1, z)))
        weight = z.abs()[order].cumsum(0)
        best = ratio[torch.searchsorted(weight, weight[-1] / 2)]
    layer = layer_of(make=lambda: nn.Linear(1, 1, bias=False), symmetric=True)
    layer.weight_quantizer.set_range(torch.tensor([-7.]), torch.tensor([7.]))
    layer.weight_quantizer.set_codes(torch.tensor([[1]], dtype=torch.int8))
    a = output_affine_of(layer).scale.requires_grad_(True)
    optimizer = torch.optim.Adam([a], lr=0.05)
    for step in range(600):
        optimizer.param_groups[0]['lr'] = 0.05 * 0.99**step
        optimizer.zero_grad()
        (layer(z[:, None]).squeeze(1) - y).abs().pow(p).mean().backward()
        optimizer.step()
    assert a.item() == pytest.approx(best.item(), abs=5e-3)


# ---- as steps of a recipe -----------------------------------------------------------------------------------------
def context_of(model, x, *steps, granularity='channel', **cfg):
    spec = quantizer_cfg(a_bits=None, overrides=(), **cfg)
    spec['weight']['granularity'] = granularity
    context = CalibrationContext(QuantizedModel(model, spec, 'random'), [x], progress=silent)
    for step in steps:
        step.run(context)
    return context


def affine_layers(model) -> list[str]:
    return [e.layer for e in model.plan.edits if isinstance(e, AddOutputAffine)]


def repvgg(seed=0, **more):
    from mmpretrain.models import RepVGG
    arch = dict(num_blocks=[1, 1, 1, 1], width_factor=[1 / 8] * 4, group_layer_map=None, se_cfg=None)
    return randomize(RepVGG(arch, **more), seed)


def prepared(*more, model=None, granularity='channel'):
    return context_of(model or repvgg(), images(4, 3, 32, 32), Reparameterize(), FoldBatchNorm(), InsertQuantizers(),
                      *more, granularity=granularity)


@torch.no_grad()
@pytest.mark.parametrize('granularity', ['channel', 'tensor'])
@pytest.mark.parametrize('init', ['identity', 'dense_bn'])
def test_saved_and_loaded(init, granularity, tmp_path):
    context = prepared(InsertOutputAffine(init=init), InitWeightRange(observer=MIN_MAX), granularity=granularity)
    x, model = images(4, 3, 32, 32), context.model
    for layer in model.quantized_layers().values():
        disturb(layer)
    with model.quantization(False, False):
        exact = model(x)[0]
    before = model(x)[0]
    FoldOutputAffine().run(context)
    torch.testing.assert_close(model(x)[0], before, rtol=0, atol=1e-4 * before.abs().max().item())
    with model.quantization(False, False):
        assert torch.equal(model(x)[0], exact)
    facts = [r for r in context.records if r['kind'] == 'affine']
    assert len(facts) == 5 and all(r['folded'] == (granularity == 'channel') for r in facts)
    assert all(0.5 <= r['least'] <= r['mean'] <= r['largest'] <= 1.5 and 0 <= r['above_one'] <= 1 for r in facts)
    path = model.save(str(tmp_path / 'q.pth'))
    fresh = QuantizedModel(repvgg(1), dict(model.quantizer_cfg), 'random')
    fresh.load(path)
    assert torch.equal(fresh(x)[0], model(x)[0]) and fresh.plan == model.plan and len(affine_layers(fresh)) == 5


def test_dense_scales_become_the_factors():
    context = prepared(InsertOutputAffine(init='dense_bn'))
    for layer in context.model.quantized_layers().values():
        torch.testing.assert_close(output_affine_of(layer).scale, layer.dense_scale)
        torch.testing.assert_close(layer.quantized_tensor * layer.dense_scale.view(-1, 1, 1, 1),
                                   layer._parameters['weight'])


def test_where_there_is_no_merged_layer():
    chain = [FoldBatchNorm(), InsertQuantizers()]
    with pytest.raises(ValueError, match="no layer takes an output affine .*layers='merged'.*layers='all' needs none"):
        context_of(randomize(Chain()), images(4, 3, 8, 8), *chain, InsertOutputAffine())
    context = context_of(randomize(Chain()), images(4, 3, 8, 8), *chain, InsertOutputAffine(layers='all'))
    assert affine_layers(context.model) == ['convs.0', 'convs.1', 'convs.2', 'fc']
    with pytest.raises(ValueError, match="init='dense_bn' needs the BatchNorm .* built in deployed form"):
        context_of(randomize(Chain()), images(4, 3, 8, 8), *chain, InsertOutputAffine(layers='all', init='dense_bn'))
    with pytest.raises(ValueError, match="init='dense_bn' needs the BatchNorm"):
        prepared(InsertOutputAffine(init='dense_bn'), model=repvgg(deploy=True))


@pytest.mark.parametrize('wrong', [dict(layers='mergd'), dict(init='dense')])
def test_wrong_settings(wrong):
    with pytest.raises(ConfigError, match='must be one of'):
        InsertOutputAffine(**wrong)


def test_weight_standardization_takes_no_factor():
    from mmcv.cnn.bricks.conv_ws import ConvWS2d
    model = nn.Sequential(ConvWS2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ConvTranspose2d(4, 4, 2))
    context = context_of(randomize(model), images(4, 3, 8, 8), FoldBatchNorm(), InsertQuantizers(),
                         InsertOutputAffine(layers='all'))
    assert affine_layers(context.model) == ['2']
