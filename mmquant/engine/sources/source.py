"""Where calibration images come from: the contract of all sources, and what is checked of each."""
from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch

from mmquant.models import QuantizedModel
from mmquant.utils.distributed import gather_list

EMPTY = 'the calibration set is empty; check train_cfg.dataloader.dataset (or train_cfg.source)'


class Source(ABC):
    """Gives the calibration images, once, before any step has changed the model.

    Attributes:
        dataset: The data set they are from, None where there is none.
    """
    dataset = None

    @abstractmethod
    def batches(self, model: QuantizedModel, seed: int) -> Iterable[dict]:
        """Preprocessed batches: ``inputs`` (N, C, H, W) on the model's device and maybe ``data_samples``, one an image.

        Of several processes each gives images of its own, as many and of the same sizes as the others.

        Args:
            model (QuantizedModel): The float model: nothing is folded or merged yet.
            seed (int): Of the run. The same seed must give the same images, or a run cannot be resumed.
        """

    def overlap(self, dataset) -> int:
        """Number of its images that are in another data set too. Default 0: they are in none.

        Raises:
            ValueError: If that cannot be told.
        """
        return 0

    def facts(self) -> dict:
        """Plain values for results: which images they are (``list_sha256``, a digest or None) and of which ``dataset``.

        Default: nothing is known.
        """
        return dict(list_sha256=None, dataset=None)

    @torch.no_grad()
    def collect(self, model: QuantizedModel, seed: int, chunk_size: int
                ) -> tuple[list[torch.Tensor], list[list] | None]:
        """All images in chunks on the model's device, and the data samples of each chunk.

        Images of different sizes go into different chunks.

        Raises:
            ValueError: If there are none, one holds NaN or infinite values, or processes hold different numbers or
                sizes.
        """
        batches = list(self.batches(model, seed))
        if not batches:
            raise ValueError(EMPTY)
        for i, batch in enumerate(batches):
            if not torch.isfinite(batch['inputs']).all():
                raise ValueError(f'calibration batch {i} holds NaN or infinite pixels after preprocessing; check the '
                                 'images and data_preprocessor (a std of 0?)')
        chunks, samples = chunks_of_one_size(batches, chunk_size)
        check_shares(chunks)
        return chunks, samples


def chunks_of_one_size(batches: list[dict], size: int) -> tuple[list[torch.Tensor], list[list] | None]:
    """Join preprocessed batches to chunks of up to ``size`` images, each of images of one height and width.

    Args:
        batches (list[dict]): As of :meth:`Source.batches`; images may have any shape.
        size (int): Images a chunk.

    Returns:
        tuple: The chunks, shapes in the order in which they first occur, and the data samples of each chunk, or None
        where some are missing.
    """
    groups: dict[tuple, list[dict]] = {}
    for batch in batches:
        groups.setdefault(tuple(batch['inputs'].shape[1:]), []).append(batch)
    chunks, samples, complete = [], [], True
    for group in groups.values():
        images = torch.cat([b['inputs'] for b in group])
        if images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        info = [x for b in group for x in b.get('data_samples') or ()]
        complete &= len(info) == len(images)
        chunks += images.split(size)
        samples += [info[i:i + size] for i in range(0, len(images), size)]
    return chunks, samples if complete else None


def check_shares(chunks: list[torch.Tensor]) -> None:
    """Raise ValueError unless every process holds as many images of the same sizes; gathering would wait for ever."""
    held = gather_list([[tuple(chunk.shape) for chunk in chunks]])
    if all(shapes == held[0] for shapes in held):
        return
    told = '; '.join(f'process {rank}: ' + ', '.join(f'{n} of {"x".join(map(str, shape))}' for n, *shape in shapes)
                     for rank, shapes in enumerate(held))
    raise ValueError(f'the processes hold different numbers or sizes of calibration images ({told}); resize or pad '
                     'them to one size, repair unreadable ones, or start one process')
