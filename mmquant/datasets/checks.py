"""Checks on data set configs and data sets: do the files exist, do two sets share samples."""
from __future__ import annotations

import hashlib
import os
import os.path as osp
from typing import Iterator, Tuple

import numpy as np

EMBEDDED_CONFIG = 'configs/brecq/resnet18_w2a4_digits.py'
REAL_DATA_VARIABLE = 'MMQUANT_REAL_DATA'
# Data sets of mmpretrain whose ``split`` is a folder below ``data_root``.
SPLIT_FOLDER_TYPES = ('ImageNet', 'ImageNet21k')
# Data sets of mmpretrain that fetch missing files themselves, unless told not to.
DOWNLOADING_TYPES = ('CIFAR10', 'CIFAR100', 'MNIST', 'FashionMNIST')
# Data sets of ours that write their files on first use.
SELF_MADE_TYPES = ('DigitsDetDataset',)


def check_dataset_cfg(dataset_cfg: dict) -> None:
    """Raise if a file or folder that a data set config names does not exist. The data set is not built.

    Looked at are ``data_root``, ``ann_file``, ``data_prefix``, ``tar_file`` and, for mmpretrain's ImageNet, the folder
    of ``split``; wrappers are followed through ``dataset`` and ``datasets``. Remote addresses (``s3://...``) and data
    sets that download or make their files themselves are passed over.

    Args:
        dataset_cfg: Config of a data set, the ``dataset`` entry of a data loader config.

    Raises:
        FileNotFoundError: Something is missing; the text says what, and what to do.
    """
    inner = dataset_cfg.get('datasets') or [dataset_cfg.get('dataset')]
    inner = [cfg for cfg in inner if isinstance(cfg, dict)]
    for cfg in inner:
        check_dataset_cfg(cfg)
    if inner or _brings_its_files(dataset_cfg):
        return
    for key, path in _named_paths(dataset_cfg):
        if '://' not in path and not osp.exists(path):
            raise FileNotFoundError(_missing_text(str(dataset_cfg.get('type')), key, path))


def check_evaluator_cfg(evaluator_cfg, dataset_cfg: dict) -> None:
    """Raise if the ground-truth file (``ann_file``) of a metric does not exist.

    Args:
        evaluator_cfg: Config of an evaluator: a metric, or a list of metrics.
        dataset_cfg: Config of the data set it evaluates; files below the ``data_root`` of one that makes its files on
            first use are passed over.

    Raises:
        FileNotFoundError: The file is missing; the text says what to do.
    """
    metrics = evaluator_cfg if isinstance(evaluator_cfg, (list, tuple)) else [evaluator_cfg]
    for metric in metrics:
        path = metric.get('ann_file') if isinstance(metric, dict) else None
        if path and '://' not in path and not osp.exists(path) and not _will_be_made(path, dataset_cfg):
            raise FileNotFoundError(_missing_text(str(metric.get('type')), 'ann_file', path, 'metric'))


def nothing_to_find(metrics: dict) -> str | None:
    """What to tell where COCO's metrics mean nothing, since no evaluation image shows an object; None if they do."""
    found = {key: value for key, value in metrics.items() if '_mAP' in key}
    if not found or any(value != -1 for value in found.values()):
        return None
    return (f'{", ".join(found)} are -1: the evaluation images show no object of any class, so there is nothing to '
            'find; check the annotations (ann_file), and the class names (metainfo) of val_dataloader and '
            'test_dataloader')


def overlap(dataset_a, dataset_b) -> int:
    """Count the samples that two data sets share.

    Samples with an image in memory (``img``) are equal if shape, type and content are; others if they lie in the same
    file after resolving links, or are the same member of the same archive.

    Args:
        dataset_a: A data set with ``get_data_info`` (mmengine's, or a wrapper), fully initialised or lazy.
        dataset_b: The other data set.

    Returns:
        int: Number of different samples that occur in both.

    Raises:
        ValueError: A sample has neither ``img`` nor ``img_path``.
    """
    return len(set(_identities(dataset_a)) & set(_identities(dataset_b)))


def list_digest(dataset) -> str:
    """SHA-256 over the samples of a data set in their order; the same wherever the files lie.

    A sample counts by its content where the image is in memory, else by its file name and the folder it lies in.

    Raises:
        ValueError: As :func:`overlap`.
    """
    total = hashlib.sha256()
    for kind, *rest in _identities(dataset):
        names = rest if kind == 'content' else ['/'.join(path.split('/')[-2:]) for path in rest]
        total.update(repr((kind, *names)).encode())
    return total.hexdigest()


def without_roots(dataset_cfg):
    """A data set config as plain values, without ``data_root``: what is read, not where it lies."""
    if isinstance(dataset_cfg, dict):
        return {k: without_roots(v) for k, v in dataset_cfg.items() if k != 'data_root'}
    if isinstance(dataset_cfg, (list, tuple)):
        return [without_roots(x) for x in dataset_cfg]
    return dataset_cfg if isinstance(dataset_cfg, (str, int, float, bool, type(None))) else str(dataset_cfg)


def _identities(dataset) -> Iterator[tuple]:
    while not hasattr(dataset, 'get_data_info') and hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    if not hasattr(dataset, 'get_data_info'):
        raise ValueError(f'{type(dataset).__name__} has no get_data_info(index), so its samples cannot be told apart.')
    for index in range(len(dataset)):
        yield _identity(dataset.get_data_info(index), dataset)


def _identity(info: dict, dataset) -> tuple:
    img, path = info.get('img'), info.get('img_path')
    if isinstance(img, np.ndarray):
        return 'content', img.shape, str(img.dtype), hashlib.sha256(np.ascontiguousarray(img).data).hexdigest()
    if 'tar_path' in info:
        return 'member', osp.realpath(info['tar_path']), path
    if path is not None:
        return 'file', path if '://' in path else osp.realpath(path)
    raise ValueError(f'A sample of {type(dataset).__name__} has the keys {sorted(info)}, but neither "img" nor '
                     '"img_path", so it cannot be compared with others.')


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


def _named_paths(cfg: dict) -> Iterator[Tuple[str, str]]:
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
