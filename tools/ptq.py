"""Quantize a model: run the steps of a config's calibration loop."""
import argparse
from contextlib import nullcontext

import mmquant  # noqa: F401  checks the versions
from mmquant.algorithms.step_list import ordered_steps, tuned
from mmquant.apis.cli import add_common_arguments, merge_common, run_as_script
from mmquant.apis.config import build_runner, calibration_config, check_data, load_config
from mmquant.apis.prepare import dry_run
from mmquant.utils.building import ConfigError
from mmquant.utils.files import locked

HOOKS = ('mmquant.EvaluationHook', 'mmquant.ReportHook')  # of every run, unless the config has its own


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Quantize a model')
    parser.add_argument('config', help='quantization config file path')
    add_common_arguments(parser)
    parser.add_argument('--resume', nargs='?', const=True, default=False, metavar='PATH',
                        help='continue an unfinished run: the one in the work dir, or the state in this file')
    parser.add_argument('--amp', action='store_true', help='reconstruct in bfloat16 autocast')
    parser.add_argument('--num-iters', nargs='+', metavar='STEP=N', default=[],
                        help='training steps per unit: a number for all steps, or by name: weights=500 activations=250')
    parser.add_argument('--no-report', action='store_true', help='leave out report.html')
    parser.add_argument('--dry-run', action='store_true',
                        help='print units, layers, bits, cost and an estimate of the time; needs no data, no weights')
    return parser.parse_args()


def set_num_iters(cfg, given: list[str]) -> None:
    """Write ``--num-iters`` into the steps; ConfigError for what is no number, or a step that does not train."""
    if not given:
        return
    pairs = [word.rpartition('=') for word in given]
    if not all(n.isdigit() and int(n) > 0 for *_, n in pairs) or '' in (name for name, *_ in pairs) and len(pairs) > 1:
        raise ConfigError(f'--num-iters: expected a number, or names with numbers such as weights=500, got {given}')
    by_name = {name: int(n) for name, _, n in pairs}
    cfg.train_cfg.steps = tuned(ordered_steps(cfg.train_cfg.steps), num_iters=by_name.get('', by_name))


def main() -> None:
    """Build the runner and calibrate, or only look."""
    args = parse_args()
    cfg = calibration_config(merge_common(load_config(args.config, args.cfg_options), args))
    set_num_iters(cfg, args.num_iters)
    if args.dry_run:
        dry_run(cfg)
        return
    cfg.train_cfg.resume = args.resume
    cfg.train_cfg.amp = args.amp or cfg.train_cfg.get('amp', False)
    hooks = cfg.get('custom_hooks') or []
    missing = {*HOOKS[:1 if args.no_report else 2]} - {h['type'] for h in hooks}
    cfg.custom_hooks = [*hooks, *(dict(type=name) for name in HOOKS if name in missing)]
    check_data(cfg, 'train_dataloader', 'val_dataloader')
    with locked(cfg.work_dir) if args.launcher == 'none' else nullcontext():  # of several processes, the first locks it
        build_runner(cfg).train()


if __name__ == '__main__':
    run_as_script(main)
