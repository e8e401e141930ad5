"""LAPQ's phases on small networks: guards, monotone losses, resumption, bad input."""
import copy
import math

import pytest
import torch
from mmengine.structures import BaseDataElement
from models_for_tests import Chain, ResNet, images, inserted, randomize
from torch import nn

from mmquant.algorithms import InsertQuantizers, JointSearch, NormSweep
from mmquant.apis.quantize import quantize, run_steps
from mmquant.losses.objectives import build_objective
from mmquant.models import QuantizedModel
from mmquant.search import ClipProblem
from mmquant.utils.building import ConfigError

SMALL = dict(type='mmquant.PatternSearch', num_sweeps=3)
GRADIENT = dict(type='mmquant.GradientSearch', num_steps=6, batch_size=4, lr=0.02, num_checks=2)
OBSERVER = dict(type='mmquant.LpNormObserver', num_candidates=30)
SWEEP = dict(norms=(2, 3, 4), observer=OBSERVER, init_images=8)


def context_of(model=None, labels=False, count=8, **cfg):
    torch.manual_seed(0)
    cfg = {'w_bits': 3, 'a_bits': 3, **cfg}
    context = inserted(model or randomize(ResNet()), images(count, 3, 16, 16), chunk=4, **cfg)
    if labels:
        chosen = [BaseDataElement(gt_label=torch.tensor([i % 5])) for i in range(count)]
        context.samples = [chosen[:4], chosen[4:]]
    return context


def loss_now(context, objective=None):
    with ClipProblem(context, build_objective(context, objective, 'test')) as problem:
        return problem.loss([0.0] * problem.size)


def of_kind(context, kind):
    return [r for r in context.records if r['kind'] == kind]


@pytest.mark.parametrize('labels', [False, True])
@pytest.mark.parametrize('bits', [dict(), dict(w_bits=None, overrides=()), dict(a_bits=None, overrides=())],
                         ids=['both', 'activations', 'weights'])
def test_every_phase_is_no_worse_than_the_one_before(labels, bits):
    context = context_of(labels=labels, **bits)
    run_steps(context, [NormSweep(**SWEEP), JointSearch(SMALL)])
    sampled, fit, units = of_kind(context, 'norm'), of_kind(context, 'norm_fit')[0], of_kind(context, 'search')
    assert [r['p'] for r in sampled][:4] == [None, 2, 3, 4]
    assert len(sampled) == 4 + (fit['branch'] == 'vertex')
    assert fit['loss'] == min(r['loss'] for r in sampled)
    assert fit['loss'] == next(r['loss'] for r in sampled if r['p'] == fit['best_p'])
    assert units[0]['start_loss'] == fit['loss'] and len(units) == 3
    for r, after in zip(units, units[1:]):
        assert r['loss'] <= r['start_loss'] and after['start_loss'] == r['loss']
    assert units[-1]['loss'] < fit['loss'] and loss_now(context) == units[-1]['loss']
    assert {r['objective'] for r in units} == {'CrossEntropy' if labels else 'OutputDivergence'}
    assert {r['clips'] for r in units} == {len(context.model.weight_quantizers())
                                           + len(context.model.activation_quantizers())}


def test_the_other_family_is_untouched():
    context = context_of(a_bits=None, overrides=())
    before = copy.deepcopy(context.model.architecture.state_dict())
    run_steps(context, [NormSweep(**SWEEP), JointSearch(SMALL)])
    changed = [k for k, v in context.model.architecture.state_dict().items() if not torch.equal(v, before[k])]
    assert changed and all('weight_quantizer' in k for k in changed)


def test_eight_bits_are_next_to_float():
    context = context_of(labels=True, w_bits=8, a_bits=8)
    run_steps(context, [NormSweep(**SWEEP), JointSearch(SMALL)])
    objective = build_objective(context, None, 'test')
    with torch.no_grad(), context.model.quantization(False, False):
        total = sum(objective(context.model.run(c), i) for i, c in enumerate(context.chunks))
    assert of_kind(context, 'search')[-1]['loss'] < 1.01 * total.item() / 8


