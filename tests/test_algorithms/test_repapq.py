"""RepAPQ as steps: joint reconstruction with straight-through weights, an affine, absolute errors and a stage term."""
import copy
import logging

import pytest
import torch
from mmengine.logging import MMLogger
from models_for_tests import MIN_MAX, Chain, ResNet, calibrated, images, inserted, randomize
from reconstruction_for_tests import ST, run
from reconstruction_for_tests import joint as settings_of
from torch import nn

from mmquant.algorithms import FoldOutputAffine, InitActivationRange, InitWeightRange, InsertOutputAffine
from mmquant.models import QuantizedModel
from mmquant.models.output_affine import output_affine_of
from mmquant.models.units import unit_module
from mmquant.reconstruction.optimizers import Training
from mmquant.reconstruction.variables import UnitVariables

RATES = dict(weight=1e-4, bias=1e-3, weight_scale=1e-4, affine=1e-3, activation_scale=1e-4)


def prepared(model=None, affine=True, p=1, **cfg):
    context = inserted(model or randomize(ResNet()), images(40, 3, 8, 8), chunk=16, **cfg)
    observer = dict(type='mmquant.LpNormObserver', p=p)
    if affine:
        InsertOutputAffine(layers='all').run(context)
    InitWeightRange(observer).run(context)
    InitActivationRange(observer, num_images=40).run(context)
    return context


def joint(context, rates=None, **settings):
    settings = dict(dict(num_iters=40, batch_size=16, p=1, rounding=ST), **settings)
    return run(context, settings_of(rates or RATES, **settings))


def units(context):
    return [r for r in context.records if r['kind'] == 'unit']


def state(context) -> dict:
    return {n: t.clone() for n, t in context.model.architecture.state_dict().items()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---- the whole ------------------------------------------------------------------------------------------------------
def toy(seed: int):
    """Three convolutions; in two of a hundred images the first channel is 30 times as large.

    The first ReLU changes nothing; behind it the images are quantized, which inputs of a network are not.
    """
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.ReLU(), *[m for _ in range(3) for m in (nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())])
    with torch.no_grad():
        for conv in net[1::2]:
            conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator) * (2 / 144)**0.5)
            conv.bias.copy_(torch.randn(16, generator=generator) * 0.1)
    x = torch.rand(1024, 16, 8, 8, generator=generator)
    x[torch.rand(1024, generator=generator) < 0.02, 0] *= 30
    return net, x[:512], x[512:]


def toy_error(seed: int, p: float | None, repapq: bool = False, num_iters: int = 0) -> float:
    """Mean absolute error of the outputs for unseen images, W6A6; ``p`` None: min-max ranges, nearest rounding."""
    net, seen, unseen = toy(seed)
    with torch.no_grad():
        exact = net(unseen)
    context = inserted(net, seen, chunk=64, w_bits=6, a_bits=6, overrides=())
    observer = MIN_MAX if p is None else dict(type='mmquant.LpNormObserver', p=p)
    InsertOutputAffine(layers='all').run(context)
    InitWeightRange(observer).run(context)
    InitActivationRange(observer, num_images=512).run(context)
    if num_iters:
        rates = dict(weight=1e-4, bias=1e-4, weight_scale=1e-4, activation_scale=1e-4)
        rates |= dict(affine=1e-3, bias=1e-3) if repapq else {}
        joint(context, unit='layer', num_iters=num_iters, batch_size=64, rates=rates, p=p,
              tail=dict(end='net') if repapq else None)
        FoldOutputAffine().run(context)
    with torch.no_grad():
        return (context.model(unseen) - exact).abs().mean().item()


def check_order(seed: int, num_iters: int) -> None:
    plain, squares = toy_error(seed, None), toy_error(seed, 2, num_iters=num_iters)
    repapq = toy_error(seed, 1, repapq=True, num_iters=num_iters)
    assert plain > 1.2 * squares and squares > 1.2 * repapq, (plain, squares, repapq)


def test_order_on_the_toy():
    """Min-max worse than squared errors, squared errors worse than absolute ones with affine and tail."""
    check_order(0, 40)


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(5))
def test_order_on_the_toy_in_full(seed):
    check_order(seed, 300)


