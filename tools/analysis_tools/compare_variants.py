"""Quantize and evaluate variants of a config (an ablation): a table, and with --publish the figures beside its records.

Figures that are there already are not measured again. The checkpoint of a variant without changes lies in
<work dir>/<name>_seed<seed> and can be published by tools/test.py --update-results.
"""
import argparse
import copy
import os.path as osp
import sys

from mmengine.registry import init_default_scope
from mmengine.runner import Runner

import mmquant  # noqa: F401  checks the versions
from mmquant.algorithms.step_list import ordered_steps
from mmquant.apis.cli import add_common_arguments, merge_common, run_as_script
from mmquant.apis.config import build_runner, calibration_config, check_data, load_config
from mmquant.utils.building import ConfigError, check_keys
from mmquant.utils.tables import render

sys.path.append(osp.dirname(osp.dirname(osp.abspath(__file__))))  # for model_zoo, in tools
from model_zoo.results import repository_path, results_folder, write_json
from model_zoo.tables import data_name
from model_zoo.variants import FILE, apply_variant, measurement, read_variants


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='quantization config')
    parser.add_argument('variants', help='config with variants, such as configs/_base_/variants/repapq.py')
    add_common_arguments(parser)
    parser.add_argument('--seeds', type=int, nargs='+', help='several seeds, instead of --seed')
    parser.add_argument('--only', nargs='+', metavar='NAME', help='names of some variants; default all')
    parser.add_argument('--publish', action='store_true', help='write into records/, beside the records of the config')
    return parser.parse_args()


def run_once(cfg, work_dir: str, unchanged: bool) -> dict:
    """Quantize; metrics of the result. With the baselines that ``tools/test.py`` publishes if nothing was changed."""
    stages = ['float', *({'nearest'} & {*ordered_steps(cfg.train_cfg.steps)})] if unchanged else []
    cfg.custom_hooks = [dict(type='mmquant.EvaluationHook', stages=stages)]
    cfg.work_dir, cfg.experiment_name = work_dir, osp.basename(work_dir)
    runner = build_runner(cfg)
    runner.train()
    return runner.train_loop.stages[-1]['metrics']


def main() -> None:
    """Measure what is missing, write after each run, print the table."""
    args = parse_args()
    cfg = calibration_config(merge_common(load_config(args.config, args.cfg_options), args))
    variants = load_config(args.variants).get('variants')
    if not isinstance(variants, dict) or not variants:
        raise ConfigError(f'{args.variants} has no variants; see tools/model_zoo/variants.py')
    check_keys(args.only or (), variants, '--only')
    if args.publish and args.cfg_options:
        raise ConfigError('--publish: leave out --cfg-options, so that the config as it stands gives the figures')
    check_data(cfg, 'train_dataloader', 'val_dataloader')
    folder = results_folder(args.config) if args.publish else cfg.work_dir
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    images = len(Runner.build_dataloader(copy.deepcopy(cfg.val_dataloader)).dataset)
    data = dict(name=data_name(args.config), images=images)
    known = read_variants(folder)
    for name in args.only or variants:
        changed = apply_variant(cfg, variants[name])
        known = measurement(known, name, variants[name], repository_path(args.variants), data)
        seeds = known['variants'][name]['seeds']
        for seed in args.seeds or [cfg.randomness.seed]:
            if str(seed) in seeds:
                continue
            changed.randomness.seed = seed
            work_dir = osp.join(cfg.work_dir, f'{"".join(c if c.isalnum() else "-" for c in name)}_seed{seed}')
            seeds[str(seed)] = run_once(copy.deepcopy(changed), work_dir, not variants[name])
            write_json(osp.join(folder, FILE), known)
    print(table(known))


def table(known: dict) -> str:
    """All seeds of all variants, first metric."""
    rows = [(name, seed, *list(metrics.values())[:2]) for name, row in known['variants'].items()
            for seed, metrics in row['seeds'].items()]
    keys = list(next(iter(next(iter(known['variants'].values()))['seeds'].values())))[:2]
    return render('Variants', ('variant', 'seed', *keys), rows)


if __name__ == '__main__':
    run_as_script(main)