def fake_losses(monkeypatch, function):
    """Losses of the sweep as a function of p; the model is left alone."""
    initialized = []

    def initialize(self, context, p):
        initialized.append(p)

    def try_(self, context, images, objective, index, p):
        self._initialize(context, p)
        context.state['losses'].append((p, function(p)))
        context.records.append(dict(kind='norm', step=self.name, p=p, loss=function(p)))
        return function(p)

    monkeypatch.setattr(NormSweep, '_initialize', initialize)
    monkeypatch.setattr(NormSweep, '_try', try_)
    return initialized


@pytest.mark.parametrize('function, branch, best', [
    (lambda p: 9 if p is None else (p - 2.7)**2, 'vertex', pytest.approx(2.7)),
    (lambda p: 9 if p is None else 5 - (p - 3.1)**2, 'concave', 2),
    (lambda p: 9 if p is None else p + 0.1 * p * p, 'outside', 2),
    (lambda p: -1 if p is None else (p - 2.7)**2, 'vertex', None),  # the whole range is best
    (lambda p: 9 if p is None else 1 if p not in (2, 3, 4) else 0.1 + (p - 3)**2, 'vertex', 3),  # p* is no better
    (lambda p: 9 if p is None else math.inf if p == 4 else p, 'too few values', 2),
])
def test_guard_of_the_vertex(monkeypatch, function, branch, best):
    initialized = fake_losses(monkeypatch, function)
    context = context_of(Chain())
    NormSweep(**SWEEP).run(context)
    fit = of_kind(context, 'norm_fit')[0]
    assert (fit['branch'], fit['best_p']) == (branch, best) and initialized[-1] == best


def test_two_norms_fall_back_to_the_better_one():
    context = context_of(Chain())
    run_steps(context, [NormSweep(**{**SWEEP, 'norms': (2, 4)})])
    fit = of_kind(context, 'norm_fit')[0]
    assert (fit['branch'], fit['p_star']) == ('too few values', None)
    assert loss_now(context) == fit['loss'] == min(r['loss'] for r in of_kind(context, 'norm'))


def test_losses_that_are_nan_everywhere(monkeypatch):
    fake_losses(monkeypatch, lambda p: math.inf)
    with pytest.raises(FloatingPointError, match=r'NaN or infinite for all of 4 candidates \(whole range, p = \(2.0,'):
        NormSweep(**SWEEP).run(context_of(Chain()))


class Killed(BaseException):
    """Stands for kill -9."""


def saving(context, index, kill, done, saved):
    """A ``unit_done`` that keeps the state as the loop does, and dies behind ``kill`` units."""

    def unit_done(unit):
        saved[:] = [index, unit + 1, *copy.deepcopy((context.state, context.records,
                                                     context.model.architecture.state_dict()))]
        done.append(unit)
        if len(done) == kill:
            raise Killed

    return unit_done


def run_with_kills(steps, kills):
    """The same steps over contexts that die behind the given numbers of finished units, each resumed by the next."""
    saved = []
    for kill in (*kills, None):
        context, done, first_step = context_of(), [], 0
        if saved:
            first_step, context.first_unit, context.state, context.records, state = copy.deepcopy(saved)
            context.model.architecture.load_state_dict(state)
        try:
            for index in range(first_step, len(steps)):
                context.step_index, context.unit_done = index, saving(context, index, kill, done, saved)
                steps[index].run(context)
                context.first_unit = 0
            return context
        except Killed:
            continue


@pytest.mark.parametrize('kills', [(2,), (3, 3), (1, 5, 1)])
def test_interrupted_runs_go_on_to_the_bit(kills):
    """Killed inside the sweep of norms, behind p*, behind the gradient steps, behind a sweep of trial steps."""
    def steps():
        return [NormSweep(**SWEEP), JointSearch(GRADIENT, name='gradient'), JointSearch(SMALL)]

    whole, resumed = run_with_kills(steps(), ()), run_with_kills(steps(), kills)
    a, b = (c.model.architecture.state_dict() for c in (whole, resumed))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert whole.records == resumed.records


