"""What the command-line tools share."""
import argparse
import errno
import os
import os.path as osp
import sys

from mmengine.config import Config, DictAction

from mmquant.apis.safe_loading import read_safely
from mmquant.models.checkpoint import CheckpointError
from mmquant.utils.building import ConfigError
from mmquant.utils.registry_errors import explain, origin

# Errors whose text is written for the user: shown without a traceback.
USER_ERRORS = (ConfigError, CheckpointError, FileNotFoundError, FloatingPointError, ValueError)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CfgOptions(DictAction):
    """mmengine's ``--cfg-options``; what it cannot read is told, not left to end in an error of its parser."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        for word in values:
            try:
                super().__call__(parser, namespace, [word], option_string)
            except (AssertionError, RecursionError, ValueError) as error:
                raise ConfigError(f'--cfg-options: cannot read {word!r}; values are numbers, words and lists as '
                                  'key="[a,b]". Reach into dicts by dotted keys (val_dataloader.dataset.indices=9), or '
                                  'write a config with _base_') from error


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that every tool has."""
    parser.add_argument('--work-dir', help='folder for logs and results; default ./work_dirs/<config name>')
    parser.add_argument('--cfg-options', nargs='+', action=CfgOptions, default={},
                        help='override config values: key=value pairs, dotted keys, lists as key="[a,b]"')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    parser.add_argument('--seed', type=int, help='random seed, instead of the one in the config (default 0)')
    parser.add_argument('--deterministic', action='store_true', help='use deterministic algorithms only')
    # torch.distributed.launch passes either spelling, depending on its version.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def merge_common(cfg: Config, args: argparse.Namespace) -> Config:
    """Write the common arguments into the config."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = osp.join('./work_dirs', osp.splitext(osp.basename(args.config))[0])
    randomness = dict(cfg.get('randomness') or {})
    randomness['seed'] = args.seed if args.seed is not None else randomness.get('seed') or 0
    randomness['deterministic'] = args.deterministic or randomness.get('deterministic', False)
    cfg.randomness = randomness
    return cfg


def run_as_script(main) -> None:
    """Run ``main()``; an error meant for the user becomes one paragraph and exit code 1."""
    read_safely()
    try:
        main()
    except Exception as error:
        if os.environ.get('MMQUANT_TRACEBACK'):
            raise
        kind, text = _told(error)
        sys.exit(f'{kind}: {text}\n(set MMQUANT_TRACEBACK=1 to see where it came from)')


def _told(error: Exception) -> tuple[str, str]:
    """Kind and text of an error, for a user."""
    text = explain(error)
    if text is not None:
        return 'ConfigError', text
    if isinstance(error, USER_ERRORS):
        return type(error).__name__, str(error)
    if isinstance(error, OSError):
        advice = ('; free some disk space or choose another --work-dir. An unfinished run continues with --resume'
                  if error.errno in DISK_FULL else '')
        return type(error).__name__, f'{error}{advice}'
    return type(error).__name__, (f'{" ".join(str(error).split())} ({origin(error)}). If the config is right, this is '
                                  'a defect of mmquant')
