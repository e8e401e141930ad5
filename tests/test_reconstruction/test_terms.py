"""Terms of the loss and regularizers, each alone; a kind of each registered here shows that none needs the core."""
from types import SimpleNamespace

import pytest
import torch
from models_for_tests import ResNet, calibrated, images, randomize
from reconstruction_for_tests import ADAROUND, joint, run, terms, trains, weights
from torch import nn

from mmquant.reconstruction import FitHook, Mixer, Regularizer, RoundingRegularizer, Term
from mmquant.registry import FIT_HOOKS, MIXERS, ROUNDINGS, TERMS
from mmquant.roundings import AdaRound
from mmquant.utils.building import ConfigError


def resnet(**cfg):
    return calibrated(randomize(ResNet()), images(40, 3, 8, 8), chunk=16, **dict(dict(w_bits=3, a_bits=4), **cfg))


def state(context) -> dict:
    return {n: t.clone() for n, t in context.model.architecture.state_dict().items()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def units(context) -> list[dict]:
    return [r for r in context.records if r['kind'] == 'unit']


RATES = dict(rounding=1e-2, activation_scale=1e-3)


# ---- the regularizer ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize('total', [10, 2000, 20000])
def test_schedule_of_the_exponent(total):
    regularizer = RoundingRegularizer()
    beta = [regularizer.push(step, total) for step in range(total + 1)]
    assert beta[0] == beta[total // 5] == 20 and beta[total] == pytest.approx(2)
    assert beta[total * 6 // 10] == pytest.approx(11)
    assert all(a >= b for a, b in zip(beta, beta[1:]))
    steps = {round(a - b, 9) for a, b in zip(beta[total // 5:], beta[total // 5 + 1:])}
    assert len(steps) == 1  # linear
    active = [regularizer.active(step, total) for step in range(total)]
    assert not any(active[:total // 5]) and all(active[total // 5:])


def test_windows():
    regularizer = RoundingRegularizer(weight=0.1, beta_start=8, beta_end=4, warmup=0.25, until=0.75)
    assert [regularizer.active(step, 8) for step in range(8)] == [False] * 2 + [True] * 4 + [False] * 2
    assert [regularizer.push(step, 8) for step in (2, 4, 6)] == [8, 6, 4]
    assert not RoundingRegularizer(weight=0).active(99, 100)


def test_relative_weights_scale_with_the_loss():
    fit = SimpleNamespace(initial_loss=300.0, variables=SimpleNamespace(num_weights=5000, roundings=dict(a=None)))
    assert RoundingRegularizer(weight=50, relative=True, warmup=0.5).for_unit(fit).weight == 3.0
    assert RoundingRegularizer(weight=0.02).for_unit(fit).weight == 0.02
    fit.variables.roundings = {}
    assert RoundingRegularizer().for_unit(fit) is None


@pytest.mark.parametrize('wrong', [dict(weight=-1), dict(warmup=1), dict(warmup=-0.1), dict(beta_end=0.5),
                                   dict(warmup=0.5, until=0.5), dict(until=1.5)])
def test_wrong_regularizers(wrong):
    with pytest.raises(ValueError, match='expected weight >= 0 and a window 0 <= begin < end <= 1|exponents must be'):
        RoundingRegularizer(**wrong)


def test_penalty_is_taken_once():
    """What the forward pass left behind counts for its step only."""
    rounding = AdaRound()
    rounding.penalty, rounding.beta = torch.tensor(3.0), 5.0
    fit = SimpleNamespace(variables=SimpleNamespace(roundings=dict(a=rounding, b=AdaRound())))
    assert RoundingRegularizer().penalty(fit, 5.0).item() == 3 and rounding.penalty is None and rounding.beta is None


# ---- terms ----------------------------------------------------------------------------------------------------------
def test_a_term_of_weight_zero_changes_no_bit():
    plain, zero = (run(resnet(), joint(RATES, num_iters=12, tail=tail)) for tail in (None, dict(weight=0.0)))
    assert same(state(plain), state(zero)) and units(plain) == units(zero)


def test_a_tail_alone_counts_the_own_output_where_it_is_the_end():
    """The last unit of each stage is fitted to its own output, as without any tail."""
    only = terms(tail=dict(end='stage'), unit=None)
    found = {r['unit']: r['held_nearest'] for r in units(run(resnet(), joint(dict(rounding=1e-30), terms=only,
                                                                            num_iters=2)))}
    plain = {r['unit']: r['held_nearest'] for r in units(run(resnet(), joint(dict(rounding=1e-30), num_iters=2)))}
    assert found.keys() == plain.keys()
    for name in ('layer1.1', 'layer2.1', 'fc'):
        assert found[name] == plain[name] > 0
    assert found['layer1.0'] != plain['layer1.0']


def test_terms_add_up_with_their_weights():
    once = units(run(resnet(), joint(dict(rounding=1e-30), num_iters=2)))
    more = units(run(resnet(), joint(dict(rounding=1e-30), num_iters=2, terms=terms(
        again=dict(type='mmquant.UnitLoss', p=2.0, weight=2.5)))))
    assert [r['held_nearest'] for r in more] == pytest.approx([3.5 * r['held_nearest'] for r in once], rel=1e-5)


def test_a_term_may_read_another_stream():
    """On float inputs a unit with float activations and weights of many bits has no error; on quantized ones it has."""
    found = {}
    for inputs in (None, 'float', 'quant'):
        context = resnet(w_bits=16, a_bits=2, overrides=())
        run(context, weights(num_iters=1, inputs='quant', terms=dict(unit=dict(type='mmquant.UnitLoss', inputs=inputs)),
                             quantize=('weights', 'activations')))
        found[inputs] = [r['held_nearest'] for r in units(context)]
    assert found[None] == found['quant'] != found['float']
    assert sum(found['float']) < sum(found['quant'])


# ---- what others register -------------------------------------------------------------------------------------------
@TERMS.register_module(name='FirstChannelForTests')
class FirstChannel(Term):
    """Only the first channel of the unit's quantized output counts."""

    def loss(self, prediction, target, channel_dim, importance=None):
        return (prediction - target).select(channel_dim, 0).square().mean()


@TERMS.register_module(name='ShiftForTests')
class Shift(Regularizer):
    """Pulls biases to a value, late."""

    def penalty(self, fit, push):
        found = fit.variables.by_role()['rounding']
        return sum((v - 5).square().sum() for v in found)


@FIT_HOOKS.register_module(name='AverageForTests')
class Average(FitHook):
    """Ends in the mean of all moments of activation scales; switches the optimizer once."""

    def __init__(self, at: int = 3) -> None:
        self.at = at

    def before_fit(self, fit):
        self.sums = [torch.zeros_like(x) for x in fit.variables.by_role().get('activation_scale', [])]
        self.switched = 0

    def after_step(self, fit, step):
        for total, x in zip(self.sums, fit.variables.by_role().get('activation_scale', [])):
            total += x.detach()
        if step == self.at:
            self.switched += 1
            return fit.variables.start(fit.settings.trainings)
        return None

    def after_fit(self, fit):
        with torch.no_grad():
            for total, x in zip(self.sums, fit.variables.by_role().get('activation_scale', [])):
                x.copy_(total / fit.num_iters)
        return dict(switched=self.switched, means=[x.item() for x in self.sums])


@ROUNDINGS.register_module(name='BoldAdaRoundForTests')
class Bold(AdaRound):
    """AdaRound with a role of its own."""

    def roles(self):
        return {'boldness': list(self.parameters())}


def named(name: str, **more) -> dict:
    return dict(type='mmquant.' + name, **more)


def test_a_term_from_elsewhere():
    context = run(resnet(), weights(num_iters=30, lr=3e-2, terms=terms(first=named('FirstChannelForTests'),
                                                                       unit=None)))
    assert sum(r['held_tuned'] < r['held_nearest'] for r in units(context)) >= 3


def test_a_regularizer_from_elsewhere():
    """It pushes all roundings up, within its window."""
    context = run(resnet(), weights(num_iters=30, lr=0.5, best=dict(choose=False), terms=terms(
        up=named('ShiftForTests', weight=1e4, begin=0.5))))
    model = context.model
    for name in ('layer1.0.conv1', 'fc'):
        layer = model.quantized_layers()[name]
        quantizer = layer.weight_quantizer
        up = quantizer.codes.float() - (layer._parameters['weight'] / quantizer.scale + quantizer.zero_point).floor()
        inside = (quantizer.codes > 0) & (quantizer.codes < quantizer.code_range[1])
        assert (up[inside] == 1).float().mean() > 0.95


def test_a_hook_from_elsewhere():
    hooks = dict(average=named('AverageForTests'), keep_best=None)
    context = run(resnet(), joint(RATES, num_iters=6, hooks=hooks))
    assert all(r['switched'] == 1 and 'held_tuned' not in r for r in units(context))
    found = [m / 6 for r in units(context) for m in r['means']]
    assert sorted(found) == pytest.approx(sorted(q.scale.item() for q in context.model.activation_quantizers().values()
                                                 if any(abs(q.scale.item() - m) < 1e-6 for m in found)), rel=1e-5)


def test_a_rounding_with_a_role_of_its_own_is_the_same_rounding():
    plain = run(resnet(), weights(num_iters=10, lr=1e-2))
    bold = run(resnet(), weights(num_iters=10, rounding=named('BoldAdaRoundForTests'),
                                 train=trains(dict(boldness=1e-2)) | dict(boldness=dict(lr=1e-2))))
    assert same(state(plain), state(bold)) and units(plain) == units(bold)


def test_two_roles_of_equal_optimizers_train_as_one():
    """An optimizer spelled out is the default one."""
    adam = trains(RATES, optimizer=dict(type='Adam'))
    plain, spelled = (run(resnet(), dict(joint(RATES, num_iters=8), train=t)) for t in (trains(RATES), adam))
    assert same(state(plain), state(spelled))


def test_ranges_of_a_unit_from_its_own_input():
    """PD-Quant's order: each unit's ranges are those that its activations have behind the quantized prefix."""
    context = calibrated(nn.Sequential(nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), images(64, 4), w_bits=8,
                         a_bits=8, overrides=())
    quantizers = context.model.activation_quantizers()
    expected = {n: q.scale.clone() for n, q in quantizers.items()}
    for quantizer in quantizers.values():
        quantizer.set_range(torch.tensor(-99.0), torch.tensor(99.0))
    observer = dict(type='mmquant.MinMaxObserver')
    hooks = dict(ranges=dict(type='mmquant.UnitRanges', observer=observer, num_rows=64))
    run(context, dict(type='mmquant.Reconstruction', quantize=('weights', 'activations'), unit='layer', num_iters=1,
                      rounding=ADAROUND, train=trains(dict(rounding=1e-30)), hooks=hooks))
    for name, quantizer in quantizers.items():
        torch.testing.assert_close(quantizer.scale, expected[name], rtol=2e-2, atol=0)


@MIXERS.register_module(name='OfThreeForTests')
class OfThree(Mixer):
    """Mean of the quantized prefix, the float one, and a third with quantized weights alone."""
    streams, modes = ('quant', 'float', 'weights'), {'weights': (True, False)}

    def __call__(self, *rows):
        assert len(rows) == 3
        return sum(rows) / 3


@MIXERS.register_module(name='OfNothingForTests')
class OfNothing(OfThree):
    """Names a stream that it does not describe."""
    streams = ('quant', 'past')


def test_a_mixer_may_bring_streams_of_its_own():
    context, settings = resnet(), joint(RATES, num_iters=6)
    run(context, dict(settings, inputs=named('OfThreeForTests')))
    plain = run(resnet(), settings)
    assert not same(state(context), state(plain))
    assert [r['held_nearest'] for r in units(context)][:2] == [r['held_nearest'] for r in units(plain)][:2]  # unmixed
    with pytest.raises(ConfigError, match="there is no stream 'past'; valid ones: float, quant, weights"):
        run(resnet(), dict(settings, inputs=named('OfNothingForTests')))
