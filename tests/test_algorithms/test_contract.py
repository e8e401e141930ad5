"""What every registered step must keep: a new one is picked up by itself, after ranges of weights and activations."""
import copy
import inspect

import pytest
import torch
from models_for_tests import MIN_MAX, ResNet, images, quantizer_cfg, randomize
from reconstruction_for_tests import ST, activations, joint, weights
from torch import nn

from mmquant.algorithms import CalibrationContext, Step
from mmquant.models import QuantizedModel
from mmquant.registry import STEPS
from mmquant.structures.unit import GRANULARITIES
from mmquant.utils.building import build

STEPS.import_from_location()
FOLD, INSERT = dict(type='mmquant.FoldBatchNorm'), dict(type='mmquant.InsertQuantizers')
WEIGHTS = dict(type='mmquant.InitWeightRange', observer=MIN_MAX)
ACTIVATIONS = dict(type='mmquant.InitActivationRange', observer=MIN_MAX)
READY = [FOLD, INSERT, WEIGHTS, ACTIVATIONS]
AFFINE = [FOLD, INSERT, dict(type='mmquant.InsertOutputAffine', layers='all'), WEIGHTS, ACTIVATIONS]
SMALL = dict(num_iters=3, batch_size=4, best=dict(held_out=2))
# Registered name -> pairs of the steps before and its own arguments; whoever is not here is built without arguments.
CASES = {
    'Reparameterize': [([], {})],
    'FoldBatchNorm': [([], {})],
    'InsertQuantizers': [([FOLD], {})],
    'InitWeightRange': [([FOLD, INSERT], {})],
    'InitActivationRange': [([FOLD, INSERT, WEIGHTS], dict(num_images=8, chunk=8))],
    'InsertOutputAffine': [([FOLD, INSERT], dict(layers='all'))],
    'FoldOutputAffine': [(AFFINE, {})],
    'CorrectBias': [(READY, {}), (AFFINE, {})],
    'NormSweep': [(READY, dict(norms=(2.0, 3.0, 4.0), num_images=8, init_images=8))],
    'JointSearch': [(READY, dict(searcher=dict(type='mmquant.PatternSearch', num_sweeps=2), num_images=8))],
    'Reconstruction': [(READY, weights(1e-2, **SMALL)), (READY, activations(1e-3, **SMALL)),
                       (AFFINE, joint(dict(weight=1e-3, affine=1e-3, bias=1e-3, activation_scale=1e-3), ST, tail=dict(
                           end='net'), inputs=dict(type='mmquant.ElementMix', inside=True), **SMALL))],
}
# Registered name -> why it is not looked at here.
EXCLUDED = {}
NAMES = sorted(n for n, c in STEPS.module_dict.items() if c.__module__.startswith('mmquant.') and n not in EXCLUDED)
ALL = [pytest.param(name, *case, id=f'{name}{i or ""}')
       for name in NAMES for i, case in enumerate(CASES.get(name, [(READY, {})]))]
# Others run in one piece, or may.
SEVERAL_UNITS = {'CorrectBias', 'NormSweep', 'JointSearch', 'Reconstruction', 'SolveWeights'}
CHANGES_FLOAT_BY_ROUNDING = {'FoldBatchNorm', 'Reparameterize'}  # the same function, computed in another order


