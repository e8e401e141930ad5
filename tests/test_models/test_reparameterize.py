import logging

import pytest
import torch
from mmengine.logging import MMLogger
from models_for_tests import images, quantizer_cfg, randomize, silent
from torch import nn

from mmquant.algorithms import CalibrationContext, FoldBatchNorm, Reparameterize
from mmquant.models import QuantizedModel
from mmquant.models.reparameterize import correct_deployed, reparameterizable, reparameterize


@pytest.fixture
def messages():
    found = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: found.append(record.getMessage())
    logger = MMLogger.get_instance('test_reparameterize')
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


def repvgg(groups=None, se=False, seed=0, **more):
    from mmpretrain.models import RepVGG
    arch = dict(num_blocks=[2, 2, 1, 1], width_factor=[1 / 4] * 4, group_layer_map={2: groups, 4: groups} if groups else
                None, se_cfg=dict(ratio=4) if se else None)
    return randomize(RepVGG(arch, strides=(1, 2, 1, 1), **more), seed)


def mobileone(branches=4, se=False, seed=0, **more):
    from mmpretrain.models import MobileOne
    arch = dict(num_blocks=[1, 2, 2, 1], width_factor=[1 / 4] * 4, num_conv_branches=[branches] * 4,
                num_se_blocks=[0, 0, 1, 1] if se else [0] * 4)
    return randomize(MobileOne(arch, **more), seed)


def replknet(seed=0, **more):
    from mmpretrain.models import RepLKNet
    arch = dict(large_kernel_sizes=[13, 13], layers=[1, 1], channels=[8, 16], small_kernel=5, dw_ratio=1)
    more = dict(strides=(1, 2), dilations=(1, 1), out_indices=(1, ), drop_path_rate=0.0, **more)
    return randomize(RepLKNet(arch, **more), seed)


NETS = dict(repvgg=repvgg, groups=lambda **k: repvgg(groups=4, **k), se=lambda **k: repvgg(se=True, **k),
            mobileone=mobileone, one_branch=lambda **k: mobileone(1, **k),
            mobileone_se=lambda **k: mobileone(se=True, **k), replknet=replknet)


@torch.no_grad()
@pytest.mark.parametrize('name', NETS)
def test_merging_is_exact(name):
    model, x = NETS[name](), images(2, 3, 32, 32)
    before = model(x)[0]
    assert before.abs().max() > 1e-2 and reparameterize(model) >= 1
    after = model(x)[0]
    assert (after - before).abs().max() <= 1e-5 * before.abs().max().clamp_min(1)
    assert reparameterize(model) == 0  # nothing is merged twice
    assert torch.equal(model(x)[0], after)


@torch.no_grad()
def test_squeeze_and_excitation_is_lost_by_mmpretrain_alone():
    """The trap this project closes: when this test fails, mmpretrain has closed it itself."""
    model, x = repvgg(se=True), images(2, 3, 32, 32)
    before = model(x)[0]
    model.switch_to_deploy()
    assert (model(x)[0] - before).abs().max() > 0.1 * before.abs().max()
    correct_deployed(model)
    torch.testing.assert_close(model(x)[0], before, rtol=0, atol=1e-5 * before.abs().max().item())
    correct_deployed(model)
    assert sum(c.__name__ == '_SqueezeExcitation' for c in type(model.stem).__mro__) == 1


@torch.no_grad()
@pytest.mark.parametrize('make', [repvgg, mobileone, lambda **k: repvgg(se=True, **k)])
def test_models_in_deployed_form(make, messages):
    """Weights of a merged model, loaded into one that was built merged, run through the step: nothing changes."""
    merged, x = make(), images(2, 3, 32, 32)
    before = merged(x)[0]
    reparameterize(merged)
    deployed = make(seed=1, deploy=True)
    deployed.load_state_dict({k: v for k, v in merged.state_dict().items() if 'folded_bn' not in k})
    context = CalibrationContext(QuantizedModel(deployed, quantizer_cfg(), 'random'), [x], progress=silent)
    Reparameterize().run(context)
    torch.testing.assert_close(context.model(x)[0], before, rtol=0, atol=1e-5 * before.abs().max().item())
    assert context.records == [dict(kind='reparameterized', modules=0)]
    assert messages == ['the branches were merged before (deployed form): nothing left to re-parameterize']


