"""Train a float model with a plain mmengine Runner."""
import argparse
import os
import os.path as osp

from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

import mmquant  # noqa: F401  checks the versions
from mmquant.datasets import check_dataset_cfg


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Train a float model')
    parser.add_argument('config', help='train config file path')
    parser.add_argument('--work-dir', help='folder for logs and checkpoints')
    parser.add_argument(
        '--resume', nargs='?', const='auto',
        help='resume from this checkpoint, or without a value from the latest one in the work dir')
    parser.add_argument('--amp', action='store_true', help='train with automatic mixed precision')
    parser.add_argument('--seed', type=int, help='random seed, instead of the one in the config')
    parser.add_argument('--deterministic', action='store_true', help='use deterministic algorithms only')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction,
        help='override config values, xxx=yyy; lists as key="[a,b]" or key=a,b, nested ones as key="[(a,b),(c,d)]"')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    # torch.distributed.launch passes either spelling, depending on its version.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def merge_args(cfg: Config, args: argparse.Namespace) -> Config:
    """Write the command line into the config."""
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = osp.join('./work_dirs', osp.splitext(osp.basename(args.config))[0])
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    if args.seed is not None or args.deterministic:
        randomness = cfg.setdefault('randomness', dict())
        randomness['seed'] = randomness.get('seed') if args.seed is None else args.seed
        randomness['deterministic'] = args.deterministic or randomness.get('deterministic', False)
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    return cfg


def main() -> None:
    """Build the runner and train."""
    args = parse_args()
    cfg = merge_args(Config.fromfile(args.config), args)
    if not cfg.get('train_dataloader') or not cfg.get('train_cfg'):
        raise SystemExit(f'{args.config} has no train_dataloader or no train_cfg: it only evaluates. '
                         'Use tools/test.py with a checkpoint.')
    for name in ('train_dataloader', 'val_dataloader'):
        if cfg.get(name):
            check_dataset_cfg(cfg[name]['dataset'])
    runner = Runner.from_cfg(cfg) if 'runner_type' not in cfg else RUNNERS.build(cfg)
    runner.train()


if __name__ == '__main__':
    main()
