import copy
import itertools

import pytest
import torch
from detectors_for_tests import context_of, detector, needs_detectors
from models_for_tests import MLP, Chain, ResNet, ViT, calibrated, images, randomize
from reconstruction_for_tests import activations, kept, run, step, weights
from torch import nn

from mmquant.reconstruction import unit_fit as module
from mmquant.reconstruction.problem import split_rows
from mmquant.reconstruction.undecided import undecided_text
from mmquant.utils.building import ConfigError


def codes_of(model) -> dict:
    return {n: q.codes.clone() for n, q in model.weight_quantizers().items() if q.codes is not None}


def scales_of(model) -> dict:
    return {n: q.scale.clone() for n, q in model.activation_quantizers().items()}


def unit_records(context, name='weights') -> list[dict]:
    return [r for r in context.records if r['kind'] == 'unit' and r['step'] == name]


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---- optimality on a problem small enough to try everything ----------------------------------------------------


def tiny_linear(seed, rows=512, size=8):
    """A linear layer with strongly correlated inputs: nearest rounding is not best."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, size, generator=generator) @ torch.randn(size, size, generator=generator) * 2.5
    model = nn.Sequential(nn.Linear(size, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(1, size, generator=generator))
    return calibrated(model, x, chunk=64, w_bits=4, a_bits=None, overrides=())


def brute_force(context, rows):
    """(losses of all 2**n roundings, loss of nearest rounding) on some rows."""
    layer = context.model.architecture[0]
    quantizer, weight = layer.weight_quantizer, layer._parameters['weight'].detach()
    x = torch.cat(context.chunks)[rows]
    base = (weight / quantizer.scale).floor() + quantizer.zero_point
    up = torch.tensor(list(itertools.product((0., 1.), repeat=weight.numel())))
    candidates = quantizer.scale * ((base + up).clamp(0, 15) - quantizer.zero_point)
    losses = (x @ (candidates - weight).T).square().mean(0)
    nearest = (x @ (quantizer.decode(quantizer.encode(weight)) - weight).T).square().mean()
    return losses, nearest.item()


@torch.no_grad()
def loss_of_codes(context, rows) -> float:
    layer = context.model.architecture[0]
    x = torch.cat(context.chunks)[rows]
    return (x @ (layer.weight_quantizer(layer.weight) - layer._parameters['weight']).T).square().mean().item()


@pytest.mark.parametrize('seed', range(10))
def test_between_the_optimum_and_nearest_rounding(seed):
    """Never below the optimum over all 256 roundings; with keep_best never above nearest, on held-out rows."""
    context = tiny_linear(seed)
    _, held = split_rows(512, 64, context.seed)
    losses, nearest = brute_force(context, held)
    run(context, weights(num_iters=100, lr=3e-2))
    record, = unit_records(context)
    found = loss_of_codes(context, held)
    assert losses.min() * (1 - 1e-4) <= found <= nearest * (1 + 1e-5)
    assert record['held_nearest'] == pytest.approx(nearest, rel=1e-3)
    assert found == pytest.approx(min(record['held_nearest'], record['held_tuned']), rel=1e-3)
    assert record['kept'] == ('tuned' if record['held_tuned'] < record['held_nearest'] else 'nearest')


def test_better_than_nearest_on_average():
    """AdaRound finds no global optimum even here, but without keep_best too it is better for most seeds."""
    ratios, rows = [], torch.arange(512)
    for seed in range(10):
        context = tiny_linear(seed)
        losses, nearest = brute_force(context, rows)
        run(context, weights(num_iters=400, lr=3e-2, batch_size=448, best=dict(choose=False)))
        found = loss_of_codes(context, rows)
        assert found >= losses.min() * (1 - 1e-4)
        ratios.append(found / nearest)
    assert sum(ratios) / 10 < 0.95 and sum(r <= 1 for r in ratios) >= 7, ratios


def test_fully_correlated_inputs_need_a_small_sum_of_errors():
    """With equal inputs only the sum of a row's rounding errors matters: it gets smaller than with nearest rounding."""
    torch.manual_seed(0)
    x = images(256, 1).abs().expand(-1, 16).contiguous()
    context = calibrated(nn.Sequential(nn.Linear(16, 64)), x, chunk=64, w_bits=3, a_bits=None, overrides=())
    run(context, weights(num_iters=300, lr=3e-2, best=dict(choose=False)))
    layer = context.model.architecture[0]
    with torch.no_grad():
        weight, quantizer = layer._parameters['weight'], layer.weight_quantizer
        found = (quantizer(weight) - weight).sum(1).abs() / quantizer.scale.flatten()
        nearest = (quantizer.decode(quantizer.encode(weight)) - weight).sum(1).abs() / quantizer.scale.flatten()
    assert found.mean() < 0.5 * nearest.mean() and found.max() < nearest.max()