class Branches(nn.Module):
    """Two convolutions side by side that merge into one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two, self.deploy = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1), False

    def forward(self, x):
        return self.one(x) if self.deploy else self.one(x) + self.two(x)

    def switch_to_deploy(self) -> None:
        with torch.no_grad():
            self.one.weight.add_(self.two.weight)
            self.one.bias.add_(self.two.bias)
        del self.two
        self.deploy = True


class Stopped(Exception):
    """The process was ended."""


def toy(before: list, only_structural: bool = False) -> CalibrationContext:
    """A residual network of 3-bit weights and activations, after some steps; always the same."""
    net = ResNet()
    net.layer1[0].conv1 = nn.Sequential(Branches(4), net.layer1[0].conv1)
    context = CalibrationContext(QuantizedModel(randomize(net), quantizer_cfg(w_bits=3, a_bits=3), 'random'),
                                 list(images(16, 3, 8, 8).split(6)), seed=5)
    for cfg in before:
        step = build(STEPS, cfg, 'toy')
        if step.structural or not only_structural:
            step.run(context)
    context.step_index, context.records = len(before), []
    return context


def made(name: str, settings: dict) -> Step:
    return build(STEPS, dict(settings, type=f'mmquant.{name}'), name)


def state(context) -> dict:
    return copy.deepcopy(context.model.architecture.state_dict())


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@torch.no_grad()
def float_output(context) -> torch.Tensor:
    with context.model.quantization(weights=False, activations=False):
        return torch.cat([context.run(k) for k in range(len(context.chunks))])


def run_noting_units(name, before, settings):
    """Run a step; the context, and what is saved after each unit: (unit, state of the model, of the step)."""
    context, saved = toy(before), []
    context.unit_done = lambda unit: saved.append((unit, state(context), copy.deepcopy(context.state)))
    made(name, settings).run(context)
    return context, saved


@pytest.mark.parametrize('name, before, settings', ALL)
def test_the_float_mode_stays(name, before, settings):
    context = toy(before)
    expected = float_output(context)
    made(name, settings).run(context)
    if name in CHANGES_FLOAT_BY_ROUNDING:
        torch.testing.assert_close(float_output(context), expected, rtol=1e-4, atol=1e-4)
    else:
        assert torch.equal(float_output(context), expected)
    assert not any(p.requires_grad for q in context.model.activation_quantizers().values() for p in q.buffers())
    assert all(torch.equal(a, b) for a, b in zip(context.chunks, toy([]).chunks, strict=True))


@pytest.mark.parametrize('name, before, settings', ALL)
def test_the_same_seed_gives_the_same_bytes(name, before, settings):
    """Whatever the global generators were used for before, which the step leaves alone."""
    found = []
    for draws in (0, 7):
        torch.manual_seed(draws)
        context, after = toy(before), torch.rand(draws + 1)
        generators = torch.get_rng_state()
        made(name, settings).run(context)
        assert torch.equal(generators, torch.get_rng_state()) and len(after) == draws + 1
        found.append((state(context), [{k: v for k, v in r.items() if k != 'seconds'} for r in context.records]))
    assert same(found[0][0], found[1][0]) and repr(found[0][1]) == repr(found[1][1])


@pytest.mark.parametrize('name, before, settings', ALL)
def test_resumed_between_units_it_ends_at_the_same_bytes(name, before, settings):
    """As the loop resumes: structural steps run again, the rest is loaded; a step without units runs in one piece."""
    context, saved = run_noting_units(name, before, settings)
    whole, numbers = state(context), [unit for unit, _, _ in saved]
    assert numbers == sorted(set(numbers)) and (not saved or not made(name, settings).structural)
    assert len(saved) >= 2 or name not in SEVERAL_UNITS
    for unit, tensors, own_state in [*saved[:1], *saved[len(saved) // 2:len(saved) // 2 + 1], *saved[-1:]]:
        again = toy(before, only_structural=True)
        again.model.architecture.load_state_dict(tensors)
        again.step_index, again.first_unit, again.state = len(before), unit + 1, copy.deepcopy(own_state)
        later = []
        again.unit_done = later.append
        made(name, settings).run(again)
        assert same(state(again), whole), unit
        assert later == [n for n in numbers if n > unit]


@pytest.mark.parametrize('name, before, settings', ALL)
def test_stopped_inside_a_unit_nothing_soft_is_left(name, before, settings):
    """An error inside the second unit leaves neither hooks nor gradients nor another mode behind."""
    context = toy(before)
    hooks = {n: len(m._forward_hooks) + len(m._forward_pre_hooks) for n, m in context.model.named_modules()}
    expected = float_output(context)

    def stop(unit):
        raise Stopped

    context.unit_done = stop
    try:
        made(name, settings).run(context)
    except Stopped:
        assert {n: len(m._forward_hooks) + len(m._forward_pre_hooks) for n, m in context.model.named_modules()} == hooks
        assert torch.equal(float_output(context), expected)
        quantizers = (*context.model.weight_quantizers().values(), *context.model.activation_quantizers().values())
        assert all(q.enabled and q.rounding is None for q in quantizers)
        assert not any('forward' in m.__dict__ for m in context.model.modules())


@pytest.mark.parametrize('name, before, settings', ALL)
def test_what_others_ask_a_step(name, before, settings):
    step = made(name, settings)
    assert isinstance(step, Step) and step.name and (step.unit is None or step.unit in GRANULARITIES)
    assert step.image_passes(5) >= 0 and isinstance(step.image_passes(5), int)
    assert step.evaluates is None or tuple(map(bool, step.evaluates)) == tuple(step.evaluates)
    assert not (step.structural and step.evaluates)
    assert inspect.getdoc(type(step)) != inspect.getdoc(Step)


def test_all_steps_are_there():
    assert len(NAMES) >= 11 and set(CASES) <= set(NAMES) and all(EXCLUDED.values())
