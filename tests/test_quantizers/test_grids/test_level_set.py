import pytest
import torch

from mmquant.observers import LpNormObserver, MinMaxObserver
from mmquant.quantizers import UniformAffineQuantizer
from mmquant.quantizers.grids import LevelSetQuantizer
from mmquant.roundings import AdaRound

LEVELS = (0.3, -1.0, 0.0, 1.0, -0.4)  # in any order


def of_range(low, high, **more):
    quantizer = LevelSetQuantizer(**more)
    quantizer.set_range(torch.tensor(low), torch.tensor(high))
    return quantizer


def test_values_by_hand():
    quantizer = of_range(-2.0, 1.0, bits=3, levels=LEVELS)
    assert quantizer.scale == 2 and quantizer.levels().tolist() == pytest.approx([-1, -0.4, 0, 0.3, 1])
    x = torch.tensor([-9.0, -1.5, -1.2, -0.5, 0.29, 0.31, 1.4, 9.0])
    assert quantizer.encode(x).tolist() == [0, 0, 1, 1, 2, 3, 4, 4]
    assert quantizer(x).tolist() == pytest.approx([-2, -2, -0.8, -0.8, 0, 0.6, 2, 2])
    lower, upper = quantizer.neighbours(x)
    assert lower.tolist() == pytest.approx([-2, -2, -2, -0.8, 0, 0, 0.6, 2])
    assert upper.tolist() == pytest.approx([-2, -0.8, -0.8, 0, 0.6, 0.6, 2, 2])


def test_ties_go_towards_zero():
    quantizer = of_range(-1.0, 1.0, bits=3, levels=(-1.0, -0.5, 0.0, 0.5, 1.0))
    assert quantizer(torch.tensor([-0.75, -0.25, 0.25, 0.75])).tolist() == [-0.5, 0, 0, 0.5]


def test_evenly_spaced_levels_are_the_uniform_grid():
    x = torch.randn(6, 200, generator=torch.Generator().manual_seed(0)).abs()
    levels = LevelSetQuantizer(4, granularity='channel')
    uniform = UniformAffineQuantizer(4, granularity='channel')
    for quantizer in (levels, uniform):
        quantizer.allocate(x.shape)
        quantizer.fit(x, LpNormObserver())
    torch.testing.assert_close(levels(x), uniform(x))
    assert torch.equal(levels.encode(x), uniform.encode(x)) and levels.code_range == (0, 15)


def test_gradients_are_straight_through_and_those_of_lsq():
    quantizer = of_range(-1.0, 1.0, bits=3, levels=LEVELS)
    x = torch.tensor([-3.0, -0.5, 0.2, 0.9, 4.0], requires_grad=True)
    quantizer.scale.requires_grad_(True)
    out = quantizer(x)
    assert torch.equal(out.detach(), quantizer(x.detach()).detach())
    out.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]
    assert quantizer.scale.grad.item() == pytest.approx(-1 + (-0.4 + 0.5) + (0.3 - 0.2) + (1 - 0.9) + 1, abs=1e-6)


def test_sign_is_decided_by_the_range():
    quantizer = of_range(0.0, 3.0, bits=2)
    assert quantizer.levels().tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    quantizer.set_range(torch.tensor(-1.0), torch.tensor(3.0))
    assert quantizer.levels().tolist() == [-1, 0, 1]
    quantizer.set_range(torch.tensor(0.0), torch.tensor(3.0))
    assert len(quantizer.levels()) == 4
    fresh = LevelSetQuantizer(8)
    fresh.load_state_dict(quantizer.state_dict())
    assert torch.equal(fresh(torch.linspace(-1, 4, 50)), quantizer(torch.linspace(-1, 4, 50)))
    signed = of_range(0.0, 3.0, bits=2, signed=True)
    assert signed.levels().tolist() == [-1, 0, 1]
    with pytest.raises(ValueError, match=r'a range begins at -1, but the grid has no negative levels'):
        of_range(-1.0, 1.0, bits=2, signed=False)
    with pytest.raises(ValueError, match='no negative levels'):
        of_range(-1.0, 1.0, bits=2, levels=(0.0, 0.5, 1.0))
    with pytest.raises(ValueError, match='no negative levels'):
        LpNormObserver().range_of(torch.randn(50), LevelSetQuantizer(4, signed=False))


def test_range_search_finds_the_scale():
    """Data on the grid at a scale of 0.7, and some outliers: the search gives the scale back."""
    table = torch.tensor(LEVELS)
    x = 0.7 * table[torch.randint(5, (5000, ), generator=torch.Generator().manual_seed(0))]
    x[:3] = 1.4
    quantizer = LevelSetQuantizer(3, levels=LEVELS)
    quantizer.fit(x, LpNormObserver(2, refinements=3))
    assert quantizer.scale.item() == pytest.approx(0.7, abs=0.01)
    quantizer.fit(x, MinMaxObserver())
    assert quantizer.scale.item() == pytest.approx(1.4)


@pytest.mark.parametrize('levels, text', [
    ((0.0, 1.0, 1.0), '3 levels, of which 0 are not finite and 1 coincide'),
    ((0.0, float('nan')), '2 levels, of which 1 are not finite'), ((0.0, float('inf')), '1 are not finite'),
    ((1.0, ), '1 levels'), ((), '0 levels'), (range(5), r'5 levels, .* bits=2 take 2\.\.4 different')])
def test_unfit_levels(levels, text):
    with pytest.raises(ValueError, match=text):
        LevelSetQuantizer(2, levels=levels)


def test_nan_has_no_code_and_is_not_hidden():
    quantizer = of_range(-1.0, 1.0, bits=4)
    x = torch.tensor([0.5, float('nan')])
    with pytest.raises(ValueError, match=r'shape \(2,\) with 1 NaN has no codes'):
        quantizer.encode(x)
    assert quantizer(x).isnan().tolist() == [False, True]


def test_layout_is_kept_and_adaround_learns():
    x = torch.randn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    quantizer = LevelSetQuantizer(3, levels=LEVELS, granularity='channel')
    quantizer.allocate(x.shape)
    quantizer.fit(x, LpNormObserver())
    rounding = AdaRound()
    rounding.start(x, quantizer)
    rounding.beta = 4.0
    (rounding().square().sum() + rounding.penalty).backward()
    assert rounding.v.stride() == x.stride() and torch.isfinite(rounding.dense_v.grad).all()
    for made in (quantizer(x), quantizer.encode(x), rounding(), *quantizer.neighbours(x)):
        assert made.is_contiguous(memory_format=torch.channels_last)
