"""Whether the files that a data set config names are there, before anything is built."""
import os
import os.path as osp
from collections.abc import Iterator

EMBEDDED_CONFIG = 'configs/brecq/resnet18_w2a4_digits.py'
REAL_DATA_VARIABLE = 'MMQUANT_REAL_DATA'
RUNS_CODE = ('.pkl', '.pickle', '.yml', '.yaml')
# Data sets of mmpretrain whose ``split`` is a folder below ``data_root``.
SPLIT_FOLDER_TYPES = ('ImageNet', 'ImageNet21k')
# Data sets of mmpretrain that fetch missing files themselves, unless told not to.
DOWNLOADING_TYPES = ('CIFAR10', 'CIFAR100', 'MNIST', 'FashionMNIST')
# Data sets of ours that write their files on first use.
SELF_MADE_TYPES = ('DigitsDetDataset',)


def check_dataset_cfg(dataset_cfg: dict) -> None:
    """Raise FileNotFoundError if a file or folder that a data set config names does not exist; builds nothing.

    A pickled file is a ValueError: mmengine would run the code in it.

    Looked at are ``data_root``, ``ann_file``, ``data_prefix``, ``tar_file`` and, for mmpretrain's ImageNet, the folder
    of ``split``; wrappers are followed through ``dataset`` and ``datasets``. Remote addresses (``s3://...``) and data
    sets that download or make their files themselves are passed over.
    """
    _check_no_code(dataset_cfg)
    inner = [cfg for cfg in dataset_cfg.get('datasets') or [dataset_cfg.get('dataset')] if isinstance(cfg, dict)]
    for cfg in inner:
        check_dataset_cfg(cfg)
    if inner or _brings_its_files(dataset_cfg):
        return
    for key, path in _named_paths(dataset_cfg):
        if '://' not in path and not osp.exists(path):
            raise FileNotFoundError(_missing_text(str(dataset_cfg.get('type')), key, path))


def check_evaluator_cfg(evaluator_cfg, dataset_cfg: dict) -> None:
    """Raise FileNotFoundError if the ground-truth file (``ann_file``) of a metric, or of one of a list, does not exist.

    Files below the ``data_root`` of a data set that makes them on first use are passed over.
    """
    metrics = evaluator_cfg if isinstance(evaluator_cfg, (list, tuple)) else [evaluator_cfg]
    for metric in metrics:
        path = metric.get('ann_file') if isinstance(metric, dict) else None
        _check_no_code(dict(ann_file=path))
        if path and '://' not in path and not osp.exists(path) and not _will_be_made(path, dataset_cfg):
            raise FileNotFoundError(_missing_text(str(metric.get('type')), 'ann_file', path, 'metric'))


def _check_no_code(cfg: dict) -> None:
    """Raise ValueError for a file that mmengine would unpickle, or read by a loader of YAML that builds any object."""
    for key, path in cfg.items():
        if isinstance(path, (str, os.PathLike)) and str(path).lower().endswith(RUNS_CODE):
            raise ValueError(f'{key}={path} of the {cfg.get("type", "metric")}: reading such a file can run code; '
                             'convert it to JSON (where that may happen: mmengine.dump(mmengine.load("a.pkl"), '
                             '"a.json")) and name that')


def _brings_its_files(cfg: dict) -> bool:
    name = _type_name(cfg)
    return name in SELF_MADE_TYPES or (name in DOWNLOADING_TYPES and cfg.get('download', True))


def _will_be_made(path: str, dataset_cfg: dict) -> bool:
    root = osp.abspath(osp.expanduser(dataset_cfg.get('data_root') or ''))
    return _brings_its_files(dataset_cfg) and osp.abspath(path).startswith(osp.join(root, ''))


def _type_name(cfg: dict) -> str:
    name = cfg.get('type', '')
    if not isinstance(name, (str, type)):
        raise ValueError(f'the type of a data set must be a name, got {name!r} in {dict(cfg)}')
    return name.rsplit('.', 1)[-1] if isinstance(name, str) else name.__name__


def _named_paths(cfg: dict) -> Iterator[tuple[str, str]]:
    root = osp.expanduser(cfg.get('data_root') or '')
    if root:
        yield 'data_root', root
    for key in ('tar_file', 'ann_file'):
        if cfg.get(key):
            yield key, osp.join(root, osp.expanduser(cfg[key]))
    prefixes = cfg.get('data_prefix') or {}
    if not isinstance(prefixes, dict):
        prefixes = dict(img_path=prefixes)
    if not prefixes and cfg.get('split') and _type_name(cfg) in SPLIT_FOLDER_TYPES:
        yield 'split', osp.join(root, cfg['split'])
    for prefix in prefixes.values():
        if prefix:
            yield 'data_prefix', osp.join(root, osp.expanduser(prefix))


def _missing_text(type_name: str, key: str, path: str, what: str = 'data set') -> str:
    text = (f'The {what} {type_name} needs {path} ({key}), which does not exist (seen from {os.getcwd()}). '
            f'Put the data there, or set {key} in the config or with --cfg-options.')
    if not os.environ.get(REAL_DATA_VARIABLE):
        text += (f' Configs for the small real sets read their folder from the environment variable '
                 f'{REAL_DATA_VARIABLE}, which is not set.')
    return text + f' To try mmquant without any data of your own, use {EMBEDDED_CONFIG}: its images are embedded.'
