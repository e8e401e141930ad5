import pytest
import torch

from mmquant.observers import PercentileObserver
from mmquant.quantizers import UniformAffineQuantizer


def test_complete_up_to_the_limit():
    observer = PercentileObserver(max_samples=100)
    x = torch.randn(2, 50)
    observer.observe(x[0])
    observer.observe(x[1])
    assert torch.equal(observer.samples[0], x.flatten())


def test_bounded_and_fair_to_every_tensor_and_channel():
    observer = PercentileObserver(max_samples=4000)
    for batch in range(10):  # every value names its batch and channel
        x = (batch * 16 + torch.arange(16.)).reshape(1, 16, 1, 1).expand(4, 16, 8, 8)
        observer.observe(x)
    samples = observer.samples
    assert 2000 < samples.numel() <= 4000
    per_batch = torch.bincount(samples[0].long() // 16, minlength=10) / samples.numel()
    per_channel = torch.bincount(samples[0].long() % 16, minlength=16) / samples.numel()
    assert (per_batch - 1 / 10).abs().max() < 0.01 and (per_channel - 1 / 16).abs().max() < 0.01


def test_deterministic():
    batches = torch.randn(5, 3000)
    first, second = PercentileObserver(max_samples=1000), PercentileObserver(max_samples=1000)
    for observer in (first, second):
        for x in batches:
            observer.observe(x)
    assert torch.equal(first.samples, second.samples)


def test_minimum_and_maximum_stay_exact():
    observer = PercentileObserver(100, max_samples=10)
    x = torch.randn(5000)
    observer.observe(x)
    assert observer.range(UniformAffineQuantizer(8)) == (x.min(), x.max())


def test_complete_tensor_is_never_sampled():
    x = torch.randn(5000)
    exact = PercentileObserver(90, max_samples=None).range_of(x, UniformAffineQuantizer(8))
    observer = PercentileObserver(90, max_samples=10)
    assert observer.range_of(x, UniformAffineQuantizer(8)) == exact
    assert observer.max_samples == 10


def test_rows_are_limited_separately():
    observer = PercentileObserver(max_samples=100, granularity='channel')
    observer.observe(torch.randn(50, 100))
    assert observer.samples.shape == (50, 100)
    observer.reset()
    observer.observe(torch.randn(50, 1000))
    assert observer.samples.shape[0] == 50 and observer.samples.shape[1] <= 100


def test_limit_must_be_positive():
    with pytest.raises(ValueError, match='max_samples=0 is not supported: expected an int > 0, or None for all'):
        PercentileObserver(max_samples=0)


@pytest.mark.parametrize('limit', [1, 2, 3])
def test_very_small_limits(limit):
    observer = PercentileObserver(max_samples=limit)
    for size in (1, 1, 2, 100, 1):
        observer.observe(torch.randn(size))
        assert 1 <= observer.samples.numel() <= limit
