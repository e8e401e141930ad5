"""What every registered grid must do at every granularity, and every registered rounding on every grid.

A new grid or rounding is picked up from its registry; nothing is to be added here.
"""
import copy
import io

import pytest
import torch

import mmquant.quantizers  # noqa: F401 (registers)
import mmquant.roundings  # noqa: F401 (registers)
from mmquant.observers import LpNormObserver, MinMaxObserver
from mmquant.registry import OBSERVERS, QUANTIZERS, ROUNDINGS


def own(registry) -> list[str]:
    """What the package registers; other tests register toys of their own."""
    return sorted(name for name, cls in registry.module_dict.items() if cls.__module__.startswith('mmquant.'))


GRIDS = own(QUANTIZERS)
KINDS = dict(tensor=dict(granularity='tensor'), channel=dict(granularity='channel'),
             axis=dict(granularity='channel', channel_axis=1), group=dict(granularity='group', group_size=9),
             ragged=dict(granularity='group', group_size=10), mean=dict(granularity='channel', keep_mean=True))
PLAIN = [kind for kind in KINDS if kind != 'mean']
BITS = 4


def made(grid, kind='tensor', bits=BITS):
    return QUANTIZERS.build(dict(type=grid, bits=bits, **KINDS[kind]))


def fitted(grid, weight, kind='tensor', bits=BITS, observer=None):
    quantizer = made(grid, kind, bits)
    quantizer.allocate(weight.shape)
    quantizer.fit(weight, observer or LpNormObserver())
    return quantizer


@pytest.fixture
def weight():
    return torch.randn(8, 6, 3, 3, generator=torch.Generator().manual_seed(0))


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def inside(quantizer, x):
    lower, upper = quantizer.neighbours(x)
    return (lower <= x + 1e-6) & (x <= upper + 1e-6)