def test_absolute_ranges_keep_the_inliers():
    """Two outliers among 10 000 values: p = 1 ignores them, p = 2 covers them; on uniform values both agree."""
    from mmquant.observers import LpNormObserver
    from mmquant.quantizers import UniformAffineQuantizer
    quantizer = UniformAffineQuantizer(8)

    def high(x, p):
        observer = LpNormObserver(p=p, num_candidates=1000, min_shrink=0.0, max_samples=None)
        observer.observe(x)
        return float(observer.range(quantizer)[1])

    uniform = torch.rand(10000, generator=torch.Generator().manual_seed(0))
    spiked = torch.cat([uniform, torch.tensor([50., 80.])])
    assert high(spiked, 1) == pytest.approx(1.04, abs=0.1) and high(spiked, 2) > 70
    assert high(uniform, 1) == pytest.approx(high(uniform, 2), abs=2 / 1000)
    errors = {}
    for p in (1, 2):
        quantizer.set_range(torch.zeros(()), torch.tensor(high(spiked, p)))
        errors[p] = (quantizer(uniform) - uniform).abs().mean()
    assert errors[1] < 0.05 * errors[2]


# ---- joint reconstruction -----------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def done():
    context = prepared(w_bits=4, a_bits=4)
    context.before = state(context)
    return joint(context, tail=dict(end='stage'))


def test_float_mode_is_bit_identical(done):
    x = images(40, 3, 8, 8)
    fresh = prepared(w_bits=4, a_bits=4)
    with torch.no_grad(), done.model.quantization(False, False), fresh.model.quantization(False, False):
        assert torch.equal(done.model(x), fresh.model(x))
    after = state(done)
    assert all(torch.equal(after[n], v) for n, v in done.before.items() if n.endswith(('.weight', '.bias'))
               and 'affine' not in n)


def test_every_role_trains_and_nothing_is_left_behind(done):
    after, model = state(done), done.model
    for ending in ('weight_quantizer.scale', 'adapters.0.scale', 'quantized_bias', 'input_quantizer.scale'):
        moved = [not torch.equal(after[n], done.before[n]) for n in after if n.endswith(ending)]
        assert sum(moved) >= len(moved) // 2 > 0, ending
    assert all(q.rounding is None and q.codes is not None for q in model.weight_quantizers().values())
    assert not any(t.requires_grad for m in model.modules() for t in (*m.parameters(False), *m.buffers(False)))
    assert [r['unit'] for r in units(done)] == ['conv1', 'layer1.0', 'layer1.1', 'layer2.0', 'layer2.1', 'fc']
    assert all(r['kept'] == ('tuned' if r['held_tuned'] < r['held_nearest'] else 'nearest') for r in units(done))


def test_better_than_nearest_rounding(done):
    x, plain = images(40, 3, 8, 8), prepared(w_bits=4, a_bits=4).model
    with torch.no_grad():
        with done.model.quantization(False, False):
            exact = done.model(x)
        tuned, nearest = (m(x) - exact for m in (done.model, plain))
    assert tuned.abs().mean() < 0.95 * nearest.abs().mean()


def test_same_seed_same_result(done):
    torch.manual_seed(99)
    again = joint(prepared(w_bits=4, a_bits=4), tail=dict(end='stage'))
    assert same(state(again), state(done)) and units(again) == units(done)


def test_resumed_run_is_identical():
    """Also in the middle of a stage."""
    states = {}
    full = prepared(w_bits=4, a_bits=4)
    full.unit_done = lambda unit: states.update({unit: copy.deepcopy(full.model.architecture.state_dict())})
    settings = dict(num_iters=8, tail=dict(end='net'), inputs=dict(type='mmquant.ElementMix', inside=True))
    joint(full, **settings)
    for unit in (1, 3):
        part = prepared(w_bits=4, a_bits=4)
        part.model.architecture.load_state_dict(states[unit])
        part.first_unit = unit + 1
        joint(part, **settings)
        assert same(state(part), state(full))


def test_without_weight_the_tail_changes_no_bit():
    plain, zero = (joint(prepared(w_bits=4), num_iters=15, tail=tail) for tail in (None, dict(weight=0.0)))
    assert same(state(plain), state(zero)) and units(plain) == units(zero)


