"""Seconds to observe a deep net, place its quantizers, split it into units and walk a stream through them, by depth.

The net is a ResNet of 8 channels on images of 16 pixels, so that what is measured is the work on its data flow.
"""
import argparse
import time
from functools import partial

import torch
from benchmarks import add_out_argument, show
from torch import nn

import mmquant  # noqa: F401  checks the versions
from mmquant.apis.cli import run_as_script
from mmquant.calibration.stream import Stream
from mmquant.models import QuantizedModel
from mmquant.structures.unit import GRANULARITIES

QUANTIZER = dict(weight=dict(type='mmquant.UniformAffineQuantizer', bits=4, granularity='channel'),
                 activation=dict(type='mmquant.UniformAffineQuantizer', bits=4))
COLUMNS = ('blocks', 'observe and fold', 'place', 'insert', 'units', 'walk')


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--blocks', type=int, nargs='+', default=(25, 50, 100, 200))
    add_out_argument(parser)
    return parser.parse_args()


class Block(nn.Module):
    """Two convolutions with BatchNorm and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return self.relu(x + self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))


def deep_resnet(blocks: int, width: int = 8) -> nn.Module:
    """A stem, four stages of equally many blocks, a classifier."""
    stages = [nn.Sequential(*(Block(width) for _ in range(blocks // 4 + (i < blocks % 4)))) for i in range(4)]
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(width, 10))


def walk(model: QuantizedModel, images: torch.Tensor) -> None:
    """Move a stream of the float net through all blocks."""
    with model.quantization(weights=False, activations=False):
        stream = Stream(model, [images])
        for unit in model.units('block'):
            list(stream.walk(unit, frozenset()))


def measure(blocks: int) -> list[float]:
    """Seconds of each part, in the order of the columns."""
    torch.manual_seed(0)
    model, images = QuantizedModel(deep_resnet(blocks), QUANTIZER, 'random'), torch.randn(2, 3, 16, 16)
    seconds, plans = [], []
    for part in (partial(model.fold_batch_norm, images), lambda: plans.append(model.make_plan(images)),
                 lambda: model.insert_quantizers(plans[0]), lambda: [model.units(kind) for kind in GRANULARITIES],
                 partial(walk, model, images)):
        started = time.perf_counter()
        part()
        seconds.append(time.perf_counter() - started)
    return seconds


def main() -> None:
    """Measure, report."""
    args = parse_args()
    measure(4)  # warm up
    rows = [[blocks, *(f'{x:.3f}' for x in measure(blocks))] for blocks in args.blocks]
    print(show('Seconds by depth', COLUMNS, rows, torch.device('cpu'), args.out))


if __name__ == '__main__':
    run_as_script(main)
