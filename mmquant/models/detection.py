"""What detectors need: data samples with image sizes; proposals that stay, so that outputs compare row by row."""
import contextlib

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

DECODE = 'predict_by_feat'  # mmdet's name for decoding and selecting boxes


def is_detector(model: nn.Module) -> bool:
    """Whether a model is one of mmdet's detectors."""
    return any(c.__name__ == 'BaseDetector' and c.__module__.startswith('mmdet.') for c in type(model).__mro__)


def decoders(model: nn.Module) -> dict[str, nn.Module]:
    """Heads that decode their raw outputs to boxes, by the method ``DECODE``."""
    return {n: m for n, m in model.named_modules() if callable(getattr(type(m), DECODE, None))}


def plain_samples(images: torch.Tensor) -> list:
    """Data samples for images (N, C, H, W) that fill their whole area.

    Each holds one object of the first class, in the middle: CondInst and YOLACT ask for places before they make masks.
    """
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData
    height, width = size = tuple(images.shape[-2:])
    meta = dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size, scale_factor=(1., 1.), img_id=0)
    box = images.new_tensor([[width / 4, height / 4, 3 * width / 4, 3 * height / 4]])
    label = torch.zeros(1, dtype=torch.long, device=images.device)
    return [DetDataSample(metainfo=meta, gt_instances=InstanceData(bboxes=box, labels=label)) for _ in images]


def no_tensors(model: nn.Module, returned) -> str:
    """What to tell about a model whose tensor mode returns no tensor that was computed from the images."""
    kinds = ', '.join(dict.fromkeys(type(x).__name__ for x in tree_leaves(returned))) or 'nothing'
    heads = [f'{n} ({type(m).__name__})' for n, m in model.named_children() if n.endswith('head')]
    return (f'{type(model).__name__} returned no tensor that depends on the images in tensor mode, but {kinds}, so '
            'float and quantized outputs cannot be compared; let forward(inputs, data_samples, mode="tensor") return '
            f'the raw outputs of {" and ".join(heads) or "the last layers"}, before boxes are decoded and selected')


class Decisions:
    """Boxes that a detector selects between its parts: a region proposal network hands them to the second stage.

    The selection is discrete, so a quantized net selects other boxes in another order, and the outputs of the second
    stage cannot be compared row by row. Inside :meth:`pinned` the first run of a batch, which should be the float
    model's, keeps what it selected; later runs of that batch get the same.
    """

    def __init__(self) -> None:
        self.settled = False  # whether the float model has run on every batch
        self._kept: dict = {}
        self._heads: dict[str, nn.Module] | None = None

    @property
    def made(self) -> bool:
        """Whether a model selected anything; its batches are then run whole."""
        return bool(self._kept)

    @contextlib.contextmanager
    def pinned(self, model: nn.Module, batch: int):
        """Pin the selections while ``model`` runs batch number ``batch`` in tensor mode."""
        if self._heads is None:
            self._heads = decoders(model)
        try:
            for name, head in self._heads.items():
                head.__dict__[DECODE] = self._answer(head, (batch, name))
            yield
        finally:
            for head in self._heads.values():
                head.__dict__.pop(DECODE, None)

    def _answer(self, head: nn.Module, key):
        def decode(*args, **kwargs):
            if key not in self._kept:
                self._kept[key] = getattr(type(head), DECODE)(head, *args, **kwargs)
            kept = self._kept[key]
            return [x.clone() for x in kept] if isinstance(kept, list) else kept
        return decode