def test_official_grid_keeps_means_and_finds_its_clips():
    context = context_of()
    cfg = dict(weight=dict(type='mmquant.NoZeroQuantizer', bits=3, keep_mean=True),
               activation=dict(type='mmquant.UniformAffineQuantizer', bits=3))
    context.model = QuantizedModel(randomize(ResNet()), cfg, 'random')
    run_steps(context, [InsertQuantizers(), NormSweep(**SWEEP), JointSearch(SMALL)])  # BatchNorm is not folded
    for layer in context.model.quantized_layers().values():
        w, w_hat = layer._parameters['weight'], layer.weight_quantizer(layer._parameters['weight'])
        torch.testing.assert_close(w_hat.flatten(1).mean(1), w.flatten(1).mean(1), atol=1e-6, rtol=0)
        assert layer.weight_quantizer.scale.numel() == 1
    assert of_kind(context, 'search')[-1]['loss'] < of_kind(context, 'norm_fit')[0]['loss']


def test_several_outputs():

    class Pyramid(nn.Module):

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 3, 1)

        def forward(self, x):
            low = self.a(x).relu()
            return [self.c(low), self.c(self.b(low))], None

    context = context_of(Pyramid())
    run_steps(context, [NormSweep(**SWEEP), JointSearch(SMALL)])
    units = of_kind(context, 'search')
    assert units[0]['objective'] == 'OutputDivergence' and 0 < units[-1]['loss'] < units[0]['start_loss']


def test_fewer_images_for_the_search():
    context = context_of(labels=True)
    run_steps(context, [NormSweep(**SWEEP), JointSearch(GRADIENT, num_images=4)])
    first = of_kind(context, 'search')[0]
    assert first['image_forwards'] + first['image_forwards_saved'] \
        == pytest.approx(4 * first['evaluations'] + 3 * 4 * first['gradients'])


def test_from_python():
    model = quantize(randomize(Chain()), [images(8, 3, 8, 8)], [
        dict(type='mmquant.FoldBatchNorm'), dict(type='mmquant.InsertQuantizers'),
        dict(type='mmquant.NormSweep', **SWEEP), dict(type='mmquant.JointSearch', searcher=SMALL)])
    assert model.ready == (True, True)


def test_bad_input():
    with pytest.raises(ConfigError, match='CrossEntropy needs one label for each calibration image'):
        NormSweep(**SWEEP, objective=dict(type='mmquant.CrossEntropy')).run(context_of(Chain()))
    with pytest.raises(ConfigError, match=r'norms must be at least one number above 0, got \(2, 0\)'):
        NormSweep(norms=(2, 0))
    with pytest.raises(ConfigError, match='norms must be at least one number above 0'):
        NormSweep(norms=())
    with pytest.raises(ConfigError, match=r'JointSearch\.searcher: unknown type .* did you mean .mmquant.PowellSearch'):
        JointSearch(dict(type='mmquant.PowelSearch'))
    with pytest.raises(ConfigError, match='num_images must be at least 1, or None for all, got 0'):
        JointSearch(num_images=0)
    context = context_of(Chain())
    NormSweep(**SWEEP).run(context)
    context.model.architecture.convs[0].training = True
    with pytest.raises(ConfigError, match='1 modules are in training mode'):
        JointSearch(SMALL).run(context)


def test_nothing_to_search():
    context = context_of(Chain(), w_bits=None, a_bits=8, overrides=())
    for q in context.model.activation_quantizers().values():
        q.initialized = True
    context.model.activation_quantizers = dict
    with pytest.raises(ConfigError, match='no quantizer is selected, so there are no clips to search'):
        JointSearch(SMALL).run(context)
