"""Calibration images from whatever a user iterates over: what they are among labels, and what is told of the rest."""
from collections.abc import Iterable, Iterator, Mapping

import torch
from mmengine.logging import MMLogger
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset

from mmquant.algorithms.step import CalibrationContext
from mmquant.engine.sources.source import chunks_of_one_size
from mmquant.utils.building import ConfigError

NAMES = ('inputs', 'images', 'image', 'imgs', 'img', 'pixel_values', 'x')
CHANNELS = (1, 3, 4)  # of single images in a list
AXES = {nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}  # of their inputs


def collect_images(loader: Iterable, model: nn.Module, chunk_size: int) -> list[torch.Tensor]:
    """All images in chunks, each of images of one shape, on the model's device and in its precision.

    Args:
        loader (Iterable): Yields tensors (N, C, H, W), lists of images (C, H, W), or tuples and dicts that hold one
            beside labels; a data set, whose samples are taken one by one; or one tensor, a batch.
        model (nn.Module): The float model.
        chunk_size (int): Images a chunk.

    Raises:
        ConfigError: For anything else, a model without parameters, uint8 images, batches of which it is not clear what
            the images are.
        ValueError: For no images, or NaN or infinite ones.
    """
    first = next(model.parameters(), None)
    if first is None:
        raise ConfigError(f'{type(model).__name__} has no parameters, so there is nothing to quantize')
    batches = []
    for batch in _batches(loader):
        batches += [dict(inputs=x.to(first.device, first.dtype if x.is_floating_point() else x.dtype))
                    for x in _images(batch) if len(x)]
    if not batches:
        raise ValueError('the calibration set is empty: calib_loader yielded nothing, or batches without images')
    chunks, _ = chunks_of_one_size(batches, chunk_size)
    chunks = [x.clone() if x.is_inference() else x for x in chunks]
    if not all(torch.isfinite(chunk).all() for chunk in chunks):
        raise ValueError('the calibration images hold NaN or infinite values')
    if len({x.shape[1:] for x in chunks}) > 1:
        shapes = dict.fromkeys(tuple(x.shape[1:]) for x in chunks)
        MMLogger.get_current_instance().info('calib_loader: images of several shapes, calibrated shape by shape: '
                                             + ', '.join(map(str, shapes)))
    return chunks


def check_images(context: CalibrationContext) -> None:
    """Raise ConfigError, about ``calib_loader``, if the float model does not run on the images."""
    x = context.chunks[0]

    def refuse_single(module, args):  # a convolution takes one image without batch axis too
        if args and isinstance(args[0], torch.Tensor) and args[0].dim() == AXES[type(module)] - 1 \
                and args[0].shape[1:] == x.shape[1:]:
            raise ValueError(f'{type(module).__name__} needs {AXES[type(module)]} axes, the first for images')

    handles = [m.register_forward_pre_hook(refuse_single) for m in context.model.modules() if type(m) in AXES]
    try:
        with torch.no_grad():
            context.model.run(context.sample, context.sample_info)
    except Exception as error:
        raise ConfigError(
            f'calib_loader: the model does not run on what it yields, chunks of {tuple(x.shape)} and {x.dtype} '
            f'({type(error).__name__}: {" ".join(str(error).split())}). Give batches (N, ...), preprocessed as for '
            'training; where rows belong together (the frames of a clip), a chunk_size that is a multiple of a '
            'group') from error
    finally:
        for handle in handles:
            handle.remove()


def _batches(loader) -> Iterable:
    if isinstance(loader, torch.Tensor):
        return [loader]
    if isinstance(loader, Dataset):
        return DataLoader(loader, batch_size=1)
    if isinstance(loader, (str, bytes, Mapping)) or not isinstance(loader, Iterable):
        raise ConfigError('calib_loader must yield batches of image tensors, such as a DataLoader or a list of them, '
                          f'got {loader if loader is None else type(loader).__name__}')
    return loader


def _images(batch) -> list[torch.Tensor]:
    """The images of one batch; several tensors where they differ in size."""
    found = list(_parts(batch))
    if not found:
        leaves = tree_leaves(dict(batch) if isinstance(batch, Mapping) else batch)
        kind = ', '.join(dict.fromkeys(type(x).__name__ for x in leaves)) or 'an empty batch'
        raise ConfigError(f'calib_loader: expected image tensors, or tuples and dicts that hold one, got {kind}; '
                          'convert the images to tensors first')
    named = [images for name, images in found if name in NAMES]
    if not named:
        # beside images (N, C, H, W) lie labels (N,), indices, boxes: whole numbers, or of fewer axes
        rank = max(_rank(images) for _, images in found)
        best = [(name, images) for name, images in found if _rank(images) == rank]
        if len(best) > 1 and isinstance(batch, Mapping) and len({name for name, _ in best}) > 1:
            names = ', '.join(repr(name) for name, _ in best)
            raise ConfigError(f'calib_loader: the images of a batch may be {names}; name them "inputs", or yield the '
                              'images alone')
        named = [best[0][1]]
    if named[0][0].dtype in (torch.uint8, torch.bool):
        raise ConfigError(f'calib_loader yields images of {named[0][0].dtype}, which no model was trained on: convert '
                          'them to float and normalise them as in training')
    return named[0]


def _rank(images: list[torch.Tensor]) -> tuple:
    return images[0].is_floating_point(), images[0].dim(), images[0].dtype == torch.uint8


def _parts(tree, name: str = '') -> Iterator[tuple[str, list[torch.Tensor]]]:
    """Yields (key in the innermost dict, tensors with a batch axis): a tensor, or all images of a list."""
    if isinstance(tree, torch.Tensor):
        yield name, [tree]
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _parts(value, str(key))
    elif isinstance(tree, (list, tuple)):
        if tree and all(isinstance(x, torch.Tensor) and x.dim() == 3 and x.shape[0] in CHANNELS for x in tree):
            yield name, [x[None] for x in tree]
        else:
            for value in tree:
                yield from _parts(value, name)


def leave_inference_mode(model: nn.Module) -> None:
    """Give a model that was built inside ``torch.inference_mode`` parameters and buffers that can be changed."""
    memo: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, x in table.items():
                if x is not None and x.is_inference():
                    new = memo.setdefault(id(x), x.clone())
                    table[name] = memo.setdefault(-id(x), nn.Parameter(new, x.requires_grad)) \
                        if isinstance(x, nn.Parameter) else new
