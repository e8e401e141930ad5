import pytest
import torch

from mmquant.observers import HistogramKLObserver
from mmquant.quantizers import UniformAffineQuantizer


def normal(size=50000):
    return torch.randn(size, generator=torch.Generator().manual_seed(0))


def test_outlier_is_cut():
    low, high = HistogramKLObserver().range_of(torch.cat([normal(), torch.tensor([40.])]), UniformAffineQuantizer(8))
    assert 3 < high < 10 and low == normal().min()


def test_uniform_values_are_kept():
    low, high = HistogramKLObserver().range_of(torch.rand(50000) * 2 - 1, UniformAffineQuantizer(8))
    assert high > 0.95 and low < -0.95


def test_fewer_bits_clip_more():
    x = normal()
    wide, narrow = (HistogramKLObserver().range_of(x, UniformAffineQuantizer(bits))[1] for bits in (8, 3))
    assert 0.5 < narrow < wide <= x.max()


def test_few_values_are_not_overclipped():
    x = normal(6400).reshape(64, 100)
    low, high = HistogramKLObserver().range_of(x, UniformAffineQuantizer(4), 'channel')
    assert (high - low > 0.5 * (x.amax(1) - x.amin(1))).all()


@pytest.mark.parametrize('arguments', [dict(num_bins=8), dict(num_candidates=0)])
def test_unfit_arguments(arguments):
    with pytest.raises(ValueError, match='expected num_bins >= 16 and num_candidates >= 1'):
        HistogramKLObserver(**arguments)
