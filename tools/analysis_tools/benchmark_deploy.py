"""Latency and size of exported models beside the float model and the 8-bit file of ONNX Runtime's own quantizer.

All sessions of a table take turns in one process. A turn runs once without the clock, so that every session finds its
weights in the caches, and no threads of another one. Ratios are those of the shortest times: of what the clock says
(ms), and of what the process computed (CPU ms), which other processes disturb less. Weights are random, except that
BatchNorm knows the images. Files of w4a4 and w2a4 are packed. Where a CPU has no VNNI, OpenVINO's sums always saturate,
those of ONNX Runtime unless it is told to be exact.
"""
from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch
from benchmarks import add_out_argument, show
from deploy_files import make_files, random_model

from mmquant.apis.cli import run_as_script
from mmquant.export._extras import need
from mmquant.export.executor.graph_executor import GraphExecutor
from mmquant.export.runtime import RuntimeSession

MODELS = ('resnet18_8xb32_in1k', 'mobilenet-v2_8xb32_in1k')
SUMS = dict(exact='exact sums', fast='sums that saturate without VNNI')


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', nargs='+', default=MODELS, metavar='NAME', help='models of mmpretrain')
    parser.add_argument('--size', type=int, default=224, help='height and width of the images')
    parser.add_argument('--images', type=int, default=8, help='to calibrate on')
    parser.add_argument('--threads', type=int, nargs='+', default=[1, 2], help='of the runtimes')
    parser.add_argument('--rounds', type=int, default=40, help='turns of each session')
    parser.add_argument('--sums', nargs='+', choices=SUMS, default=list(SUMS),
                        help='ONNX Runtime with session.x64quantprecision (exact) and without (fast)')
    parser.add_argument('--work-dir', help='folder that keeps the files; default: a temporary one')
    add_out_argument(parser)
    return parser.parse_args(args)


def contestants(files: dict[str, Path]) -> dict[str, tuple[Path, str]]:
    """Row of the table -> (file, runtime); OpenVINO only where it is installed."""
    rows = {label: (path, 'onnxruntime') for label, path in files.items()}
    try:
        rows['w8a8, OpenVINO'] = files['w8a8'], need('openvino').__name__
    except ImportError as error:
        print(f'OpenVINO is left out: {error}', file=sys.stderr)
    return rows


def take_turns(sessions: dict[str, RuntimeSession], inputs: dict[str, np.ndarray],
               rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Milliseconds (clock, CPU) of each session, ``rounds`` of them; every round has another order."""
    times, order, shuffle = {label: [] for label in sessions}, list(sessions), random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for label in order:
            sessions[label].run(inputs)
            started, computed = time.perf_counter(), time.process_time()
            sessions[label].run(inputs)
            times[label].append(((time.perf_counter() - started) * 1000, (time.process_time() - computed) * 1000))
    return times


def integer_share(path: Path, inputs: dict[str, np.ndarray]) -> float | None:
    """Percent of the multiplications that ONNX Runtime does in integers; None if the executor cannot read the file."""
    try:
        executor = GraphExecutor(path)
        executor.run(inputs)
    except (OverflowError, ValueError) as error:
        print(f'{path.name}: {error}', file=sys.stderr)
        return None
    return 100 * executor.integer_share


def table(files: dict[str, Path], images: torch.Tensor, args: argparse.Namespace, exact: bool) -> tuple[list, list]:
    """Columns and rows: size, share of integers, and for each number of threads the times."""
    inputs, rows = dict(images=images[:1].numpy()), contestants(files)
    shares = {path: integer_share(path, inputs) for path, _ in rows.values()}
    columns = [f'onnxruntime {need("onnxruntime").__version__}', 'MB', 'integer MACs, %']
    cells = {label: [label, os.path.getsize(path) / 1e6, shares[path] if runtime == 'onnxruntime' else None]
             for label, (path, runtime) in rows.items()}
    for threads in args.threads:
        sessions = {label: RuntimeSession(path, threads=threads, provider=runtime, exact_sums=exact)
                    for label, (path, runtime) in rows.items()}
        times = take_turns(sessions, inputs, args.rounds)
        columns += [f'ms, {threads} thread{"s" * (threads > 1)}', 'median', '/ static', 'CPU ms', '/ static']
        best = {label: np.min(spent, 0) for label, spent in times.items()}
        for label, spent in times.items():
            (clock, cpu), (clock_ratio, cpu_ratio) = best[label].tolist(), (best[label] / best['static']).tolist()
            cells[label] += [clock, median(x for x, _ in spent), clock_ratio, cpu, cpu_ratio]
    return columns, list(cells.values())


def main() -> None:
    """Measure every model."""
    args = parse_args()
    for name in args.model:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(args.work_dir or temporary, name)
            folder.mkdir(parents=True, exist_ok=True)
            images = torch.randn(args.images, 3, args.size, args.size, generator=torch.Generator().manual_seed(0))
            files = make_files(random_model(name, images), images, folder)
            for sums in args.sums:
                columns, rows = table(files, images, args, sums == 'exact')
                print(show(f'{name}, {args.size} x {args.size}, {SUMS[sums]}', columns, rows, torch.device('cpu'),
                           args.out))


if __name__ == '__main__':
    run_as_script(main)
