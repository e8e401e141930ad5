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
            raise ValueError(f'{type(self.architecture).__name__} has neither head nor bbox_head, whose '
                             'post-processing could take the outputs of a runtime; call the exported file yourself')
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
    """A head of the later stages of a detector, on pooled features (R, C, H, W) of any number of regions.

    Args:
        model (QuantizedModel): Of the detector.
        name (str): Of the head inside ``roi_head``. Default ``'bbox_head'``.
        title (str): Default ``'regions'``.
    """
    input_name = 'regions'

    def __init__(self, model: QuantizedModel, name: str = 'bbox_head', title: str = 'regions') -> None:
        super().__init__(model)
        self.name, self.title = name, title

    @property
    def head(self) -> nn.Module:
        """The module itself."""
        return self.architecture.roi_head.get_submodule(self.name)

    def compute(self, x: Tensor):
        return self.head(x)

    def example(self, model: QuantizedModel, images: Tensor) -> Tensor:
        seen = []
        handle = self.head.register_forward_pre_hook(lambda _, *given: seen.append(given), with_kwargs=True)
        try:
            model.raw(images)
        finally:
            handle.remove()
        args, kwargs = seen[0] if seen else ((), {})
        if len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
            raise ValueError(f'roi_head.{self.name} ({type(self.head).__name__}) '
                             + (f'takes {len(args) + len(kwargs)} inputs' if seen else 'is not called in tensor mode')
                             + '; only heads that take the pooled features alone can be exported')
        return args[0]

    def plug(self, stack: contextlib.ExitStack, run: Run) -> None:
        instead(stack, self.head, 'forward', lambda x: self.restored(run(x)))


def instead(stack: contextlib.ExitStack, module: nn.Module, name: str, function: Callable) -> None:
    """Set a function on the instance until ``stack`` closes."""
    before = vars(module).get(name)
    module.__dict__[name] = function
    stack.callback(module.__dict__.__setitem__, name, before) if before is not None else \
        stack.callback(module.__dict__.pop, name)


def padded(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Images (N, C, h, w) as (N, C, H, W) for ``shape`` (C, H, W), zeros to the right and below, as mmdet pads batches.

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


REGION_HEADS = ('shared_head', 'bbox_head', 'mask_head')


def parts_of(model: QuantizedModel) -> list[Part]:
    """One part, or of a detector with regions: the features, and each head of its later stages.

    Raises:
        ValueError: Layers of a detector with regions that are in none of these, which would stay behind.
    """
    architecture = model.architecture
    roi_head = getattr(architecture, 'roi_head', None) if is_detector(architecture) else None
    if roi_head is None:
        return [Whole(model)]
    if getattr(architecture, 'rpn_head', None) is None:
        raise ValueError(f'{type(architecture).__name__} has no region proposal network of its own: only detectors '
                         'that have one, and detectors of one stage, can be exported')
    heads = []
    for name in REGION_HEADS:
        head = getattr(roi_head, name, None)
        heads += [f'{name}.{i}' for i in range(len(head))] if isinstance(head, nn.ModuleList) else \
            [] if head is None else [name]
    _check_complete(model, heads)
    titles = ['regions'] if heads == ['bbox_head'] else [x.replace('.', '_') for x in heads]
    return [Features(model), *(Regions(model, *x) for x in zip(heads, titles))]


def _check_complete(model: QuantizedModel, heads: list[str]) -> None:
    """All quantized layers lie in one of the parts of a detector with regions."""
    inside = tuple(f'{x}.' for x in ('backbone', 'neck', 'rpn_head', *(f'roi_head.{head}' for head in heads)))
    outside = [n for n in model.quantized_layers() if not n.startswith(inside)]
    if outside:
        raise ValueError(f'{type(model.architecture).__name__} has {len(outside)} layers between or beside its stages, '
                         f'first {outside[0]}: only backbone, neck, rpn_head and {", ".join(REGION_HEADS)} of roi_head '
                         'can be exported')


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
