"""Handwritten digits that come with scikit-learn: 1797 grey images of 8x8 pixels, no download, no file of ours."""
from collections.abc import Sequence

import numpy as np
from mmpretrain.datasets import BaseDataset

from mmquant.registry import DATASETS

SPLIT_SIZES = dict(test=500, calibration=256, train=1041)


def split_indices(labels: np.ndarray, sizes: dict, seed: int) -> dict:
    """Cut samples into parts that never overlap and hold each class in the same proportion.

    The samples are shuffled with ``seed``, then ordered by class, and each part takes evenly spaced ones of what the
    parts before it left over. So a class is represented in each part to within one or two samples of its share. Only
    ``numpy.random.RandomState`` is used, whose stream numpy keeps fixed over versions.

    ``labels`` are integers (num_samples,); ``sizes`` the samples of each part, in the order in which the parts choose.
    Returns the sorted indices of each part. ValueError if the sizes do not sum up to the number of samples.
    """
    if sum(sizes.values()) != len(labels):
        raise ValueError(f'The parts {sizes} hold {sum(sizes.values())} samples, but there are {len(labels)}. '
                         'Give sizes that sum up to the number of samples.')
    shuffled = np.random.RandomState(seed).permutation(len(labels))
    rest = shuffled[np.argsort(labels[shuffled], kind='stable')]
    parts = {}
    for name, size in sizes.items():
        steps = np.arange(len(rest) + 1) * size // len(rest)
        chosen = np.diff(steps) > 0
        parts[name] = np.sort(rest[chosen])
        rest = rest[~chosen]
    return parts


@DATASETS.register_module()
class DigitsDataset(BaseDataset):
    """The handwritten digits of scikit-learn (test part of "Optical Recognition of Handwritten Digits", UCI).

    Each sample has ``img``, an array of shape (8, 8, 3), uint8, three equal channels, ink 255 on background 0 (the
    original's 0..16, times 255/16, rounded), and ``gt_label``, 0..9. Pipelines start from ``img``: no loading
    transform. The fixed split is 1041 train, 256 calibration, 500 test samples, the same class proportions in each,
    disjoint, and no two of the 1797 images are equal. The source does not name the writers, so a writer may occur in
    more than one part.

    Args:
        split: ``'train'``, ``'calibration'`` or ``'test'``.
        pipeline: Transforms of mmpretrain, such as ``Resize`` and ``PackInputs``. Default: none.
        indices: Take only the first n samples, or these samples, of the split. Default: all.
        metainfo: Additions to ``METAINFO``. Default: none.
        test_mode: True lets a failing sample raise instead of being replaced by another one. Default: False.
        lazy_init: True leaves loading to the first use. Default: False.

    Raises:
        ValueError: Unknown split.
        ImportError: scikit-learn is missing.

    Source: https://archive.ics.uci.edu/dataset/80, shipped as ``sklearn.datasets.load_digits``.
    """

    METAINFO = dict(classes=('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine'))
    SPLIT_SEED = 0

    def __init__(self, split: str, pipeline: Sequence = (), indices: int | Sequence[int] | None = None,
                 metainfo: dict | None = None, test_mode: bool = False, lazy_init: bool = False):
        if split not in SPLIT_SIZES:
            raise ValueError(f'Unknown split {split!r} of DigitsDataset. Use one of {sorted(SPLIT_SIZES)}.')
        self.split = split
        super().__init__(ann_file='', metainfo=metainfo, indices=indices, pipeline=pipeline, test_mode=test_mode,
                         lazy_init=lazy_init)

    def load_data_list(self) -> list[dict]:
        """Return ``img`` and ``gt_label`` of each sample of the split, in the order of the original."""
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ImportError('DigitsDataset reads the images that scikit-learn ships, and scikit-learn is missing. '
                              'Run "pip install scikit-learn".') from error
        pixels, labels = load_digits(return_X_y=True)  # (1797, 64) floats 0..16, (1797,)
        images = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1).repeat(3, axis=3)
        chosen = split_indices(labels, SPLIT_SIZES, self.SPLIT_SEED)[self.split]
        return [dict(img=images[i], gt_label=int(labels[i])) for i in chosen]

    def extra_repr(self) -> list[str]:
        """Name the split where other data sets name their files."""
        return [f'Split: \t{self.split}']
