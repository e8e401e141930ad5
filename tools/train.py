"""Train a float model with a plain mmengine Runner."""
import argparse
from contextlib import nullcontext

from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

import mmquant  # noqa: F401  checks the versions
from mmquant.apis.cli import add_common_arguments, merge_common, run_as_script
from mmquant.apis.config import check_data, load_config
from mmquant.utils.building import ConfigError
from mmquant.utils.files import locked


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Train a float model')
    parser.add_argument('config', help='train config file path')
    add_common_arguments(parser)
    parser.add_argument('--resume', nargs='?', const='auto', metavar='PATH',
                        help='resume from this checkpoint, or without a value from the latest one in the work dir')
    parser.add_argument('--amp', action='store_true', help='train with automatic mixed precision')
    return parser.parse_args()


def check_training(cfg: Config) -> None:
    """Raise ConfigError where there is nothing to train; FileNotFoundError where data are missing."""
    if not cfg.get('train_dataloader') or not cfg.get('train_cfg'):
        raise ConfigError(f'{cfg.filename} has no train_dataloader or no train_cfg: it only evaluates. '
                          'Use tools/test.py with a checkpoint.')
    check_data(cfg, 'train_dataloader', 'val_dataloader')


def merge_args(cfg: Config, args: argparse.Namespace) -> Config:
    """Write the arguments of training into the config."""
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    return cfg


def main() -> None:
    """Build the runner and train."""
    args = parse_args()
    cfg = merge_common(load_config(args.config, args.cfg_options), args)
    check_training(cfg)
    cfg = merge_args(cfg, args)
    with locked(cfg.work_dir) if args.launcher == 'none' else nullcontext():
        runner = Runner.from_cfg(cfg) if 'runner_type' not in cfg else RUNNERS.build(cfg)
        runner.train()


if __name__ == '__main__':
    run_as_script(main)
