"""Peak memory of calibrating a detector with a limited cache.

RetinaNet on ResNet-50, or the config given, with random weights and images and a few steps a unit. What does not fit in
memory goes to disk.
"""
import argparse
import contextlib
import tempfile

import torch
from benchmarks import add_out_argument, show
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope

import mmquant  # noqa: F401  checks the versions
from mmquant.algorithms import CalibrationContext, Reconstruction
from mmquant.algorithms.step_list import build_steps, ordered_steps
from mmquant.apis.cli import run_as_script
from mmquant.apis.config import calibration_config, load_config
from mmquant.calibration.cache import Cache, parse_bytes
from mmquant.registry import MODELS
from mmquant.utils.hardware import peak_memory_bytes
from mmquant.utils.progress import progress


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', nargs='?', default='configs/brecq/retinanet-r50_w4a8_coco.py')
    parser.add_argument('--budget', default='2GiB', help='bytes of the whole process; the cache gets what is left')
    parser.add_argument('--images', type=int, default=32)
    parser.add_argument('--shape', type=int, nargs=2, default=(800, 1344), help='height and width of an image')
    parser.add_argument('--num-iters', type=int, default=1, help='steps a unit')
    parser.add_argument('--units', type=int, help='reconstruct only so many units a step; the first ones of a network '
                        'have the largest activations. Default: all')
    parser.add_argument('--working-set', default='1.95GiB',
                        help='kept free for packages, model, images and the running unit')
    add_out_argument(parser)
    return parser.parse_args()


def quick_steps(cfg, num_iters: int) -> list:
    """The config's steps with a few iterations, one image a pass, and ranges from the extremes of one image."""
    observer = dict(type='mmquant.MinMaxObserver')
    steps = {}
    for name, step in ordered_steps(cfg.train_cfg.steps).items():
        kind = step['type'].removeprefix('mmquant.')
        changes = dict(Reconstruction=dict(num_iters=num_iters, batch_size=1),
                       InitActivationRange=dict(num_images=1, chunk=1, observer=observer),
                       InitWeightRange=dict(observer=observer)).get(kind, {})
        steps[name] = dict(step, **changes)
    return build_steps(steps)


class EnoughUnits(Exception):
    """Ends a step early."""


def stop_behind(context: CalibrationContext, count: int | None) -> None:
    """Let the next step end behind its first ``count`` units, with everything that they keep in the cache."""
    left = [count]

    def unit_done(index: int) -> None:
        if left[0] is not None:
            left[0] -= 1
            if left[0] <= 0:
                raise EnoughUnits

    context.unit_done = unit_done


def main() -> None:
    """Calibrate, report."""
    args = parse_args()
    logger = MMLogger.get_instance('benchmark_memory')
    cfg = calibration_config(load_config(args.config))
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(dict(cfg.model, float_checkpoint='random'))
    budget = parse_bytes(args.budget, '--budget')
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(host=max(0, budget - parse_bytes(args.working_set, '--working-set')), folder=folder)
        images = [torch.randn(1, 3, *args.shape) for _ in range(args.images)]
        context = CalibrationContext(model, images, progress=progress, cache=cache)
        for step in quick_steps(cfg, args.num_iters):
            stop_behind(context, args.units)
            with torch.set_grad_enabled(isinstance(step, Reconstruction)), contextlib.suppress(EnoughUnits):
                step.run(context)
            used = peak_memory_bytes(), cache.peak['host'], cache.peak['disk']
            rows.append((step.name, *(round(x / 2**30, 2) for x in used)))
            logger.info('{}: peak memory {:.2f} GiB; cache: {:.2f} GiB in memory, {:.2f} GiB on disk'.format(*rows[-1]))
    verdict = 'within' if peak_memory_bytes() <= budget else 'ABOVE'
    units = f'the first {args.units} units' if args.units else 'all units'
    title = f'{args.images} images of {args.shape[0]}x{args.shape[1]}, {units}: {verdict} the budget of {args.budget}'
    logger.info('\n' + show(title, ('behind the step', 'peak memory (GiB)', 'cache in memory (GiB)',
                                    'cache on disk (GiB)'), rows, torch.device('cpu'), args.out))


if __name__ == '__main__':
    run_as_script(main)