def test_all_roundings_are_decided_after_2000_steps():
    context = calibrated(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), images(64, 8), w_bits=3,
                         a_bits=None, overrides=())
    run(context, weights(num_iters=2000, lr=1e-2, unit='net'))
    assert unit_records(context)[0]['undecided'] < 0.01


def test_a_relative_regularizer_decides_whatever_the_magnitude_of_the_outputs():
    found = {}
    for relative, gain in ((True, 1), (True, 64), (False, 64)):
        torch.manual_seed(0)
        context = calibrated(nn.Sequential(nn.Linear(8, 8)), images(64, 8) * gain, w_bits=3, a_bits=None, overrides=())
        regularizer = dict(weight=100 if relative else 0.01, relative=relative)
        run(context, weights(num_iters=1000, lr=1e-2, regularizer=regularizer, best=dict(choose=False)))
        found[relative, gain] = codes_of(context.model), unit_records(context)[0]
    assert same(found[True, 1][0], found[True, 64][0])
    assert found[True, 64][1]['undecided'] <= found[True, 1][1]['undecided'] + 1e-6 < 0.02
    assert found[False, 64][1]['undecided'] > 0.1


def test_bfloat16():
    """Fitting runs in bfloat16, choosing in float32."""
    exact, half = (calibrated(randomize(ResNet()), images(40, 3, 8, 8), chunk=16, w_bits=3) for _ in range(2))
    half.amp = True
    for context in (exact, half):
        run(context, weights(num_iters=20, lr=1e-2))
    a, b = unit_records(exact), unit_records(half)
    assert a[0]['held_nearest'] == b[0]['held_nearest'] and a[0]['loss'] != b[0]['loss']
    assert all(r['loss'] == pytest.approx(s['loss'], rel=0.1) for r, s in zip(a, b))


def test_keep_best_off_keeps_what_was_learned():
    """A rate so high that learning spoils the unit: keep_best falls back, without it the damage stays."""
    kept = {}
    for keep_best in (True, False):
        context = tiny_linear(0)
        run(context, weights(num_iters=20, lr=30.0, best=dict(choose=keep_best), regularizer=dict(weight=0.0)))
        record, = unit_records(context)
        assert record['held_tuned'] > 2 * record['held_nearest']
        kept[keep_best] = loss_of_codes(context, split_rows(512, 64, 0)[1]), record
    for keep_best, which in ((True, 'nearest'), (False, 'tuned')):
        loss, record = kept[keep_best]
        assert loss == pytest.approx(record[f'held_{which}'], rel=1e-3) and record['kept'] == which


# ---- whole nets -----------------------------------------------------------------------------------------------


def resnet(**cfg):
    return calibrated(randomize(ResNet()), images(40, 3, 8, 8), chunk=16, **cfg)


def reconstructed(stage=weights, w_bits=3, a_bits=4, iters=40, **more):
    return run(resnet(w_bits=w_bits, a_bits=a_bits), stage(num_iters=iters, lr=1e-2, **more))


@pytest.fixture(scope='module')
def weights_done():
    return reconstructed()