@pytest.mark.parametrize('kind', PLAIN)
@pytest.mark.parametrize('grid', GRIDS)
def test_values_are_few_and_stay(weight, grid, kind):
    quantizer = fitted(grid, weight, kind)
    out = quantizer(weight)
    assert out.shape == weight.shape and out.dtype == weight.dtype
    close(quantizer(out), out)
    rows = quantizer.granularity.to_groups(out)
    assert max(row.unique().numel() for row in rows) <= 2**BITS
    assert quantizer(weight.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize('kind', PLAIN)
@pytest.mark.parametrize('grid', GRIDS)
def test_codes_and_back(weight, grid, kind):
    quantizer = fitted(grid, weight, kind)
    codes = quantizer.encode(weight)
    assert not codes.is_floating_point() and codes.element_size() == 1
    low, high = quantizer.code_range
    assert low <= codes.min() and codes.max() <= high and high - low < 2**BITS
    close(quantizer.decode(codes), quantizer(weight))
    assert torch.equal(quantizer.encode(quantizer.decode(codes)), codes)


@pytest.mark.parametrize('kind', PLAIN)
@pytest.mark.parametrize('grid', GRIDS)
def test_nearest_is_the_nearer_neighbour(weight, grid, kind):
    quantizer = fitted(grid, weight, kind)
    lower, upper = quantizer.neighbours(weight)
    within = inside(quantizer, weight)
    assert within.float().mean() > 0.5 and (lower <= upper).all()
    best = torch.minimum((weight - lower).abs(), (upper - weight).abs())
    close((quantizer(weight) - weight).abs(), best)
    close(quantizer.nearest(lower), lower)
    close(quantizer.nearest(upper), upper)
    again = quantizer.neighbours(quantizer.decode(quantizer.encode(weight)))
    close(torch.minimum((quantizer(weight) - again[0]).abs(), (quantizer(weight) - again[1]).abs()),
          torch.zeros_like(weight))


@pytest.mark.parametrize('grid', GRIDS)
def test_levels_and_positions(weight, grid):
    quantizer = fitted(grid, weight)
    codes = quantizer.encode(weight)
    close(quantizer.positions(quantizer.decode(codes)), codes.float())
    levels = quantizer.levels()
    if levels is not None:
        assert (levels.diff() > 0).all() and len(levels) <= 2**BITS


@pytest.mark.parametrize('grid', GRIDS)
def test_trial_is_what_the_range_would_give(weight, grid):
    quantizer = fitted(grid, weight, 'channel')
    rows = weight.flatten(1)
    low, high = rows.amin(1) * 0.7, rows.amax(1) * 0.7
    before = quantizer(weight)
    trial = quantizer.trial(rows, low, high)
    assert torch.equal(quantizer(weight), before)
    p2 = quantizer.errors(rows, torch.stack([low, low * 1.2]), torch.stack([high, high * 1.2]), 2.0)
    quantizer.set_range(low, high)
    close(trial, quantizer(weight).flatten(1))
    wide = (quantizer.trial(rows, low * 1.2, high * 1.2) - rows).square().mean(1)
    close(p2[0] / p2[1], (trial - rows).square().mean(1) / wide)  # up to one factor per scale


@pytest.mark.parametrize('grid', GRIDS)
def test_importance(weight, grid):
    quantizer = fitted(grid, weight, 'channel')
    error = (quantizer(weight) - weight).abs().pow(2.4).sum()
    quantizer.fit(weight, LpNormObserver(), torch.full_like(weight, 3.0))
    assert (quantizer(weight) - weight).abs().pow(2.4).sum() <= error * 1.001
    outlier = weight.clone()
    outlier[:, 0, 0, 0] = 50.0
    counts = torch.ones_like(weight)
    counts[:, 0, 0, 0] = 0
    quantizer.fit(outlier, LpNormObserver(num_candidates=200, min_shrink=0))
    assert quantizer(outlier)[:, 0, 0, 0].min() > 25
    quantizer.fit(outlier, LpNormObserver(num_candidates=200, min_shrink=0), counts)
    assert quantizer(outlier)[:, 0, 0, 0].max() < 20  # what does not count is clipped
    with pytest.raises(ValueError, match='minimises no error, so importance'):
        quantizer.fit(weight, MinMaxObserver(), counts)
    with pytest.raises(ValueError, match=r'importance of shape \(3,\) .* expected finite values >= 0'):
        quantizer.fit(weight, LpNormObserver(), torch.ones(3))


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('grid', GRIDS)
@pytest.mark.parametrize('decided', [False, True])
def test_a_fresh_quantizer_takes_over_a_checkpoint(weight, grid, kind, decided):
    quantizer = fitted(grid, weight, kind, bits=3)
    if decided:
        quantizer.decide(weight)
    buffer = io.BytesIO()
    torch.save(torch.nn.ModuleDict(dict(q=quantizer)).state_dict(), buffer)
    buffer.seek(0)
    fresh = torch.nn.ModuleDict(dict(q=made(grid, kind, bits=5)))
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    fresh = fresh['q']
    assert torch.equal(fresh(weight), quantizer(weight))
    assert fresh.bit_width == 3 == fresh.bits and (fresh.codes is not None) == decided and fresh.initialized
    if decided:  # the float weight is not needed again
        assert torch.equal(fresh(torch.full_like(weight, float('nan'))), quantizer(weight))
    assert torch.equal(copy.deepcopy(quantizer)(weight), quantizer(weight))


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('grid', GRIDS)
def test_deciding_changes_nothing(weight, grid, kind):
    quantizer = fitted(grid, weight, kind)
    before = quantizer(weight)
    quantizer.decide(weight)
    close(quantizer(weight), before)
    quantizer.clear_codes()
    assert torch.equal(quantizer(weight), before)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('grid', GRIDS)
def test_state_stored_bits_and_size(weight, grid, kind):
    quantizer = fitted(grid, weight, kind)
    quantizer.decide(weight)
    before, saved = quantizer(weight), [x.clone() for x in quantizer.state()]
    assert quantizer.rescale(2.0)
    close(quantizer(weight), 2 * before)
    for own, value in zip(quantizer.state(), saved, strict=True):
        own.copy_(value)
    if quantizer.offset is not None:
        quantizer.offset.div_(2)
    assert torch.equal(quantizer(weight), before)
    count = weight.numel()
    assert count * BITS < quantizer.stored_bits(count) <= count * BITS + 64 * quantizer.num_scales + 32 * 8
    factor = torch.arange(1., 1 + weight.shape[quantizer.channel_axis])
    shared = kind == 'tensor'
    assert quantizer.rescale(factor) != shared
    if not shared:
        shape = [-1 if d == quantizer.channel_axis else 1 for d in range(4)]
        close(quantizer(weight), before * factor.view(shape))


@pytest.mark.parametrize('kind', PLAIN)
@pytest.mark.parametrize('grid', GRIDS)
def test_gradients(weight, grid, kind):
    quantizer = fitted(grid, weight, kind)
    x = weight.clone().requires_grad_()
    trained = [t.requires_grad_() for ts in quantizer.trainables().values() for t in ts]
    quantizer.nearest(x).square().sum().backward()
    assert (x.grad != 0).float().mean() > 0.5
    assert all((t.grad != 0).any() and torch.isfinite(t.grad).all() for t in trained)
    with torch.no_grad():
        for t in trained:
            t.fill_(-1)
    quantizer.constrain()
    assert torch.isfinite(quantizer(weight)).all()


@pytest.mark.parametrize('grid', GRIDS)
def test_another_width(weight, grid):
    quantizer = fitted(grid, weight, 'channel')
    quantizer.decide(weight)
    quantizer.set_bits(BITS)
    assert quantizer.initialized and quantizer.codes is not None
    quantizer.set_bits(3)
    assert not quantizer.initialized and quantizer.codes is None and quantizer.bits == 3
    quantizer.fit(weight, LpNormObserver())
    assert max(row.unique().numel() for row in quantizer(weight)) <= 8
    with pytest.raises(ValueError, match='bits=40'):
        quantizer.set_bits(40)
    assert quantizer.bits == 3 == quantizer.bit_width


# ---- what a solver sees ---------------------------------------------------------------------------------------------
def as_matrix(x):
    return x.reshape(2, 4, 54)


@pytest.mark.parametrize('kind', PLAIN)
@pytest.mark.parametrize('grid', GRIDS)
def test_columns_are_the_whole_tensor(weight, grid, kind):
    quantizer = fitted(grid, weight, kind)
    matrix = as_matrix(weight)
    for begin, end in ((0, 54), (7, 8), (5, 31)):
        part, view = matrix[..., begin:end], quantizer.columns(weight.shape, as_matrix)[begin:end]
        assert torch.equal(view.encode(part), as_matrix(quantizer.encode(weight))[..., begin:end])
        close(view.nearest(part), as_matrix(quantizer(weight))[..., begin:end])
        close(view.decode(view.encode(part)), view.nearest(part))
    narrow = quantizer.columns(weight.shape, as_matrix)[5:31][2:4]
    assert len(narrow) == 2 and torch.equal(narrow.nearest(matrix[..., 7:9]), view.nearest(part)[..., 2:4])


@pytest.mark.parametrize('grid', GRIDS)
def test_groups_are_fitted_again_inside_a_walk(weight, grid):
    quantizer, other = fitted(grid, weight, 'group'), fitted(grid, weight * 2, 'group')
    begin = quantizer(weight)
    view = quantizer.columns(weight.shape, as_matrix)[9:18]
    view.fit(as_matrix(weight * 2)[..., 9:18], LpNormObserver())
    matrix, twice = as_matrix(quantizer(weight * 2)), as_matrix(other(weight * 2))
    close(matrix[..., 9:18], twice[..., 9:18])
    assert torch.equal(as_matrix(quantizer(weight))[..., :9], as_matrix(begin)[..., :9])
    with pytest.raises(ValueError, match='no group of scales of their own .* fit whole groups'):
        quantizer.columns(weight.shape, as_matrix)[4:9].fit(matrix[..., 4:9], LpNormObserver())
    with pytest.raises(ValueError, match='call allocate'):
        made(grid, 'group').columns(weight.shape, as_matrix)


# ---- roundings ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('kind', PLAIN)
@pytest.mark.parametrize('grid', GRIDS)
@pytest.mark.parametrize('name', own(ROUNDINGS))
def test_roundings(weight, name, grid, kind):
    quantizer = fitted(grid, weight, kind)
    rounding = ROUNDINGS.build(dict(type=name))
    rounding.start(weight, quantizer)
    within = inside(quantizer, weight)
    start = rounding()
    assert start.shape == weight.shape and start.dtype == weight.dtype
    if rounding.undecided() > 0:  # soft ones begin at the float weight, hard ones at the nearest level
        close(start[within], weight[within])
    else:
        close(start, quantizer(weight))
    assert torch.equal(rounding.codes(), quantizer.encode(weight))
    with torch.no_grad():  # as if trained until all is decided, in any direction
        for x in rounding.roles().get('rounding', ()):
            x.copy_(torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).sign() * 9)
    rounding.constrain()
    assert rounding.undecided() == 0
    soft, (lower, upper) = rounding().detach(), quantizer.neighbours(weight)
    rounding.harden(quantizer)
    close(quantizer(weight), soft)
    hard = quantizer(weight)
    assert (((hard - lower).abs() < 1e-5) | ((hard - upper).abs() < 1e-5)).all()
    rounding.beta = 2.0
    rounding()
    assert rounding.penalty is None or rounding.penalty.item() == pytest.approx(0, abs=1e-3)


