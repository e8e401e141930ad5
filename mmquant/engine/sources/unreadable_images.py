"""Calibration images that cannot be read: they stop the run, or are left out and counted."""
from collections.abc import Callable
from dataclasses import dataclass

POLICIES = ('stop', 'skip')


@dataclass(frozen=True)
class Unreadable:
    """Stands for a sample that could not be made."""
    name: str  # file of the image, or its number
    reason: str  # what reading it raised


class ReadableDataset:
    """Another data set, whose samples that cannot be read are :class:`Unreadable` instead of an exception."""

    def __init__(self, dataset) -> None:
        self.dataset = dataset

    def __getattr__(self, name: str):
        if name == 'dataset':  # a copy under construction in another process
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        try:
            return self.dataset[index]
        except Exception as error:  # decoders raise almost anything, assertions included
            reason = ' '.join(str(error).split()) or 'no further information'
            return Unreadable(self._name(index), f'{type(error).__name__}: {reason}')

    def _name(self, index: int) -> str:
        try:
            return str(self.dataset.get_data_info(index)['img_path'])
        except Exception:  # a data set without names, or the very annotation is broken
            return f'number {index}'


class Sieve:
    """Collates what could be read; gives (batch or None, unreadable samples)."""

    def __init__(self, collate: Callable) -> None:
        self.collate = collate

    def __call__(self, samples: list) -> tuple:
        good = [s for s in samples if not isinstance(s, Unreadable)]
        return self.collate(good) if good else None, [s for s in samples if isinstance(s, Unreadable)]


def readable_batches(loader, policy: str, lost: list[Unreadable]):
    """Yield the batches of a loader whose collation is a :class:`Sieve`; unreadable samples go to ``lost``.

    Raises:
        ValueError: With the policy ``'stop'``, for the first unreadable image.
    """
    for batch, unreadable in loader:
        if unreadable and policy == 'stop':
            raise ValueError(f'the calibration image {unreadable[0].name} cannot be read ({unreadable[0].reason}); '
                             'repair or remove it, mend the pipeline of train_cfg.dataloader.dataset, or leave such '
                             'images out with train_cfg.unreadable="skip"')
        lost += unreadable
        if batch is not None:
            yield batch
