"""What searching clips costs, in one run and from the same start.

1. Powell's method with cached prefixes against the same search with every evaluation through the whole network: the
   same losses to the bit, evaluations a second and image-forwards of both.
2. Image-forwards that the other searchers spend until they are at the loss that Powell's method ends with.
"""
import argparse
import copy
import os.path as osp
import time

from benchmarks import add_out_argument, show

import mmquant  # noqa: F401  checks the versions
from mmquant.algorithms.lapq import NormSweep
from mmquant.algorithms.step_list import ordered_steps
from mmquant.apis.cli import add_common_arguments, merge_common, run_as_script
from mmquant.apis.config import check_data, load_config
from mmquant.apis.prepare import prepare_context
from mmquant.apis.quantize import run_steps
from mmquant.losses.objectives import build_objective
from mmquant.registry import SEARCHERS
from mmquant.search import ClipProblem
from mmquant.search.problem import find_clips
from mmquant.utils.building import build
from mmquant.utils.files import write_json

POWELL = dict(type='mmquant.PowellSearch')
OTHERS = ('CoordinateDescent', 'GradientSearch', 'PatternSearch')


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', nargs='?', default='configs/lapq/resnet18_w4a4_digits.py',
                        help='quantization config file path')
    add_common_arguments(parser)
    parser.add_argument('--num-images', type=int, default=256, help='calibration images')
    parser.add_argument('--iters', type=int, default=1, help="iterations of Powell's method")
    parser.add_argument('--max-evaluations', type=int, help="bound of Powell's method; default 30 for each clip")
    parser.add_argument('--others', nargs='*', default=list(OTHERS), metavar='SEARCHER', help='searchers to compare')
    parser.add_argument('--norms', type=float, nargs='+', default=[2, 3, 4], help='values of p before the search')
    add_out_argument(parser)
    return parser.parse_args()


def search(context, images, objective, start: dict, searcher, use_cache: bool = True) -> dict:
    """One search from ``start``: losses, costs, and the course of (image-forwards, best loss)."""
    context.model.architecture.load_state_dict(start)
    course, state = [], {}
    with ClipProblem(images, objective, context.amp, use_cache) as problem:
        problem.on_evaluation = lambda loss: course.append((problem.counts.image_forwards, problem.best_loss))
        started = time.perf_counter()
        first = problem.loss([0.0] * problem.size)
        for unit in range(searcher.num_units):
            problem.loss([0.0] * problem.size)
            searcher.run_unit(unit, problem, state, context.seed_for(unit))
            last = problem.settle()
        seconds = time.perf_counter() - started
        counts = problem.counts
    return dict(start_loss=first, loss=last, seconds=seconds, evaluations=counts.evaluations,
                gradients=counts.gradients, image_forwards=counts.image_forwards,
                evaluations_per_second=counts.evaluations / seconds, course=course)


def reached(course: list, loss: float) -> float | None:
    """Image-forwards spent when a search was first at ``loss`` or below."""
    return next((spent for spent, best in course if best <= loss), None)


def compare(cfg, args: argparse.Namespace) -> dict:
    """All searches from the best layer-wise point, by the objective of the config's joint search."""
    steps = ordered_steps(cfg.train_cfg.steps).values()
    objective_cfg = next((s.get('objective') for s in steps if s['type'] == 'mmquant.JointSearch'), None)
    runner, context = prepare_context(cfg)
    run_steps(context, [NormSweep(args.norms, num_images=args.num_images, objective=objective_cfg)])
    start = copy.deepcopy(context.model.architecture.state_dict())
    images = context.subset(args.num_images)
    objective = build_objective(images, objective_cfg, 'objective')
    powell = build(SEARCHERS, dict(POWELL, num_iters=args.iters, max_evaluations=args.max_evaluations), 'searcher')
    results = {'Powell, whole network': search(context, images, objective, start, powell, use_cache=False),
               'Powell, cached prefixes': search(context, images, objective, start, powell)}
    for name in args.others:
        searcher = build(SEARCHERS, {'type': f'mmquant.{name}'}, name)
        results[name] = search(context, images, objective, start, searcher)
    target, whole = results['Powell, whole network']['loss'], results['Powell, whole network']['image_forwards']
    if results['Powell, cached prefixes']['loss'] != target:
        raise RuntimeError('cached prefixes changed the result of the search; please report this')
    for result in results.values():
        result['to_target'] = reached(result.pop('course'), target)
        result['times_fewer'] = whole / result['to_target'] if result['to_target'] else None
    rows = [(name, r['evaluations'], r['evaluations_per_second'], round(r['image_forwards']), r['loss'], r['seconds'],
             r['to_target'] and round(r['to_target']), r['times_fewer']) for name, r in results.items()]
    runner.logger.info('\n' + show(
        f'Search over {len(find_clips(context.model))} clips on {args.num_images} images, from loss '
        f'{results["Powell, whole network"]["start_loss"]:.5f}',
        ('search', 'evaluations', 'a second', 'image-forwards', 'loss', 'seconds', "at Powell's loss behind",
         'times fewer'), rows, context.device, args.out))
    return results


def main() -> None:
    """Compare, print the table, write ``benchmark_search.json``."""
    args = parse_args()
    cfg = merge_common(load_config(args.config, args.cfg_options), args)
    check_data(cfg, 'val_dataloader')
    results = compare(cfg, args)
    write_json(osp.join(cfg.work_dir, 'benchmark_search.json'), results)


if __name__ == '__main__':
    run_as_script(main)