def test_weights_change_codes_and_reduce_the_error(weights_done):
    context = copy.deepcopy(weights_done)
    records, model = unit_records(context), context.model
    assert [r['unit'] for r in records] == ['layer1.0', 'layer1.1', 'layer2.0', 'layer2.1', 'fc']
    codes = codes_of(model)
    assert sorted(codes) == sorted(set(model.quantized_layers()) - {'conv1'})  # the 8-bit stem keeps nearest rounding
    tuned = [r for r in records if r['kept'] == 'tuned']
    assert len(tuned) >= 3 and all(r['held_tuned'] <= r['held_nearest'] for r in tuned)
    assert sum(r['held_tuned'] for r in tuned) < 0.9 * sum(r['held_nearest'] for r in tuned)
    for record in records:
        steps = {}
        for name in (n for n in codes if n.startswith(record['unit'])):
            layer = model.quantized_layers()[name]
            steps[name] = codes[name].int() - layer.weight_quantizer.encode(layer._parameters['weight']).int()
        assert all(x.abs().max() <= 1 for x in steps.values())  # up or down
        share = sum(x.count_nonzero() for x in steps.values()) / sum(x.numel() for x in steps.values())
        assert share == (pytest.approx(record['flipped']) if record['kept'] == 'tuned' else 0)
        assert 0.01 < record['flipped'] < 0.5 and 0 < record['undecided'] <= 1 and record['loss'] > 0
    x = images(40, 3, 8, 8)
    plain = resnet(w_bits=3, a_bits=4).model
    with torch.no_grad(), model.quantization(True, False), plain.quantization(True, False):
        tuned_out, nearest_out = model(x), plain(x)
    with torch.no_grad(), model.quantization(False, False):
        exact = model(x)
    assert (tuned_out - exact).norm() < 0.9 * (nearest_out - exact).norm()


def test_float_output_is_bit_identical_before_and_after(weights_done):
    x = images(40, 3, 8, 8)
    before, after = resnet(w_bits=3).model, weights_done.model
    with torch.no_grad(), before.quantization(False, False), after.quantization(False, False):
        assert torch.equal(before(x), after(x))
    assert all(q.rounding is None for q in after.weight_quantizers().values())
    assert not any(p.requires_grad for p in after.parameters())
    assert not any(m.training for m in after.modules())


def test_same_seed_is_bit_identical(weights_done):
    again = reconstructed()
    assert same(codes_of(weights_done.model), codes_of(again.model)) and weights_done.records == again.records
    other = resnet(w_bits=3, a_bits=4)
    other.seed = 1
    run(other, weights(num_iters=40, lr=1e-2))
    assert not same(codes_of(weights_done.model), codes_of(other.model))


def test_global_random_state_plays_no_part(weights_done):
    torch.manual_seed(1234)
    torch.rand(7)
    assert same(codes_of(reconstructed().model), codes_of(weights_done.model))


@pytest.mark.parametrize('stage, name', [(weights, 'weights'), (activations, 'activations')])
def test_resumed_run_is_identical(stage, name):
    """Stop behind any unit, start a new process with the saved state: the same codes and scales."""
    states = {}
    full = resnet(w_bits=3, a_bits=4)
    full.unit_done = lambda unit: states.update({unit: copy.deepcopy(full.model.architecture.state_dict())})
    settings = stage(num_iters=12, lr=1e-2)
    run(full, settings)
    assert len(states) >= 5
    for unit in (sorted(states)[0], sorted(states)[2]):
        part = resnet(w_bits=3, a_bits=4)
        part.model.architecture.load_state_dict(states[unit])
        part.first_unit = unit + 1
        run(part, settings)
        assert same(codes_of(part.model), codes_of(full.model)) and same(scales_of(part.model), scales_of(full.model))
        assert [r['unit'] for r in unit_records(part, name)] == [
            r['unit'] for r in unit_records(full, name)
        ][sorted(states).index(unit) + 1:]
    done = resnet(w_bits=3, a_bits=4)
    done.first_unit = max(states) + 1
    run(done, settings)
    assert not unit_records(done) and not unit_records(done, 'activations')


def test_eight_bits_change_the_logits_by_less_than_one_percent():
    x = images(64, 3, 8, 8)
    context = calibrated(randomize(ResNet(width=8)), x, w_bits=8, a_bits=8, overrides=())
    with torch.no_grad(), context.model.quantization(False, False):
        exact = context.model(x)
    run(context, weights(num_iters=60))
    with torch.no_grad(), context.model.quantization(True, False):
        assert (context.model(x) - exact).norm() < 0.01 * exact.norm()
    run(context, activations(num_iters=60, lr=4e-4))
    with torch.no_grad():
        assert 0 < (context.model(x) - exact).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize('lr', [1e-3, 1.0])
