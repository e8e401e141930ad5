"""Walk through large tensors in pieces that stay in a CPU core's cache.

A chain of ten elementwise operations over a large tensor costs ten trips to memory; done block by block it costs one.
"""
from collections.abc import Iterator, Sequence
from itertools import repeat

import torch
from torch import Tensor

BLOCK_ELEMENTS = 2**15


def pieces(full: Sequence[Tensor | None], small: Sequence[Tensor]) -> Iterator[tuple]:
    """Matching pieces of tensors that take part in elementwise operations.

    On devices other than a CPU, and for small tensors, the one piece is everything.

    Args:
        full: Tensors of one shape, whose pieces come first; these are views to write to. None stays None.
        small: Tensors broadcastable against them, such as scales.
    """
    first = full[0]
    if first.device.type != 'cpu' or first.numel() <= BLOCK_ELEMENTS or first.dim() == 0:
        return iter([(*full, *small)])
    flat = [None if t is None else _flat(t) for t in full]
    one_order = all(t is None or t.stride() == first.stride() for t in full)
    if one_order and flat[0] is not None and all(t.numel() == 1 for t in small):
        return zip(*(repeat(None) if t is None else t.split(BLOCK_ELEMENTS) for t in flat),
                   *(repeat(t.reshape(())) for t in small))
    rows = max(1, BLOCK_ELEMENTS * first.shape[0] // first.numel())
    return zip(*(repeat(None) if t is None else t.split(rows) for t in full),
               *(t.split(rows) if t.dim() == first.dim() and t.shape[0] > 1 else repeat(t) for t in small))


def _flat(x: Tensor) -> Tensor | None:
    """View of ``x`` in the order of its memory, shape (numel,), or None if it is not dense."""
    if x.is_contiguous():
        return x.view(-1)
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).view(-1)
    return None
