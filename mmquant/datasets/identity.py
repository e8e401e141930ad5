"""Which samples a data set holds: shared with another one, the same as elsewhere."""
import hashlib
import os.path as osp
from collections.abc import Iterator

import numpy as np


def overlap(dataset_a, dataset_b) -> int:
    """Count the samples that two data sets share.

    Samples with an image in memory (``img``) are equal if shape, type and content are; others if they lie in the same
    file after resolving links, or are the same member of the same archive. A sample counts once. Data sets have
    ``get_data_info`` (mmengine's), or wrap one that has.

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


def digest_or_none(dataset) -> str | None:
    """:func:`list_digest`; None where samples have no identity."""
    try:
        return list_digest(dataset)
    except ValueError:
        return None


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
