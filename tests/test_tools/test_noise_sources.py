"""Which tensor's quantization costs the outputs most, in decibels that can be worked out by hand."""
import math

import pytest
import torch
from model_coverage import MIN_MAX, W8A8, measure_coverage
from noise_sources import NoiseSources, noise_sources
from torch import nn

from mmquant.algorithms.preparation import InsertQuantizers
from mmquant.algorithms.ranges import InitActivationRange, InitWeightRange
from mmquant.algorithms.step import CalibrationContext
from mmquant.models import QuantizedModel


class Cut(nn.Module):
    """The second layer gets one huge value, which is cut off behind it; weights of 2 are exact at any width."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(1, 1, 1, bias=False) for _ in range(3))
        for layer in (self.first, self.second, self.third):
            nn.init.constant_(layer.weight, 2.0)

    def forward(self, x):
        return self.third(self.second(self.first(x)).clamp(max=4.0))


def decibels(signal, noise) -> float:
    return 10 * math.log10(float(signal.double().square().sum() / noise.double().square().sum()))


@torch.no_grad()
def test_the_coarse_grid_is_found():
    torch.manual_seed(0)
    x = torch.rand(1, 1, 32, 32)
    x[0, 0, 0, 0] = 127.5
    model = QuantizedModel(Cut(), W8A8, 'random')
    context = CalibrationContext(model, [x])
    reference = context.run(0)
    for step in (InsertQuantizers(), InitWeightRange(MIN_MAX), InitActivationRange(MIN_MAX)):
        step.run(context)
    found = noise_sources(model, lambda: context.run(0), reference)
    met, rounded = 2 * x, (2 * x).round()  # from 0 to 255: steps of 1
    outputs = [2 * (2 * value).clamp(max=4) for value in (met, rounded)]
    expected = decibels(outputs[0], outputs[1] - outputs[0])
    assert found.place == 'second.input' and found.share > 0.99 and found.off == found.weights == math.inf
    assert found.alone == pytest.approx(expected, abs=0.01) and found.activations == pytest.approx(expected, abs=0.1)
    assert all(x == pytest.approx(expected, abs=0.5) for x in found.random)  # no worse than noise
    assert found.own == pytest.approx(decibels(met, rounded - met), abs=0.01)
    assert found.calls == (pytest.approx(float(met.square().mean().sqrt())), ) * 2 and 'calls' not in str(found)
    assert 'quantizers off no error, ' in str(found)
    assert NoiseSources.from_json(dict(vars(found), off=None, weights=None)) == found
    assert found.peak == pytest.approx(255 / float(met.square().mean().sqrt()), rel=1e-5)


class Twice(nn.Module):
    """One layer reads a tensor and a thousandth of it: one grid is too coarse for the small one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 2, 3)

    def forward(self, x):
        x = self.first(x).relu()
        return self.last(self.shared(x / 1000) * 1000), self.shared(x).mean() * 0


def test_calls_of_a_shared_layer():
    told = NoiseSources(**measure_coverage(Twice, (3, 16, 16)).noise)
    low, high = told.calls
    assert told.place == 'shared.input' and high == pytest.approx(1000 * low, rel=1e-3)
    assert str(told).endswith(f', its calls from {low:.3g} to {high:.3g} rms')
    assert told.alone < 1 < 40 < told.own  # the large call alone is quantized well


class Peaks(nn.Module):
    """A few huge values, which are cut off at once behind the layer that reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 3)

    def forward(self, x):
        return self.third(self.second(self.first(x).sinh()).clamp(-1, 1))


def test_a_low_ratio_is_explained():
    low = measure_coverage(lambda: Peaks(), (3, 16, 16))
    assert low.sqnr < 20 and low.noise['off'] > 100
    told = NoiseSources(**low.noise)
    assert told.place == 'second.input' and f'{told.share:.0%} of the noise from `second.input`: alone' in str(told)
    fine = measure_coverage(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)), (3, 16, 16))
    assert fine.sqnr > 20 and fine.noise == {} and fine.unnamed == 0
