"""The loss of a quantized model over its clips: pictures and curvature, as in LAPQ's paper, for any config.

For each bit width: loss against p with the quadratic fit; from the best of these points the loss over two clips, and
the Hessian over some clips with its Gaussian curvature and coupling (the share of squared entries off the diagonal: 0
where the loss is separable). PNG files and landscape.json go to the work dir, scalars to the visualizer.
"""
import argparse
import copy
import os.path as osp

from landscape import chosen_clips, curvature, surface
from landscape_pictures import plot_hessian, plot_norms, plot_surface

import mmquant  # noqa: F401  checks the versions
from mmquant.algorithms.lapq import NORMS, NormSweep
from mmquant.apis.cli import add_common_arguments, merge_common, run_as_script
from mmquant.apis.config import check_data, load_config
from mmquant.apis.prepare import prepare_context
from mmquant.apis.quantize import run_steps
from mmquant.losses.objectives import build_objective
from mmquant.search import ClipProblem
from mmquant.utils.files import write_json


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='quantization config file path')
    add_common_arguments(parser)
    parser.add_argument('--bits', type=int, nargs='+', default=[4, 2],
                        help='bit widths, one after another, of whatever the config quantizes by default')
    parser.add_argument('--norms', type=float, nargs='+', default=list(NORMS), help='values of p')
    parser.add_argument('--clips', type=int, nargs=2, help='numbers of the two clips of the surface; default: the '
                        'two of the Hessian that depend on each other most')
    parser.add_argument('--points', type=int, default=15, help='points along each axis of the surface')
    parser.add_argument('--span', type=float, default=0.7, help='half width of the surface, in log clip')
    parser.add_argument('--hessian', type=int, default=8, help='clips of the Hessian, spread over the network; 0: all')
    parser.add_argument('--step', type=float, default=0.1, help='step of the differences, in log clip')
    parser.add_argument('--num-images', type=int, default=128, help='calibration images')
    return parser.parse_args()


def with_bits(cfg, bits: int):
    """A copy of a config whose weights and activations have ``bits`` where they are quantized by default."""
    cfg = copy.deepcopy(cfg)
    for part in (cfg.model.quantizer.weight, cfg.model.quantizer.activation):
        if part.bits is not None:
            part.bits = bits
    cfg.experiment_name = f'landscape_{bits}bit'
    return cfg


def strongest_pair(hessian) -> tuple[int, int]:
    """Places of the largest entry off the diagonal."""
    n = len(hessian)
    return max(((a, b) for a in range(n) for b in range(a + 1, n)), key=lambda ab: abs(hessian[ab]))


def landscape(cfg, bits: int, args: argparse.Namespace) -> dict:
    """Pictures and numbers at one bit width."""
    runner, context = prepare_context(with_bits(cfg, bits))
    path = osp.join(runner.work_dir, f'{{}}_{bits}bit.png').format
    sweep = NormSweep(args.norms, num_images=args.num_images)
    run_steps(context, [sweep])
    fit = context.records[-1]
    sampled = [(r['p'], r['loss']) for r in context.records if r['kind'] == 'norm' and r['p'] and r['loss'] is not None]
    plot_norms(path('norms'), *zip(*sampled), fit['coefficients'], fit['p_star'], f'{bits} bits')

    images = context.subset(args.num_images)
    objective = build_objective(images, None, 'objective')
    with ClipProblem(images, objective, context.amp) as problem:
        clips = chosen_clips(problem.size, args.hessian or problem.size)
        if args.clips and not all(0 <= c < problem.size for c in args.clips):
            raise ValueError(f'--clips {args.clips}: the clips of this model are numbered 0 to {problem.size - 1}')
        found = curvature(problem, clips, args.step)
        i, j = args.clips or sorted(clips[k] for k in strongest_pair(found.hessian))
        axis, losses = surface(problem, i, j, args.span, args.points)
        names = problem.clips[i].name, problem.clips[j].name
    plot_hessian(path('hessian'), found.hessian, found.names, f'{bits} bits')
    plot_surface(path('surface'), axis, losses, names, f'{bits} bits')
    sign, log_k = found.gaussian
    result = dict(bits=bits, loss=found.loss, p_star=fit['p_star'], branch=fit['branch'], norms=sampled,
                  gaussian_sign=sign, gaussian_log10=log_k, coupling=found.coupling, clips=list(found.names),
                  hessian=found.hessian.tolist(), gradient=found.gradient.tolist(), surface_clips=names)
    for key in ('loss', 'gaussian_sign', 'gaussian_log10', 'coupling'):
        runner.visualizer.add_scalar(f'landscape/{key}', result[key], bits)
    runner.logger.info(f'{bits} bits: loss {found.loss:.4g}, Gaussian curvature {sign:+.0f} * 10^{log_k:.2f}, coupling '
                       f'{found.coupling:.3f}')
    return result


def main() -> None:
    """Look at each bit width."""
    args = parse_args()
    if min(args.points, args.hessian + 2) < 2 or args.hessian == 1:
        raise ValueError('--points must be at least 2, and --hessian 0 or at least 2')
    cfg = merge_common(load_config(args.config, args.cfg_options), args)
    check_data(cfg, 'val_dataloader')
    results = [landscape(cfg, bits, args) for bits in args.bits]
    write_json(osp.join(cfg.work_dir, 'landscape.json'), results)


if __name__ == '__main__':
    run_as_script(main)
