import pytest
import torch

from mmquant.observers import PercentileObserver
from mmquant.quantizers import UniformAffineQuantizer

GRID = UniformAffineQuantizer(8)


def test_known_ranks():
    x = torch.arange(-50., 50.)[torch.randperm(100)]  # 100 values
    assert PercentileObserver(99).range_of(x, GRID) == (-49, 48)
    assert PercentileObserver(90).range_of(x, GRID) == (-40, 39)
    assert PercentileObserver(100).range_of(x, GRID) == (-50, 49)


def test_outlier_is_cut():
    x = torch.cat([torch.rand(9999), torch.tensor([1000.])])
    low, high = PercentileObserver(99.99).range_of(x, GRID)
    assert low == 0 and high <= 1


def test_rows():
    x = torch.arange(200.).reshape(2, 100)
    assert PercentileObserver(95).range_of(x, GRID, 'channel')[1].tolist() == [94, 194]


@pytest.mark.parametrize('percentile', [50, 100.1, -3])
def test_unfit_percentile(percentile):
    with pytest.raises(ValueError, match=r'expected a value in \(50, 100\]'):
        PercentileObserver(percentile)