def test_step_sizes_stay_positive_and_never_get_worse(lr):
    """Also with a rate far too high: the best of the held-out rows wins."""
    context = resnet(w_bits=8, a_bits=3)
    before = scales_of(context.model)
    run(context, activations(num_iters=24, lr=lr, p=2.4))
    after, records = scales_of(context.model), unit_records(context, 'activations')
    assert all((s > 0).all() and torch.isfinite(s).all() and not s.requires_grad for s in after.values())
    assert all((r['kept'] == 'tuned') == (r['held_tuned'] < r['held_nearest']) for r in records)
    changed = sum(not torch.equal(before[n], after[n]) for n in before)
    assert changed >= 5 if lr < 1 else True
    assert not codes_of(context.model)  # weights are left alone


def test_learning_step_sizes_helps_where_ranges_are_bad():
    context = resnet(w_bits=8, a_bits=3)
    for quantizer in context.model.activation_quantizers().values():
        quantizer.scale.mul_(3)
    run(context, activations(num_iters=200, lr=2e-2))
    records = unit_records(context, 'activations')
    assert sum(r['held_tuned'] for r in records) < 0.7 * sum(r['held_nearest'] for r in records)


def test_weight_stage_reads_the_quantized_prefix():
    """What the units in front were rounded to changes what the next one learns; with float inputs it does not."""
    found = {}
    for inputs in ('quant', 'float'):
        for start in ('nearest', 'spoiled'):
            context = calibrated(randomize(Chain(depth=3)), images(40, 3, 8, 8), w_bits=3, a_bits=None, overrides=())
            if start == 'spoiled':
                quantizer = context.model.weight_quantizers()['convs.0']
                quantizer.set_range(quantizer.scale.flatten() * -1, quantizer.scale.flatten() * 1)
            run(context, weights(num_iters=20, lr=1e-2, unit='layer', inputs=inputs))
            found[inputs, start] = codes_of(context.model)['convs.2']
    assert torch.equal(found['float', 'nearest'], found['float', 'spoiled'])
    assert not torch.equal(found['quant', 'nearest'], found['quant', 'spoiled'])


@pytest.mark.parametrize('unit, count', [('layer', 10), ('block', 5), ('stage', 3), ('net', 1)])
def test_granularities(unit, count):
    context = reconstructed(unit=unit, iters=4)
    records = unit_records(context)
    assert len(records) == count and all(r['held_nearest'] > 0 for r in records)
    assert len(codes_of(context.model)) == (11 if unit == 'net' else 10)


def test_stem_is_reconstructed_on_demand():
    context = reconstructed(iters=3, hooks=dict(kept(), stem=None))
    assert [r['unit'] for r in unit_records(context)][0] == 'conv1' and 'conv1' in codes_of(context.model)
    low = calibrated(randomize(ResNet()), images(16, 3, 8, 8), w_bits=3, overrides=())
    run(low, weights(num_iters=2))
    assert 'conv1' in codes_of(low.model)


def test_more_losses_and_attention():
    context = reconstructed(iters=8, terms=dict(unit=dict(type='mmquant.FisherLoss')))
    assert len(unit_records(context)) == 5
    context = reconstructed(activations, iters=8, terms=dict(unit=dict(type='mmquant.FisherLoss')))
    assert all(r['kept'] == 'nearest' or r['held_tuned'] < r['held_nearest']
               for r in unit_records(context, 'activations'))
    vit = calibrated(randomize(ViT()), images(24, 3, 16, 16))
    run(vit, weights(num_iters=5))
    run(vit, activations(num_iters=5))
    assert [r['unit'] for r in unit_records(vit, 'activations')] == ['layers.0', 'layers.1', 'head']


def test_nearest_rounding_learns_nothing():
    context = reconstructed(iters=3, rounding=dict(type='mmquant.NearestRounding'))
    model = context.model
    for name, codes in codes_of(model).items():
        layer = model.quantized_layers()[name]
        assert torch.equal(codes, layer.weight_quantizer.encode(layer._parameters['weight']))
    assert all(r['flipped'] == 0 and r['undecided'] == 0 for r in unit_records(context))


