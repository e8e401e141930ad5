import math

import pytest
import torch

from mmquant.observers import LpNormObserver, MinMaxObserver
from mmquant.ops import rectified_sigmoid, rounding_regularizer
from mmquant.quantizers import NoZeroQuantizer, UniformAffineQuantizer
from mmquant.registry import ROUNDINGS
from mmquant.roundings import AdaRound, NearestRounding, StraightThrough

KINDS = dict(tensor=dict(), channel=dict(granularity='channel'), group=dict(granularity='group', group_size=9),
             symmetric=dict(granularity='channel', symmetric=True))


def started(rounding, weight, observer=None, bits=3, **kind):
    quantizer = UniformAffineQuantizer(bits, **kind)
    quantizer.allocate(weight.shape)
    quantizer.set_range(*(observer or LpNormObserver()).range_of(weight, quantizer, quantizer.granularity))
    rounding.start(weight, quantizer)
    return quantizer


def penalty(rounding, beta):
    rounding.beta = beta
    rounding()
    rounding.beta = None
    return rounding.penalty


@pytest.fixture
def weight():
    return torch.randn(8, 6, 3, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('kind', KINDS.values(), ids=KINDS)
def test_soft_weight_starts_at_the_float_weight(weight, kind):
    rounding = AdaRound()
    quantizer = started(rounding, weight, **kind)
    scale, zero_point = quantizer.expanded(weight.shape)
    steps = weight / scale
    torch.testing.assert_close(rectified_sigmoid(rounding.v), steps - steps.floor(), rtol=0, atol=1e-6)
    assert rounding.v.abs().max() <= math.log(11) + 1e-4
    grid = quantizer.grid
    clipped = (steps + zero_point).clamp(grid.q_min, grid.q_max).sub(zero_point) * scale
    torch.testing.assert_close(rounding(), clipped, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('granularity', ['tensor', 'channel'])
def test_on_a_grid_without_a_zero(weight, granularity):
    """Soft weights start at the float ones, and hardening goes to the level that training saw."""
    quantizer = NoZeroQuantizer(3, granularity=granularity)
    quantizer.allocate(weight.shape)
    quantizer.fit(weight, MinMaxObserver())
    rounding = AdaRound()
    rounding.start(weight, quantizer)
    torch.testing.assert_close(rounding(), weight, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        rounding.v.copy_(torch.randn(weight.shape).sign() * 4)
    soft = rounding()
    rounding.harden(quantizer)
    torch.testing.assert_close(quantizer(weight), soft, rtol=1e-5, atol=1e-6)
    assert ((soft - weight).abs() <= quantizer.scale * 1.001).all()
    penalty(rounding, 2.).backward()
    assert rounding.dense_v.grad is not None


@pytest.mark.parametrize('kind', KINDS.values(), ids=KINDS)
def test_untouched_rounding_is_round_to_nearest(weight, kind):
    rounding = AdaRound()
    quantizer = started(rounding, weight, **kind)
    assert rounding.codes().dtype == quantizer.grid.code_dtype
    assert torch.equal(rounding.codes(), quantizer.encode(weight))


def test_ties_round_up():
    weight = torch.tensor([[0., 0.5, 1.5, 2.5, 3.]])
    rounding = AdaRound()
    started(rounding, weight, MinMaxObserver(), bits=2)
    assert rounding.codes().tolist() == [[0, 1, 2, 3, 3]]


@pytest.mark.parametrize('kind', KINDS.values(), ids=KINDS)
def test_hard_weight_lies_within_one_step(weight, kind):
    rounding = AdaRound()
    quantizer = started(rounding, weight, MinMaxObserver(), **kind)
    torch.nn.init.normal_(rounding.v)
    scale, zero_point = quantizer.expanded(weight.shape)
    hard = quantizer.decode(rounding.codes())
    grid = quantizer.grid
    steps = weight / scale + zero_point
    inside = (steps >= grid.q_min) & (steps <= grid.q_max)
    assert ((hard - weight).abs() / scale)[inside].max() <= 1 + 1e-4


def test_decided_soft_and_hard_weights_agree(weight):
    rounding = AdaRound()
    quantizer = started(rounding, weight, granularity='channel')
    assert rounding.undecided() > 0.5
    with torch.no_grad():
        rounding.v.copy_(torch.randn_like(weight).sign() * 4)
    assert rounding.undecided() == 0 and penalty(rounding, 3.).item() == 0
    quantizer.set_codes(rounding.codes())
    torch.testing.assert_close(rounding(), quantizer(weight), rtol=1e-6, atol=0)


def test_fresh_regularizer_is_near_its_mean():
    weight = torch.rand(100, 1000)
    rounding = AdaRound()
    started(rounding, weight, MinMaxObserver(), bits=4)
    assert penalty(rounding, 20.).item() / weight.numel() == pytest.approx(0.952, abs=0.01)


def test_training_decides_every_weight():
    torch.manual_seed(0)
    weight, x = torch.randn(4, 8), torch.randn(64, 8)
    rounding = AdaRound()
    started(rounding, weight, granularity='channel')
    optimizer = torch.optim.Adam(rounding.parameters(), lr=5e-2)
    target = x @ weight.T
    for i in range(200):
        optimizer.zero_grad()
        rounding.beta = 20 - 18 * i / 200
        loss = (x @ rounding().T - target).square().sum(1).mean() + 0.5 * rounding.penalty
        loss.backward()
        optimizer.step()
    assert rounding.undecided() < 0.05


def test_resume_restores_the_variables(weight):
    rounding, again = AdaRound(), AdaRound()
    started(rounding, weight)
    torch.nn.init.normal_(rounding.v)
    assert set(rounding.state_dict()) == {'dense_v'}
    started(again, weight)
    again.load_state_dict(rounding.state_dict())
    assert torch.equal(again(), rounding())


def test_later_changes_of_the_quantizer_are_not_seen(weight):
    rounding = AdaRound()
    quantizer = started(rounding, weight)
    before = rounding()
    quantizer.set_range(torch.tensor(-9.), torch.tensor(9.))
    assert torch.equal(rounding(), before)


@pytest.mark.parametrize('rounding', [AdaRound, NearestRounding])
def test_half_precision_weight(weight, rounding):
    rounding = rounding()
    started(rounding, weight.bfloat16())
    assert rounding().dtype == torch.bfloat16


@pytest.mark.parametrize('kind', KINDS.values(), ids=KINDS)
def test_nearest(weight, kind):
    rounding = NearestRounding()
    quantizer = started(rounding, weight, **kind)
    torch.testing.assert_close(rounding(), quantizer(weight), rtol=1e-6, atol=0)
    assert torch.equal(rounding.codes(), quantizer.encode(weight))
    assert penalty(rounding, 2.) is None and rounding.undecided() == 0 and not list(rounding.parameters())


def test_errors_say_what_to_do(weight):
    with pytest.raises(ValueError, match='gamma=0.0, zeta=1.1: expected gamma < 0 and zeta > 1'):
        AdaRound(gamma=0.0)
    with pytest.raises(RuntimeError, match=r'cannot start on .* \(8, 6, 3, 3\): its quantizer has no range'):
        AdaRound().start(weight, UniformAffineQuantizer())


def test_registry():
    assert ROUNDINGS.build(dict(type='AdaRound', zeta=1.2)).zeta == 1.2


def test_the_penalty_is_computed_with_the_weight(weight):
    rounding = AdaRound()
    started(rounding, weight, granularity='channel')
    plain = rounding_regularizer(rounding.v, 5.0)
    assert rounding.penalty is None
    with torch.no_grad():
        soft = rounding()
    rounding.beta = 5.0
    torch.testing.assert_close(rounding(), soft)  # one kernel gives both
    torch.testing.assert_close(rounding.penalty, plain)
    rounding.penalty.backward()
    fused = rounding.dense_v.grad.clone()
    rounding.dense_v.grad = None
    rounding_regularizer(rounding.v, 5.0).backward()
    torch.testing.assert_close(fused, rounding.dense_v.grad)


# ---- straight-through ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize('kind', KINDS.values(), ids=KINDS)
def test_straight_through_starts_at_nearest_rounding(weight, kind):
    rounding = StraightThrough()
    quantizer = started(rounding, weight, **kind)
    assert torch.equal(rounding.codes(), quantizer.encode(weight)) and torch.equal(rounding(), quantizer(weight))
    assert rounding.grid.scale is not quantizer.scale and rounding.weight is not weight
    assert {role: len(params) for role, params in rounding.roles().items()} == dict(weight=1, weight_scale=1)
    assert rounding.undecided() == 0


@pytest.mark.parametrize('kind', KINDS.values(), ids=KINDS)
def test_gradients_of_straight_through(weight, kind):
    """Weights: 1 inside the range, 0 where clipped; scales: those of LSQ summed over what shares the scale."""
    rounding = StraightThrough()
    quantizer = started(rounding, weight, **kind)
    rounding.grid.scale.requires_grad_(True)
    factor = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    (rounding() * factor).sum().backward()
    scale, zero_point = (t.detach() for t in quantizer.expanded(weight.shape))
    steps = weight / scale
    low, high = quantizer.grid.q_min - zero_point, quantizer.grid.q_max - zero_point
    rounded = steps.round()
    inside = (rounded >= low) & (rounded <= high)
    torch.testing.assert_close(rounding.weight.grad, factor * inside)
    slope = torch.where(inside, rounded - steps, torch.maximum(torch.minimum(rounded, high), low)) * factor
    rows = quantizer.granularity.to_groups(slope)
    torch.testing.assert_close(rounding.grid.scale.grad.flatten(), rows.sum(1), rtol=1e-4, atol=1e-4)


def test_straight_through_learns_weights_and_scales():
    """A scale a third too large and a weight of which nothing is left: both move, together."""
    weight, target = torch.tensor([[0.9, -0.6, 0.3, 0.0]]), torch.tensor([[0.9, -0.6, 0.3, 0.3]])
    rounding = StraightThrough()
    quantizer = UniformAffineQuantizer(4, symmetric=True, granularity='channel')
    quantizer.allocate(weight.shape)
    quantizer.set_range(torch.tensor([-2.8]), torch.tensor([2.8]))
    rounding.start(weight, quantizer)
    before = (quantizer(weight) - target).square().sum()
    trained = [x.requires_grad_(True) for xs in rounding.roles().values() for x in xs]
    optimizer = torch.optim.Adam(trained, lr=5e-3)
    for _ in range(400):
        optimizer.zero_grad()
        (rounding() - target).square().sum().backward()
        optimizer.step()
        rounding.constrain()
    rounding.harden(quantizer)
    assert (rounding() - target).square().sum() < 0.2 * before
    torch.testing.assert_close(quantizer(weight), rounding())


def test_scales_of_straight_through_stay_positive(weight):
    rounding = StraightThrough()
    started(rounding, weight)
    with torch.no_grad():
        rounding.grid.scale.fill_(-1)
    rounding.constrain()
    assert rounding.grid.scale.item() == pytest.approx(1e-30) and torch.isfinite(rounding()).all()


@pytest.mark.parametrize('shape', [(6, 4, 3, 3), (6, 1, 3, 3), (5, 7), (4,)])
def test_adaround_variables_keep_the_order_of_the_weight_in_memory(shape):
    weight = torch.randn(shape)
    if len(shape) == 4:
        weight = weight.contiguous(memory_format=torch.channels_last)
    rounding = AdaRound()
    started(rounding, weight, granularity='channel')
    assert rounding.v.shape == weight.shape and rounding.v.stride() == weight.stride()
    variable, = rounding.parameters()
    assert variable.is_contiguous() and variable.is_leaf
    (rounding() * weight).sum().backward()
    assert variable.grad.is_contiguous() and variable.grad.abs().sum() > 0
