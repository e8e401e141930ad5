"""Time of solvers against the size of a layer: the moments of its input, and the codes.

Layers are written ``OUTxIN`` (linear) or ``OUTxINxK`` (convolution K x K), ``dwNxK`` for a depthwise one.
"""
import argparse
import re
import time

import torch
import torch.nn.functional as F
from benchmarks import add_out_argument, show
from torch import nn

import mmquant  # noqa: F401  checks the versions
from mmquant.apis.cli import run_as_script
from mmquant.calibration.moments import Moments
from mmquant.models.layer_matrix import LayerMatrix
from mmquant.observers import MinMaxObserver
from mmquant.quantizers import UniformAffineQuantizer
from mmquant.registry import SOLVERS
from mmquant.solvers import better_rows
from mmquant.utils.building import build

LAYERS = ('64x64x3', '128x128x3', '256x256x3', '512x512x3', 'dw960x3', '320x960', '768x768', '768x3072', '3072x768')


def layer_text(text: str) -> str:
    """``text``, if it names a layer."""
    if not re.fullmatch(r'dw[1-9]\d*x[1-9]\d*|[1-9]\d*x[1-9]\d*(x[1-9]\d*)?', text):
        raise argparse.ArgumentTypeError(f'{text!r} is no layer; write OUTxIN, OUTxINxK or dwNxK, such as 512x512x3')
    return text


def layer_of(text: str) -> nn.Module:
    """The layer that ``OUTxIN``, ``OUTxINxK`` or ``dwNxK`` names."""
    out, second, *kernel = (int(number) for number in text.removeprefix('dw').split('x'))
    if text.startswith('dw'):
        return nn.Conv2d(out, out, second, padding=second // 2, groups=out)
    return nn.Conv2d(second, out, kernel[0], padding=kernel[0] // 2) if kernel else nn.Linear(second, out)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--layers', nargs='+', type=layer_text, default=LAYERS, help='what to solve')
    parser.add_argument('--solvers', nargs='+', default=['GPTQ'], help='types of the registry SOLVERS')
    parser.add_argument('--bits', type=int, default=4, help='of the weights')
    parser.add_argument('--images', type=int, default=16, help='images (of 14 x 14 places) that the moments sum over')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    add_out_argument(parser)
    return parser.parse_args()


@torch.no_grad()
def measure(text: str, solvers: list, args: argparse.Namespace) -> tuple:
    """One row of the table."""
    torch.manual_seed(0)
    layer = layer_of(text).to(args.device)
    matrix = LayerMatrix(layer, solvers[0].max_columns)
    channels = layer.weight.shape[1] * getattr(layer, 'groups', 1)
    x = torch.randn(args.images, channels, 14, 14, device=args.device)
    x = F.relu(F.avg_pool2d(x + x[:, :1], 3, 1, 1))  # neighbours and channels are correlated
    x = x if layer.weight.dim() > 2 else x.permute(0, 2, 3, 1)
    moments, started = Moments(matrix), clock(args.device)
    with matrix.caught(moments.add):
        layer(x)
    summing = clock(args.device) - started
    quantizer = UniformAffineQuantizer(args.bits, granularity='channel').to(args.device)
    quantizer.allocate(layer.weight.shape)
    quantizer.fit(layer.weight, MinMaxObserver())
    weight = matrix.matrix(layer.weight)
    columns = quantizer.columns(matrix.shape, matrix.matrix)
    nearest, cells = columns.encode(weight), []
    before = moments.error(weight, columns.decode(nearest)).sum()
    for solver in solvers:
        started = clock(args.device)
        codes = better_rows(weight, moments, columns, solver.solve(weight, moments, columns), nearest)
        cells.append(clock(args.device) - started)
        cells.append((moments.error(weight, columns.decode(codes)).sum() / before).item())
    memory = moments.gram.numel() * moments.gram.element_size() / 2**20
    rows = moments.count
    return text, matrix.groups, weight.shape[1], matrix.columns, memory, summing / rows * 1e5, *cells


def clock(device: str) -> float:
    """Seconds; of a GPU, after what it was told to do."""
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    """Measure every layer."""
    args = parse_args()
    solvers = [build(SOLVERS, dict(type=f'mmquant.{name}'), '--solvers') for name in args.solvers]
    rows = [measure(text, solvers, args) for text in args.layers]
    names = [title for name in args.solvers for title in (f'{name}, s', f'{name}, error / nearest')]
    print(show(f'Solvers, {args.bits} bits', ('layer', 'groups', 'rows R', 'columns C', 'H (MiB)', 'H of 1e5 rows, s',
                                              *names), rows, torch.device(args.device), args.out))


if __name__ == '__main__':
    run_as_script(main)