def test_few_images_and_big_batches():
    for rows in (1, 3, 9):
        context = calibrated(MLP(), images(rows, 8), chunk=4, overrides=())
        run(context, weights(num_iters=3, batch_size=64))
        run(context, activations(num_iters=3, batch_size=64))
        assert [r['unit'] for r in context.records[1:]] == ['fc1', 'fc2', 'fc2']


def test_progress_counts_all_steps():
    seen = []

    class Bar:

        def __init__(self, description, total):
            seen.append((description, total))

        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda self, *exc: False  # noqa: E731

        def update(self, done, text=''):
            seen.append((done, text))

    context = resnet(w_bits=3)
    context.progress = Bar
    run(context, weights(num_iters=10))
    assert seen[0] == ('weights (5 units)', 50) and seen[-1] == (50, 'fc') and seen[-2][1].startswith('fc loss')
    assert [s for s, _ in seen[1:]] == sorted(s for s, _ in seen[1:])


def test_nan_names_the_unit():
    context = resnet(w_bits=3)
    with torch.no_grad():
        context.model.architecture.layer2[0].conv1.bias[0] = float('nan')
    with pytest.raises(FloatingPointError, match=r'float output of unit layer2\.0 holds NaN or infinite values; check '
                       'the calibration images, the float checkpoint'):
        run(context, weights(num_iters=2))
    assert all(q.rounding is None for q in context.model.weight_quantizers().values())


def test_block_that_writes_into_its_input():
    """Pre-activation blocks with a functional in-place ReLU: cached inputs stay as they are."""

    class Pre(nn.Module):

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            x -= 0.25
            return self.conv(x) + x

    model = nn.Sequential(nn.Conv2d(3, 3, 1), Pre(), Pre(), nn.Conv2d(3, 3, 1))
    x = images(16, 3, 6, 6)
    for chunk in (16, 4):
        context = calibrated(randomize(model), x, chunk=chunk, w_bits=8, a_bits=None, overrides=())
        run(context, weights(num_iters=4, regularizer=dict(weight=0.0), inputs='float'))
        for record in unit_records(context):
            assert record['held_nearest'] < 1e-3, (record['unit'], record['held_nearest'])
        assert torch.equal(torch.cat(context.chunks), x)


@pytest.mark.parametrize('wrong, text', [
    (dict(quantize=('weight', )), r"quantize must be one of .* got \('weight',\)"),
    (dict(unit='blok'), "unit must be one of .* got 'blok'"),
    (dict(inputs='fp'), "inputs must be 'quant', 'float' or the config of a mixer, got 'fp'"),
    (dict(inputs=dict(type='mmquant.ElementMx')), r"Reconstruction\.inputs: unknown type .* 'mmquant.ElementMix'"),
    (dict(num_iters=0), 'num_iters must be positive, got 0'), (dict(batch_size=0), 'batch_size must be positive'),
    (dict(train=None), r'Reconstruction\.train must name each role that trains, with its rate, such as .* got None'),
    (dict(train=1e-3), r'Reconstruction\.train must name each role that trains, .* got 0\.001'),
    (dict(train=dict(rounding=1e-3)), r'Reconstruction\.train must name each role that trains'),
    (dict(train={}), 'must give at least one role a positive lr, got {}'),
    (dict(train=dict(rounding=dict(lr=0))), 'must give at least one role a positive lr'),
    (dict(train=dict(rounding=dict(lr=-1e-3))), r'Reconstruction\.train\.rounding: lr must be at least 0, got -0\.001'),
    (dict(train=dict(rounding=dict(schedule='cosine'))), r"train\.rounding: the key 'lr' is required"),
    (dict(train=dict(rounding=dict(lr=1.0, schedule='cosin'))), r"rounding: unknown schedule 'cosin'; .* 'cosine'"),
    (dict(train=dict(rounding=dict(lr='high'))), r"train\.rounding: lr must be float, got 'high'"),
    (dict(train=dict(rounding=dict(lr=1.0, max_bits=0))), 'rounding: max_bits must be None or at least 2, got 0'),
    (dict(train=dict(rounding=dict(lr=1.0, optimizer=dict(type='Adm')))), r"rounding: optimizer: unknown type 'Adm'"),
    (dict(terms=dict(rounding=dict(type='mmquant.RoundingRegularizer', wieght=0.1))),
     r"terms\.rounding \(RoundingRegularizer\): unknown key 'wieght'; did you mean 'weight'\?"),
    (dict(terms=dict(unit=dict(type='mmquant.UnitLos'))), r"terms\.unit: unknown type 'mmquant.UnitLos'; did you mean"),
    (dict(terms=dict(unit=None)), r'Reconstruction\.terms must hold at least one term on outputs'),
    (dict(terms=dict(unit=dict(type='mmquant.UnitLoss', p=0.1))), r'terms\.unit \(UnitLoss\): p must be at least 1'),
    (dict(terms=dict(unit=dict(type='mmquant.UnitLoss', inputs='fp'))), r"inputs must be one of .* got 'fp'"),
    (dict(terms=dict(tail=dict(type='mmquant.TailLoss', end='block'))), r"end must be 'stage' or 'net', got 'block'"),
    (dict(terms=dict(tail=dict(type='mmquant.TailLoss', weight=-1.0))), 'weight must be at least 0, got -1.0'),
    (dict(terms=[dict(type='mmquant.UnitLoss')]), r'Reconstruction\.terms must be a dict of configs by name'),
    (dict(hooks=dict(best=dict(type='mmquant.KeepBest', held_out=-1))), 'held_out and every must be at least 0'),
    (dict(rounding=dict(type='mmquant.AdaRond')), r"Reconstruction\.rounding: unknown type .* 'mmquant.AdaRound'"),
])
def test_wrong_settings(wrong, text):
    with pytest.raises(ConfigError, match=text):
        step(weights(**wrong))


