"""What becomes one file each: a model's tensor mode, or the two stages of a detector, and how a runtime answers for it.

Post-processing stays the model's own code: a runtime's outputs are put where the parts returned theirs, so ``predict``,
and with it the ordinary test loop, runs as ever.
"""
from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from mmquant.models import QuantizedModel
from mmquant.models.detection import is_detector, plain_samples

Run = Callable[[Tensor], list[Tensor]]
"""A part in a runtime: input -> outputs in order."""


class Part(nn.Module):
    """One piece of a quantized model with one tensor in and a flat tuple of tensors out.

    Attributes:
        title (str): Ending of the file's name; ``''`` for a whole model.
        input_name (str): Of the ONNX file.
    """
    title, input_name = '', 'images'

    def __init__(self, model: QuantizedModel) -> None:
        super().__init__()
        self.architecture, self._per_call = model.architecture, tuple(model.index.per_call.values())
        self.eval()
        self.structure = None  # of what was returned, known after a run; leaves other than tensors stay as they were

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        for quantizers in self._per_call:
            quantizers.position = 0
        leaves, structure = tree_flatten(self.compute(x))
        self.structure = structure, [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))

    def compute(self, x: Tensor):
        """What the part returns for its input."""
        raise NotImplementedError

    def restored(self, outputs: list[Tensor]):
        """Outputs of a runtime as :meth:`compute` returns them."""
        if self.structure is None:
            raise RuntimeError('run the part once, so that the form of its outputs is known')
        structure, others = self.structure
        tensors = iter(outputs)
        return tree_unflatten([next(tensors) if x is None else x for x in others], structure)

    def example(self, model: QuantizedModel, images: Tensor) -> Tensor:
        """The part's input for some images."""
        return images

    def plug(self, stack: contextlib.ExitStack, run: Run) -> None:
        """Let a runtime answer inside the model until ``stack`` closes."""
        raise NotImplementedError


class Whole(Part):
    """Logits of a classifier, raw outputs of a one-stage detector's heads, or what a plain module returns."""

    def compute(self, x: Tensor):
        if is_detector(self.architecture):
            plain = any(c.__name__ == 'SingleStageDetector' for c in type(self.architecture).__mro__)
            return self.architecture(x, None if plain else plain_samples(x), mode='tensor')
        if hasattr(self.architecture, 'data_preprocessor'):
            return self.architecture(x, mode='tensor')
        return self.architecture(x)

    def plug(self, stack: contextlib.ExitStack, run: Run) -> None:
        """The features are the images themselves, and the head's forward is the runtime."""
        head = getattr(self.architecture, 'bbox_head', None) or getattr(self.architecture, 'head', None)
        if head is None:
            raise ValueError(f'{type(self.architecture).__name__} has neither head nor bbox_head, whose post-processing '
                             'could take the outputs of a runtime; call the exported file yourself')
        instead(stack, self.architecture, 'extract_feat', lambda images, *_, **__: images)
        instead(stack, head, 'forward', lambda images, *_, **__: self.restored(run(images)))


class Features(Part):
    """First stage of a detector: the pyramid, and the outputs of the region proposal network."""
    title = 'features'

    def compute(self, x: Tensor):
        features = self.architecture.extract_feat(x)
        return list(features), self.architecture.rpn_head(features)

    def plug(self, stack: contextlib.ExitStack, run: Run) -> None:
        """``extract_feat`` runs the file, the region proposal network hands out the rest of its outputs."""
        latest = {}

        def extract_feat(images):
            features, latest['proposals'] = self.restored(run(images))
            return tuple(features)

        instead(stack, self.architecture, 'extract_feat', extract_feat)
        instead(stack, self.architecture.rpn_head, 'forward', lambda features: latest['proposals'])


class Regions(Part):
    """Second stage of a detector: the box head on pooled features (R, C, H, W) of any number of regions."""
    title, input_name = 'regions', 'regions'

    def compute(self, x: Tensor):
        return self.architecture.roi_head.bbox_head(x)

    def example(self, model: QuantizedModel, images: Tensor) -> Tensor:
        seen = []
        handle = self.architecture.roi_head.bbox_head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            model.raw(images)
        finally:
            handle.remove()
        return seen[0]

    def plug(self, stack: contextlib.ExitStack, run: Run) -> None:
        instead(stack, self.architecture.roi_head.bbox_head, 'forward', lambda x: self.restored(run(x)))


def instead(stack: contextlib.ExitStack, module: nn.Module, name: str, function: Callable) -> None:
    """Set a function on the instance until ``stack`` closes."""
    before = vars(module).get(name)
    module.__dict__[name] = function
    stack.callback(module.__dict__.__setitem__, name, before) if before is not None else \
        stack.callback(module.__dict__.pop, name)


def padded(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Images (N, C, h, w) with zeros to the right and below, (N, C, H, W) for ``shape`` (C, H, W), as mmdet pads batches.

    ValueError for images that are larger.
    """
    below, right = (want - has for want, has in zip(shape[1:], images.shape[2:]))
    if below < 0 or right < 0 or images.shape[1] != shape[0]:
        raise ValueError(f'the exported file takes images of {tuple(shape)}, got {tuple(images.shape[1:])}: export it '
                         'for the size of the test pipeline, or resize the images there')
    return F.pad(images, (0, right, 0, below)) if below or right else images


@contextlib.contextmanager
def padding(model: QuantizedModel, shape: tuple[int, ...]):
    """Let a detector see all images padded to one size, as it does in a runtime."""
    architecture = model.architecture
    with contextlib.ExitStack() as stack:
        if is_detector(architecture):
            extract = architecture.extract_feat
            instead(stack, architecture, 'extract_feat', lambda images: extract(padded(images, shape)))
        yield


def parts_of(model: QuantizedModel) -> list[Part]:
    """One part, or two of a detector with regions."""
    architecture = model.architecture
    if is_detector(architecture) and getattr(architecture, 'roi_head', None) is not None:
        if getattr(architecture, 'rpn_head', None) is None or isinstance(architecture.roi_head.bbox_head, nn.ModuleList):
            raise ValueError(f'{type(architecture).__name__} has more than two stages, or no region proposal network of '
                             'its own: only detectors of one or two stages can be exported')
        return [Features(model), Regions(model)]
    return [Whole(model)]


@contextlib.contextmanager
def in_runtime(model: QuantizedModel, runs: list[Run], images: Tensor):
    """Let runtimes answer for the parts of a model inside a ``with`` block; its ``predict`` then decodes their outputs.

    ``runs``: one for each of :func:`parts_of`. The parts themselves run once before, on ``images`` of the size to come,
    since only they know the form of their outputs.
    """
    parts = parts_of(model)
    with torch.no_grad():
        for part in parts:
            part(part.example(model, images))
    with contextlib.ExitStack() as stack:
        for part, run in zip(parts, runs, strict=True):
            part.plug(stack, run)
        yield