# ---- observers ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('grid', GRIDS)
@pytest.mark.parametrize('name', own(OBSERVERS))
def test_observers(weight, name, grid):
    for kind in ('tensor', 'channel', 'ragged'):
        quantizer, observer = made(grid, kind), OBSERVERS.build(dict(type=name))
        quantizer.allocate(weight.shape)
        try:
            low, high = observer.range_of(weight, quantizer, quantizer.granularity)
        except ValueError as error:
            assert 'evenly spaced levels' in str(error) and 'use LpNormObserver' in str(error)
            continue
        assert low.shape == high.shape == (quantizer.num_scales, )
        assert torch.isfinite(low).all() and torch.isfinite(high).all() and (low <= 0).all() and (high >= 0).all()
        assert low.min() >= weight.min() and high.max() <= weight.max()


@pytest.mark.parametrize('power', [-40, -90])
@pytest.mark.parametrize('observer', [MinMaxObserver, LpNormObserver])
@pytest.mark.parametrize('kind', PLAIN)
@pytest.mark.parametrize('grid', GRIDS)
def test_scales_are_as_small_as_the_tensor(grid, kind, observer, power):
    """A power of two in the tensor is one in its values; a smallest scale of any fixed size made them zeros."""
    weight = torch.randn(6, 9, 3, 3, generator=torch.Generator().manual_seed(1))
    plain, small = (fitted(grid, w, kind, observer=observer()) for w in (weight, weight * 2.0**power))
    assert torch.equal(small(weight * 2.0**power), plain(weight) * 2.0**power) and plain(weight).any()
    small.constrain()
    assert torch.equal(small(weight * 2.0**power), plain(weight) * 2.0**power)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('grid', GRIDS)
def test_halved_quantizers_keep_their_scales(grid, kind):
    weight = torch.randn(6, 9, 3, 3, generator=torch.Generator().manual_seed(1)) * 1e-4
    quantizer = fitted(grid, weight, kind)
    before = {name: x.clone() for name, x in quantizer.named_buffers()}
    for cast in (lambda q: q.half(), lambda q: q.bfloat16(), lambda q: q.to(torch.float16)):
        cast(quantizer)
        assert all(x.dtype == before[name].dtype and torch.equal(x, before[name])
                   for name, x in quantizer.named_buffers())
    x = weight.bfloat16()
    assert torch.equal(quantizer(x), quantizer(x.float()).bfloat16())
    quantizer.decide(weight)
    assert torch.equal(quantizer(x), quantizer(weight).bfloat16())


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('grid', GRIDS)
def test_empty_ranges_give_finite_values(grid, dtype):
    quantizer = fitted(grid, torch.zeros(4, 4)).to(dtype)
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(1)).to(dtype) * 100
    assert torch.isfinite(quantizer(x)).all() and quantizer(x).abs().max() < 1e-5
    with pytest.raises(ValueError, match='finite ranges'):
        quantizer.set_range(torch.tensor(-3e38), torch.tensor(3e38))
