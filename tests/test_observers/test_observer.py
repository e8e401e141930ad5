import pytest
import torch

from mmquant.observers import HistogramKLObserver, LpNormObserver, MinMaxObserver, PercentileObserver
from mmquant.quantizers import UniformAffineQuantizer
from mmquant.registry import OBSERVERS
from mmquant.structures import PerChannel, PerGroup

ALL = [MinMaxObserver, PercentileObserver, LpNormObserver, HistogramKLObserver]
GRID = UniformAffineQuantizer(4)


@pytest.mark.parametrize('observer', ALL)
@pytest.mark.parametrize('granularity, num_scales', [('tensor', 1), ('channel', 6), (PerGroup(10), 12)])
@pytest.mark.parametrize('grid', [GRID, UniformAffineQuantizer(4, symmetric=True)])
def test_range_shape_and_order(observer, granularity, num_scales, grid):
    x = torch.randn(6, 5, 2, 2) + 0.3
    low, high = observer().range_of(x, grid, granularity)
    assert low.shape == high.shape == (num_scales, ) and low.dtype == torch.float32
    assert (low <= 0).all() and (high >= 0).all() and (low < high).all()
    assert low.min() >= x.min() and high.max() <= x.max()


@pytest.mark.parametrize('observer', ALL)
@pytest.mark.parametrize('sign', [1, -1])
def test_one_sided_data_keep_zero_in_range(observer, sign):
    low, high = observer().range_of(sign * (torch.rand(1000) + 1), GRID)
    assert (low == 0) == (sign == 1) and (high == 0) == (sign == -1)


@pytest.mark.parametrize('observer', ALL)
def test_all_zero_channel(observer):
    x = torch.randn(3, 100)
    x[1] = 0
    low, high = observer().range_of(x, GRID, 'channel')
    assert low[1] == 0 and high[1] == 0 and torch.isfinite(low).all() and (high[[0, 2]] > 0).all()


@pytest.mark.parametrize('observer', ALL)
def test_permuting_channels_permutes_ranges(observer):
    x, order = torch.randn(7, 200), torch.tensor([3, 0, 6, 1, 5, 2, 4])
    low, high = observer().range_of(x, GRID, 'channel')
    low_permuted, high_permuted = observer().range_of(x[order], GRID, 'channel')
    assert torch.equal(low[order], low_permuted) and torch.equal(high[order], high_permuted)


@pytest.mark.parametrize('observer', ALL)
def test_scaling_a_channel_scales_its_range(observer):
    x, factor = torch.randn(4, 200), torch.tensor([0.25, 1, 2, 1024])
    low, high = observer().range_of(x, GRID, 'channel')
    low_scaled, high_scaled = observer().range_of(x * factor[:, None], GRID, 'channel')
    torch.testing.assert_close(low * factor, low_scaled)
    torch.testing.assert_close(high * factor, high_scaled)


@pytest.mark.parametrize('observer', ALL)
def test_observing_in_pieces_equals_observing_at_once(observer):
    x = torch.randn(12, 8, 5, 5)
    expected = observer().range_of(x, GRID)
    pieces = observer()
    for part in x.split(5):
        pieces.observe(part)
    assert all(torch.equal(a, b) for a, b in zip(pieces.range(GRID), expected, strict=True))
    pieces.reset()
    with pytest.raises(RuntimeError, match=r'has seen no tensor: call observe\(\) before range'):
        pieces.range(GRID)


@pytest.mark.parametrize('observer', ALL)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_other_dtypes(observer, dtype):
    x = torch.randn(500).bfloat16()
    assert all(torch.equal(a, b) for a, b in
               zip(observer().range_of(x.to(dtype), GRID), observer().range_of(x.float(), GRID), strict=True))


def test_later_changes_of_the_tensor_do_not_matter():
    x, observer = torch.randn(500), PercentileObserver(90)
    observer.observe(x)
    before = observer.range(GRID)
    x.zero_()
    assert observer.range(GRID)[0] == before[0]


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('granularity', ['tensor', 'channel'])
def test_not_finite(value, granularity):
    x = torch.randn(3, 4)
    x[1, 2] = value
    with pytest.raises(ValueError, match=r'shape \(3, 4\) with 1 NaN or Inf values.*check checkpoint and input norm'):
        MinMaxObserver(granularity).observe(x)


def test_unfit_tensors():
    with pytest.raises(ValueError, match=r'non-empty floating point tensor, but got torch.int64 of shape \(3,\)'):
        MinMaxObserver().observe(torch.arange(3))
    with pytest.raises(ValueError, match=r'non-empty floating point tensor.*shape \(0, 4\)'):
        MinMaxObserver().observe(torch.ones(0, 4))
    observer = MinMaxObserver(PerChannel(1))
    observer.observe(torch.ones(2, 3))
    with pytest.raises(ValueError, match='with 4 scales after tensors with 3'):
        observer.observe(torch.ones(2, 4))


def test_registry():
    observer = OBSERVERS.build(dict(type='LpNormObserver', p=2.0, granularity=dict(type='PerChannel', axis=1)))
    assert isinstance(observer, LpNormObserver) and observer.p == 2 and observer.granularity == PerChannel(1)


def test_exact_minimum_and_maximum():
    x = torch.randn(4, 5, 6)
    low, high = MinMaxObserver().range_of(x, GRID)
    assert low == x.min() and high == x.max()
    low, high = MinMaxObserver(PerChannel(-1)).range_of(x, GRID)
    assert torch.equal(low, x.amin((0, 1))) and torch.equal(high, x.amax((0, 1)))
