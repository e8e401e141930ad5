"""Speed of reconstruction.

1. One reconstruction step of ResNet-18's blocks against the plain float32 training step of the same block (forward,
   backward, Adam on its weights, NCHW), interleaved in one run, as a ratio of medians.
2. Seconds of caching against depth, for chains of 8, 16 and 32 blocks.
"""
import argparse
import copy
import statistics
import time
from types import SimpleNamespace

import torch
from benchmarks import add_out_argument, show
from torch import nn

import mmquant  # noqa: F401  checks the versions
from mmquant.algorithms import CalibrationContext, FoldBatchNorm, InitWeightRange, InsertQuantizers
from mmquant.apis.cli import run_as_script
from mmquant.calibration.unit_inputs import UnitInputBuilder, UnitRun
from mmquant.losses import LpLoss
from mmquant.models import QuantizedModel
from mmquant.reconstruction import RoundingRegularizer
from mmquant.reconstruction.fit import Pushes, make_update
from mmquant.reconstruction.optimizers import Training, make_optimizers
from mmquant.reconstruction.problem import Comparison, Problem
from mmquant.reconstruction.variables import UnitVariables
from mmquant.registry import ROUNDINGS

SHAPES = ((64, 56), (128, 28), (256, 14), (512, 7))
QUANTIZER = {'weight': {'type': 'mmquant.UniformAffineQuantizer', 'bits': 4, 'granularity': 'channel'},
             'activation': {'type': 'mmquant.UniformAffineQuantizer', 'bits': 4}}


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--batch-size', type=int, default=32, help='images a step')
    parser.add_argument('--repeats', type=int, default=15, help='timed steps of each kind')
    parser.add_argument('--amp', action='store_true', help='also time bfloat16 autocast')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--depths', type=int, nargs='*', default=[8, 16, 32], help='chain lengths for caching')
    add_out_argument(parser)
    return parser.parse_args()


class BasicBlock(nn.Module):
    """ResNet's basic block behind folding: conv, ReLU, conv, add, ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.relu = nn.ReLU()

    def forward(self, x):
        """Block output."""
        return self.relu(self.conv2(self.relu(self.conv1(x))) + x)


def chain(channels: int, depth: int) -> nn.Module:
    """A net of ``depth`` blocks."""
    return nn.Sequential(*[BasicBlock(channels) for _ in range(depth)])


def float_step(block: nn.Module, x: torch.Tensor, y: torch.Tensor):
    """The plain training step."""
    block = copy.deepcopy(block).train()
    optimizer = torch.optim.Adam([block.conv1.weight, block.conv2.weight], lr=1e-6)

    def step():
        optimizer.zero_grad()
        (block(x) - y).square().sum(1).mean().backward()
        optimizer.step()

    return step


def reconstruction_step(model: nn.Module, x: torch.Tensor, y: torch.Tensor, amp: bool):
    """One step of the weight stage, as :class:`Reconstruction` runs it."""
    model.to(memory_format=torch.channels_last)
    wrapped = QuantizedModel(copy.deepcopy(model), QUANTIZER, 'random')
    context = CalibrationContext(wrapped, [x])
    for s in (FoldBatchNorm(), InsertQuantizers(), InitWeightRange()):
        s.run(context)
    unit = wrapped.units('block')[0]
    builder = UnitInputBuilder()
    builder.add(((x,), {}))
    data = builder.build()
    run = UnitRun(wrapped, unit, 0, data)
    rows = torch.arange(len(x), device=x.device)
    targets = y.contiguous(memory_format=torch.channels_last)
    problem = Problem(run, dict(quant=data.data), (Comparison(LpLoss(), targets, 1), ), rows, rows, x.device, amp, True)
    layers, roundings = wrapped.quantized_layers(), {}
    for name, layer in layers.items():
        roundings[name] = ROUNDINGS.build(dict(type='mmquant.AdaRound'))
        roundings[name].start(layer._parameters['weight'], layer.weight_quantizer)
        layer.weight_quantizer.rounding = roundings[name]
    for q in wrapped.activation_quantizers().values():
        q.enabled = False
    variables = SimpleNamespace(variables=UnitVariables(layers, roundings))
    optimizers = make_optimizers(variables.variables.start(dict(rounding=Training(1e-3))))
    update = make_update(problem, optimizers, Pushes(dict(rounding=RoundingRegularizer()), variables), len(rows))
    return lambda: update(rows, dict(rounding=11.0))


def timed(step, device: str) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    step()
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - started


def compare_steps(args: argparse.Namespace) -> str:
    """Table of step times and ratios."""
    rows = []
    for channels, size in SHAPES:
        torch.manual_seed(0)
        model = chain(channels, 1).to(args.device)
        x = torch.rand(args.batch_size, channels, size, size, device=args.device)
        y = model(x).detach()
        steps = dict(float=float_step(model[0], x, y), fp32=reconstruction_step(model, x, y, False))
        if args.amp:
            steps['amp'] = reconstruction_step(model, x, y, True)
        times = {k: [] for k in steps}
        for repeat in range(args.repeats + 3):  # interleaved, so that noise hits all alike
            for k, step in steps.items():
                seconds = timed(step, args.device)
                if repeat >= 3:
                    times[k].append(seconds)
        median = {k: statistics.median(v) * 1e3 for k, v in times.items()}
        ratios = [median[k] / median['float'] for k in steps if k != 'float']
        rows.append((f'{channels}x{size}x{size}', *median.values(), *ratios))
    names = [k for k in steps]
    return show('One step, ms (medians)', ('block', *names, *[f'{k} / float' for k in names[1:]]), rows,
                torch.device(args.device), args.out)


@torch.no_grad()
def compare_depths(args: argparse.Namespace) -> str:
    """Table of caching times: advancing the float stream over all units of chains of growing depth."""
    rows = []
    for depth in args.depths:
        wrapped = QuantizedModel(chain(32, depth).to(args.device), QUANTIZER, 'random')
        images = list(torch.rand(256, 32, 28, 28, device=args.device).split(64))
        context = CalibrationContext(wrapped, images)
        for s in (FoldBatchNorm(), InsertQuantizers()):
            s.run(context)
        units, stream = wrapped.units('block'), context.stream('float')
        with wrapped.quantization(False, False):
            wrapped.run(images[0])
            started = time.perf_counter()
            for unit in units:
                list(stream.walk(unit, frozenset()))
            seconds = time.perf_counter() - started
        rows.append((depth, seconds, seconds / depth * 1e3))
    return show('Caching 256 images, 32x28x28', ('blocks', 'seconds', 'ms a block'), rows, torch.device(args.device),
                args.out)


def main() -> None:
    """Run both comparisons."""
    args = parse_args()
    if args.batch_size < 1 or args.repeats < 1:
        raise ValueError('--batch-size and --repeats must be at least 1')
    print(compare_steps(args))
    print(compare_depths(args))


if __name__ == '__main__':
    run_as_script(main)
