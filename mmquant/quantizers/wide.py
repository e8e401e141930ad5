"""State that a model in half precision keeps in full."""
from __future__ import annotations

import torch
from torch import Tensor, nn


def wide_float(x: Tensor) -> Tensor:
    """A tensor in float32, or float64 if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Wide(nn.Module):
    """Its buffers, and those below it, are never narrower than float32: in half precision, small scales are zero.

    ``model.half()``, ``.bfloat16()`` and ``.to(dtype)`` move it, no more; arithmetic with it is in float32.
    """

    def _apply(self, fn, recurse: bool = True):
        def moved(x: Tensor) -> Tensor:
            found = fn(x)
            narrow = found.is_floating_point() and found.element_size() < 4
            return x.to(found.device, torch.float32) if narrow else found

        return super()._apply(moved, recurse)