def test_by_default_roundings_of_weights_are_learnt():
    default = step(dict(type='mmquant.Reconstruction', num_iters=2)).settings
    assert default.mode == (True, False) and type(default.new_rounding()).__name__ == 'AdaRound'
    assert {role: t.lr for role, t in default.trainings.items()} == dict(rounding=1e-3)


def test_names_and_stages():
    assert step(weights()).name == 'weights' and step(weights()).evaluates == (True, False)
    second = step(activations())
    assert second.name == 'activations' and second.evaluates == (True, True) and not second.structural
    assert step(activations(rounding=dict(type='mmquant.AdaRound'))).name == 'joint'
    assert second.image_passes(5) == 20000 * 32


def test_quantizers_of_many_bits_keep_their_step_sizes():
    """First and last layer at 8 bits, the rest at 3: only the latter's steps are learned; with a limit of 2 none."""
    context = calibrated(randomize(ResNet()), images(16, 3, 8, 8), chunk=8, a_bits=3)
    before = scales_of(context.model)
    wide = {n for n, q in context.model.activation_quantizers().items() if q.grid.bits == 8}
    run(context, activations(num_iters=20, batch_size=8, lr=1e-2, max_bits=7, best=dict(held_out=2, choose=False)))
    changed = {n for n, scale in scales_of(context.model).items() if not torch.equal(scale, before[n])}
    assert changed == set(before) - wide and wide and changed
    before = scales_of(context.model)
    run(context, activations(num_iters=20, max_bits=2))
    assert same(before, scales_of(context.model))


@pytest.mark.parametrize('settings, text', [
    (dict(train=dict(roundign=dict(lr=1e-3))), "nothing has the role 'roundign'; did you mean 'rounding'?"),
    (dict(train=dict(rounding=dict(lr=1e-3), weight=dict(lr=1e-3))), "nothing has the role 'weight'"),
    (dict(train=dict(rounding=dict(lr=1e-3), affine=dict(lr=1e-3))), "nothing has the role 'affine'"),
    (dict(train=dict(rounding=dict(lr=1e-3), activation_scale=dict(lr=1e-3))), "the role 'activation_scale'"),
    (dict(rounding=None), "the role 'rounding', since there is no rounding, no adapter and no activation quantizer"),
])
def test_roles_that_nothing_has_are_named(settings, text):
    with pytest.raises(ConfigError) as error:
        run(resnet(), dict(weights(num_iters=2), **settings))
    assert text in str(error.value)


def test_activation_stage_of_a_net_without_activation_quantizers_does_nothing():
    context = resnet(a_bits=None, overrides=())
    run(context, activations(num_iters=2))
    assert not unit_records(context, 'activations')