@torch.no_grad()
def test_replknet_folds_what_is_left():
    """Pointwise convolutions fold; the BatchNorm in front of a padded convolution stays."""
    model, x = replknet(), images(2, 3, 32, 32)
    before = model(x)[0]
    context = CalibrationContext(QuantizedModel(model, quantizer_cfg(), 'random'), [x], progress=silent)
    for step in (Reparameterize(), FoldBatchNorm()):
        step.run(context)
    torch.testing.assert_close(context.model(x)[0], before, rtol=0, atol=1e-4 * before.abs().max().item())
    left = [n for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert left and all(n.endswith(('prelkb_bn', 'preffn_bn', 'norm')) for n in left)


@pytest.mark.parametrize('make', [repvgg, mobileone, replknet])
def test_parameters_still_train_after_merging(make):
    model = make()
    reparameterize(model)
    assert all(p.requires_grad for p in model.parameters())
    frozen = make().requires_grad_(False)
    reparameterize(frozen)
    assert not any(p.requires_grad for p in frozen.parameters())


def test_scale_of_the_dense_branch_is_kept():
    model = repvgg()
    norm = model.stage_1[0].branch_3x3.norm
    expected = (norm.weight / (norm.running_var + norm.eps).sqrt()).abs().detach()
    norms = [b.norm for b in mobileone().stage1[0].branch_conv_list]
    reparameterize(model)
    torch.testing.assert_close(model.stage_1[0].branch_reparam.dense_scale, expected)
    other = mobileone()
    reparameterize(other)
    mean = sum((n.weight / (n.running_var + n.eps).sqrt()).abs() for n in norms) / 4
    torch.testing.assert_close(other.stage1[0].branch_reparam.dense_scale, mean.detach())


@pytest.mark.parametrize('make', [repvgg, mobileone, replknet])
def test_of_merged_statistics_the_mean_survives(make):
    """Each branch ends in a BatchNorm, so the output's mean is the sum of their biases; the variance is not known."""
    model = make()
    block, norms = next((m, [bn for bn in m.modules() if isinstance(bn, nn.modules.batchnorm._BatchNorm)])
                        for m in model.modules() if {'branch_3x3', 'branch_conv_list', 'lkb_origin'} & set(dir(m)))
    expected = torch.stack([bn.bias for bn in norms]).sum(0).detach()
    reparameterize(model)
    layer = next(m for m in block.modules() if hasattr(m, 'folded_bn'))
    known = layer.folded_bn
    torch.testing.assert_close(known.beta, expected)
    assert len(norms) > 1 and known.gamma is known.mean is known.sigma is None
    model.to('meta')
    assert known.beta.is_meta and layer.dense_scale.is_meta
    assert 'dense_scale' not in layer.state_dict() and 'folded_bn.beta' in layer.state_dict()


def run_step(model, x):
    Reparameterize().run(CalibrationContext(QuantizedModel(model, quantizer_cfg(), 'random'), [x], progress=silent))


def test_nothing_to_reparameterize():
    model = nn.Sequential(nn.Conv2d(3, 3, 1))
    assert not reparameterizable(model)
    with pytest.raises(ValueError, match=r'Sequential has nothing to re-parameterize: no module has '
                       r'switch_to_deploy\(\); remove the step Reparameterize'):
        run_step(model, images(2, 3, 8, 8))


@torch.no_grad()
def test_zero_variance_warns_and_stays_exact(messages):
    model, x = repvgg(), images(2, 3, 32, 32)
    norm = model.stage_1[0].branch_1x1.norm
    norm.running_var[1] = 0
    norm.weight[1] = 0.01
    before = model(x)[0]
    run_step(model, x)
    torch.testing.assert_close(model(x)[0], before, rtol=0, atol=1e-4 * before.abs().max().item())
    assert any('1 BatchNorms hold channels with zero variance (first: stage_1.0.branch_1x1.norm)' in m
               for m in messages), messages


@pytest.mark.parametrize('value', [-1.0, float('nan'), float('inf')])
def test_impossible_variance(value):
    model = repvgg()
    model.stage_1[0].branch_1x1.norm.running_var[1] = value
    with pytest.raises(ValueError, match=r'running variance of stage_1\.0\.branch_1x1\.norm is negative, NaN or '
                       'inf.* so its branch cannot be merged; check the float checkpoint'):
        reparameterize(model)


def test_sync_batch_norm_is_refused():
    with pytest.raises(ValueError, match=r"refuses to merge its branches: .*Build the model with "
                       r"norm_cfg=dict\(type='BN'\)"):
        reparameterize(repvgg(norm_cfg=dict(type='SyncBN')))