def test_last_unit_of_a_stage_counts_its_own_output_once():
    """Its record is that of a run without tail, as long as what comes before is the same."""
    records = {}
    for tail in (None, dict(end='stage', weight=3.0)):
        context = prepared(w_bits=4)
        seen = joint(context, num_iters=5, rates=dict(bias=1e-30), tail=tail)
        records[tail is None] = {r['unit']: r['held_nearest'] for r in units(seen)}
    with_tail, plain = records[False], records[True]
    for name in plain:
        if name in ('layer1.0', 'layer2.0'):
            assert with_tail[name] > 1.5 * plain[name]
        else:
            assert with_tail[name] == pytest.approx(plain[name], rel=1e-6)


def test_a_stage_that_nobody_has_is_announced():
    context = calibrated(randomize(Chain()), images(16, 3, 8, 8), overrides=())
    found = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())
    logger = MMLogger.get_instance('test_repapq')
    logger.addHandler(handler)
    joint(context, dict(weight=1e-3), num_iters=2, tail=dict(end='stage'))
    logger.removeHandler(handler)
    assert len(found) == 1 and "no block has a stage after it" in found[0] and "use end='net'" in found[0]


def test_roles_that_are_not_named_stay():
    for role, endings in (('affine', ['adapters.0.scale']), ('bias', ['quantized_bias']),
                          ('activation_scale', ['input_quantizer.scale', 'output_quantizer.scale']),
                          ('weight_scale', ['weight_quantizer.scale', 'codes'])):
        context = prepared(w_bits=4)
        before = state(context)
        joint(context, num_iters=6, rates={role: 1e-3}, best=dict(choose=False))
        after = state(context)
        changed = {n for n, v in before.items() if not torch.equal(v, after[n])}
        assert changed and all(any(n.endswith(e) for e in endings) for n in changed), (role, changed)


def test_adaround_with_affine_at_low_bits():
    context = prepared(w_bits=3, a_bits=4)
    joint(context, num_iters=60, rounding=None,
          rates=dict(rounding=1e-2, affine=1e-3, bias=1e-3, activation_scale=1e-4))
    records = units(context)
    assert sum(r['kept'] == 'tuned' for r in records) >= 3 and all(0 <= r['undecided'] <= 1 for r in records)
    assert sum(r['held_tuned'] for r in records) < 0.9 * sum(r['held_nearest'] for r in records)


def test_rates_far_too_high_fall_back_to_the_start():
    context = prepared(w_bits=4)
    start = copy.deepcopy(context)
    joint(context, num_iters=6, rates={role: 30.0 for role in RATES})
    kept = [r for r in units(context) if r['kept'] == 'nearest']
    assert len(kept) >= 4
    after, before = state(context), state(start)
    for record in kept:
        for name, value in before.items():
            if name.startswith(record['unit']) and name.endswith('scale'):
                assert torch.equal(value, after[name]), name
    assert all((v > 0).all() for n, v in after.items() if n.endswith('scale'))
    assert all(torch.isfinite(v.float()).all() for v in after.values())


def test_folded_and_saved(done, tmp_path):
    context, x = copy.deepcopy(done), images(8, 3, 8, 8)
    with torch.no_grad():
        before = context.model(x)
    FoldOutputAffine().run(context)
    with torch.no_grad():
        after = context.model(x)
    torch.testing.assert_close(after, before, rtol=0, atol=2e-2 * before.abs().max().item())
    path = context.model.save(str(tmp_path / 'q.pth'))
    fresh = QuantizedModel(randomize(ResNet(), seed=5), dict(context.model.quantizer_cfg), 'random')
    fresh.load(path)
    with torch.no_grad():
        assert torch.equal(fresh(x), after)


def test_variables_know_their_roles():
    context = prepared(w_bits=4)
    model, layers = context.model, context.model.quantized_layers()
    unit = model.units()[1]
    own = {n: layers[n] for n in unit.layers}
    activations = [q for q in model.activation_quantizers().values() if q in set(
        unit_module(model.architecture, unit).modules())]
    variables = UnitVariables(own, {}, activations)
    assert set(variables.by_role()) == {'affine', 'bias', 'activation_scale'}
    groups = variables.start(dict(affine=Training(0.1), bias=Training(0.0), activation_scale=Training(0.1, max_bits=2)))
    assert [(len(g.params), g.training.lr) for g in groups] == [(2, 0.1)]
    assert output_affine_of(own['layer1.0.conv1']).scale.requires_grad
    variables.stop()
    assert not output_affine_of(own['layer1.0.conv1']).scale.requires_grad
