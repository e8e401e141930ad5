"""A fixed random part of another data set."""
import copy

import numpy as np
from mmengine.dataset import BaseDataset, force_full_init

from mmquant.registry import DATASETS


@DATASETS.register_module()
class RandomSubset:
    """``num_samples`` samples of a data set, drawn once without replacement.

    An integer ``indices`` of mmengine's data sets takes the *first* samples, which for a data set sorted by class are
    all of one class. This wrapper draws them from everywhere and keeps the order of the drawing, so each batch of an
    unshuffled loader is a random one. The same seed gives the same samples in the same order.

    Args:
        dataset: The data set, or its config.
        num_samples: Number of samples, 1..len(dataset).
        seed: Seed of the drawing. Default: 0.
        lazy_init: True leaves the loading of ``dataset`` to the first use. Default: False.

    Raises:
        ValueError: The data set has fewer samples than ``num_samples``.
    """

    def __init__(self, dataset: BaseDataset | dict, num_samples: int, seed: int = 0, lazy_init: bool = False):
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.num_samples, self.seed, self._fully_initialized = num_samples, seed, False
        if not lazy_init:
            self.full_init()

    @property
    def metainfo(self) -> dict:
        """Meta information (class names) of the wrapped data set."""
        return copy.deepcopy(self.dataset.metainfo)

    def full_init(self) -> None:
        """Load the wrapped data set and draw the samples."""
        if self._fully_initialized:
            return
        self.dataset.full_init()
        total = len(self.dataset)
        if not 1 <= self.num_samples <= total:
            raise ValueError(f'RandomSubset shall draw {self.num_samples} samples, but '
                             f'{type(self.dataset).__name__} has {total}. Set num_samples to 1..{total}.')
        self.indices = np.random.RandomState(self.seed).permutation(total)[:self.num_samples]
        self._fully_initialized = True

    @force_full_init
    def get_data_info(self, idx: int) -> dict:
        """Annotation of the subset's sample ``idx``, before the pipeline."""
        return self.dataset.get_data_info(int(self.indices[idx]))

    @force_full_init
    def __getitem__(self, idx: int) -> dict:
        return self.dataset[int(self.indices[idx])]

    @force_full_init
    def __len__(self) -> int:
        return self.num_samples
