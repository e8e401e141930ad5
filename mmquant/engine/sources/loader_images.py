"""Calibration images from a data loader."""
from collections.abc import Iterator

from mmengine.logging import MMLogger
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmquant.datasets.identity import list_digest, overlap, without_roots
from mmquant.engine.sources.source import EMPTY, Source
from mmquant.engine.sources.unreadable_images import POLICIES, ReadableDataset, Sieve, Unreadable, readable_batches
from mmquant.models import QuantizedModel
from mmquant.registry import DATASETS, SOURCES
from mmquant.utils.building import ConfigError


@SOURCES.register_module()
class LoaderImages(Source):
    """The images that a data loader gives; ``train_cfg.dataloader=dict(...)`` stands for this source.

    Args:
        dataloader (dict | DataLoader): As mmengine's Runner takes it; labels are used by some objectives only.
        unreadable (str): ``'stop'`` at a calibration image that cannot be read (default), or ``'skip'`` such images.

    Raises:
        ConfigError: For an unknown policy.
        ValueError: For a data set without images.
    """

    def __init__(self, dataloader, unreadable: str = 'stop') -> None:
        if unreadable not in POLICIES:
            raise ConfigError(f'train_cfg.unreadable must be one of {POLICIES}, got {unreadable!r}')
        self.unreadable, self.dataloader, self.dataset_cfg = unreadable, dataloader, None
        if isinstance(dataloader, dict):
            self.dataset_cfg = dataloader.get('dataset')
            self.dataloader = {**dataloader, 'dataset': _readable(self.dataset_cfg)}
        self.dataset = self.dataloader['dataset'] if isinstance(dataloader, dict) else dataloader.dataset

    def batches(self, model: QuantizedModel, seed: int) -> Iterator[dict]:
        """See :meth:`Source.batches`.

        Raises:
            ValueError: If an image cannot be read, or they do not batch.
        """
        lost: list[Unreadable] = []
        try:
            for batch in readable_batches(self._loader(seed), self.unreadable, lost):
                yield model.data_preprocessor(batch, False)
        except ValueError:
            raise
        except Exception as error:
            if 'stack expects each tensor to be equal size' not in str(error):
                raise ValueError(f'the calibration images cannot be loaded ({type(error).__name__}: {error}); check '
                                 'train_cfg.dataloader (sampler, dataset, a pipeline that ends in PackInputs) and '
                                 'data_preprocessor') from error
            raise ValueError('the calibration images have different sizes and do not batch: set '
                             'train_cfg.dataloader.batch_size=1, or let the pipeline resize or pad them to one size '
                             f'({error})') from error
        if lost:
            MMLogger.get_current_instance().warning(
                f'{len(lost)} calibration images cannot be read and are left out; the first: {lost[0].name} '
                f'({lost[0].reason})')

    def _loader(self, seed: int) -> DataLoader:
        if isinstance(self.dataloader, dict):
            self.dataloader = Runner.build_dataloader(self.dataloader, seed=seed)
        if not isinstance(self.dataloader.collate_fn, Sieve):
            self.dataloader.collate_fn = Sieve(self.dataloader.collate_fn)
        return self.dataloader

    def overlap(self, dataset) -> int:
        """Number of different samples of the data set that are in another one too."""
        return overlap(self.dataset, dataset)

    def facts(self) -> dict:
        """Digest of the list of images, None for samples without names; and the config of the data set."""
        try:
            digest = list_digest(self.dataset)
        except ValueError:
            digest = None
        return dict(list_sha256=digest, dataset=without_roots(self.dataset_cfg))


def _readable(dataset):
    """The data set of a config, which tells of images that it cannot read."""
    if isinstance(dataset, dict):
        try:
            dataset = DATASETS.build(dataset)
            if hasattr(dataset, 'full_init'):
                dataset.full_init()
        except ValueError as error:
            if 'need at least one array' in str(error):  # what mmengine says of a data set without samples
                raise ValueError(EMPTY) from error
            raise
    return ReadableDataset(dataset)
