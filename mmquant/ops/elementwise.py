"""What chains of elementwise operations are made of, by the fastest way where the tensors lie.

Ten operations over a large tensor cost ten trips to memory; done piece by piece, in a CPU core's cache, they cost one.
"""
from collections.abc import Iterator, Sequence
from itertools import repeat

import torch
from torch import Tensor

BLOCK_ELEMENTS = 2**15


def pieces(full: Sequence[Tensor | None], small: Sequence[Tensor]) -> Iterator[tuple]:
    """Matching pieces of ``full``, tensors of one shape (None stays None), then of ``small``, broadcastable to them.

    Those of ``full`` are views to write to. Off the CPU, and for small tensors, the one piece is everything.
    """
    first = full[0]
    if first.device.type != 'cpu' or first.numel() <= BLOCK_ELEMENTS or first.dim() == 0:
        return iter([(*full, *small)])
    if one_order(*(t for t in full if t is not None)) and all(t.numel() == 1 for t in small):
        flat = (repeat(None) if t is None else t.as_strided((t.numel(), ), (1, )).split(BLOCK_ELEMENTS) for t in full)
        return zip(*flat, *(repeat(t.reshape(())) for t in small))
    rows = max(1, BLOCK_ELEMENTS * first.shape[0] // first.numel())
    return zip(*(repeat(None) if t is None else t.split(rows) for t in full),
               *(t.split(rows) if t.dim() == first.dim() and t.shape[0] > 1 else repeat(t) for t in small))


def one_order(*tensors: Tensor) -> bool:
    """Whether tensors of one shape are dense and lie in the same order of memory."""
    first = tensors[0]
    dense = first.is_contiguous() or (first.dim() == 4 and first.is_contiguous(memory_format=torch.channels_last))
    return dense and all(t.stride() == first.stride() for t in tensors)


def like(x: Tensor, model: Tensor) -> Tensor:
    """``x`` in the order of memory of ``model``: itself if it lies so, else a copy in the data type of ``model``."""
    return x if x.stride() == model.stride() else torch.empty_like(model).copy_(x)


def clamp(x: Tensor, low: Tensor, high: Tensor, out: Tensor | None = None) -> Tensor:
    """``min(max(x, low), high)`` without gradient, into ``out`` (may be ``x``) if given.

    ``torch.clamp`` with tensor bounds is not vectorised on a CPU: scalar bounds are three times faster there, as are
    two binary operations. On other devices one launch counts more, and reading a scalar would wait for the device.
    """
    if x.device.type != 'cpu':
        return torch.clamp(x, low, high, out=out)
    if low.numel() == 1 and high.numel() == 1:
        return torch.clamp(x, low.item(), high.item(), out=out)
    clamped = torch.maximum(x, low, out=out)
    return torch.minimum(clamped, high, out=clamped)


def power_(x: Tensor, exponent: float | Tensor) -> Tensor:
    """``x ** exponent`` in place, for ``x >= 0``, without gradient; returns ``x``.

    On a CPU the vectorised ``exp(exponent * log(x))`` is four times faster than ``pow`` and good to about 1e-6 relative
    (0 and 1 stay exact). The exponent is >= 0; a scalar tensor where none may look at it (captured CUDA graphs).
    """
    if not isinstance(exponent, Tensor) and exponent in (1, 2):
        return x if exponent == 1 else x.square_()
    if isinstance(exponent, Tensor) or x.device.type != 'cpu' or exponent == 0:
        return x.pow_(exponent)
    return x.log_().mul_(exponent).exp_()