def test_a_loss_that_is_not_finite_never_wins(monkeypatch):
    """Without the fall-back a NaN would be kept, since no comparison with it is true."""
    context = tiny_linear(0)
    original = module.UnitFit.loss_of
    monkeypatch.setattr(module.UnitFit, 'loss_of', lambda self, state: original(self, state) if state is self.initial
                        else float('nan'))
    run(context, weights(num_iters=3))
    record, = unit_records(context)
    assert record['kept'] == 'nearest' and record['flipped'] >= 0
    layer = context.model.architecture[0]
    assert torch.equal(layer.weight_quantizer.codes, layer.weight_quantizer.encode(layer._parameters['weight']))


@pytest.mark.parametrize('every', [1, 7, 0.25])
def test_best_of_several_moments(every):
    """With learned roundings too; measuring does not disturb the fit, so the last moment is that of a run without."""
    losses = {}
    for moments in (0, every):
        context = resnet(w_bits=3)
        run(context, weights(num_iters=20, lr=3e-2, best=dict(every=moments)))
        losses[moments] = [(r['held_nearest'], r['held_tuned'], r['loss']) for r in unit_records(context)]
    assert losses[0][0][2] == losses[every][0][2]
    assert losses[every][0][1] <= losses[0][0][1]


@needs_detectors
@pytest.mark.parametrize('stage', [weights, activations])
@pytest.mark.parametrize('name', ['retinanet', 'faster-rcnn'])
def test_shared_heads_are_fitted_to_what_the_float_net_gives_on_every_level(name, stage, monkeypatch):
    """Targets, and on float inputs the inputs too, of each call of the layers that make the outputs."""
    context = context_of(detector(name), list(images(4, 3, 64, 64).split(2)))
    model, seen = context.model, {}

    def watch(module, args, output):
        seen.setdefault(module, []).append((args[0].clone(), output.clone()))

    with torch.no_grad(), model.quantization(False, False):
        handles = [model.architecture.get_submodule(u.name).register_forward_hook(watch) for u in model.units()]
        for index in range(len(context.chunks)):
            context.run(index)
        for handle in handles:
            handle.remove()

    original, checked = module._data, []

    def watched(visit, settings):
        data, runs, targets = original(visit, settings)
        unit, calls = visit.unit, seen[model.architecture.get_submodule(visit.unit.name)]
        if unit.activation is None and unit.name.split('.')[0].endswith('head'):
            checked.append(unit.name)
            count = len(calls) // len(context.chunks)
            for (size, call), found in targets.items():
                expected = [calls[i * count + call] for i in range(len(context.chunks))]
                torch.testing.assert_close(found, torch.cat([y for _, y in expected]), rtol=1e-4, atol=1e-4)
                if settings.stream == 'float':
                    torch.testing.assert_close(data['float'][size, call].data, torch.cat([x for x, _ in expected]),
                                               rtol=1e-4, atol=1e-4)
        return data, runs, targets

    monkeypatch.setattr(module, '_data', watched)
    run(context, stage(num_iters=1, batch_size=2, best=dict(held_out=1)))
    assert len(checked) >= 2


def test_undecided_roundings_are_told_with_the_remedy():
    records = [dict(unit=n, undecided=x) for n, x in zip('abc', (0.42, 0.06, 0.01))] + [dict(unit='d')]
    text = undecided_text(records)
    assert text.startswith('Undecided roundings: steps: 42% of a (and more than 5% in 1 other unit). They went to the')
    assert 'num_iters' in text and undecided_text(records[2:]) == '' and '\n' not in text
    both = [dict(r, step='weights') for r in records] + [dict(unit='', undecided=0.5, step='joint')]
    assert undecided_text(both).startswith(
        'Undecided roundings: weights: 42% of a (and more than 5% in 1 other unit); joint: 50% of the net. They')


def test_what_overflows_is_told_with_its_unit():
    net = randomize(ResNet())
    net.layer1[0].conv1.weight.data.mul_(1e30)
    with pytest.raises(FloatingPointError, match=r'unit layer1\.0: the reconstruction loss became (inf|nan) at '
                       'step 0 of 2; nothing has been trained yet'):
        run(calibrated(net, images(16, 3, 16, 16)), weights(num_iters=2, batch_size=4))
