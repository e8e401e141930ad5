"""A layer as the matrix product it computes: rows of its input times its weight as a matrix.

    layer(x) - bias == rows(x) @ matrix(weight).T      for each group of channels, rows = places of the output

The rows are caught in the layer's own ``forward``, where it calls ``F.conv*d`` or ``F.linear``: behind its input
quantizer, adaptive or reflected padding and whatever else its class does.
"""
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mmquant.models.dataflow import wrapped_forwards
from mmquant.models.layers import TRANSPOSED_TYPES, num_outputs

PIECE = 2**23  # elements of unfolded input that are in memory at once


def _convolution(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> tuple[Tensor, Tensor]:
    n = weight.dim() - 2
    stride, dilation = _each(stride, n), _each(dilation, n)
    reach = [d * (k - 1) for k, d in zip(weight.shape[2:], dilation)]
    if padding == 'same':
        sides = [(r // 2, r - r // 2) for r in reach]
    else:
        sides = [(p, p) for p in _each(0 if padding == 'valid' else padding, n)]
    return _windows(input, reach, sides, stride, dilation, groups), weight


def _transposed(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    """As a plain convolution, with the kernel reversed, of the input with zeros between its elements."""
    n = weight.dim() - 2
    x = input if input.dim() == n + 2 else input[None]
    stride, padding, dilation = _each(stride, n), _each(padding, n), _each(dilation, n)
    stuffed = x.new_zeros(*x.shape[:2], *((size - 1) * s + 1 for size, s in zip(x.shape[2:], stride)))
    stuffed[(..., *(slice(None, None, s) for s in stride))] = x
    reach = [d * (k - 1) for k, d in zip(weight.shape[2:], dilation)]
    sides = [(r - p, r - p + o) for r, p, o in zip(reach, padding, _each(output_padding, n))]
    windows = _windows(stuffed, reach, sides, [1] * n, dilation, groups)
    return windows.flip(list(range(-n, 0))), weight


def _each(value, n: int) -> tuple[int, ...]:
    values = (value, ) if isinstance(value, int) else tuple(value)
    return values * n if len(values) == 1 else values


def _windows(x: Tensor, reach, sides, stride, dilation, groups: int) -> Tensor:
    """A view (images, groups, channels, *places, *kernel) of what each place of the output reads."""
    n = len(reach)
    x = x if x.dim() == n + 2 else x[None]
    if any(any(pair) for pair in sides):
        x = F.pad(x, [side for pair in reversed(sides) for side in pair])
    for axis in range(n):
        x = x.unfold(2 + axis, reach[axis] + 1, stride[axis])
    x = x[(..., *(slice(None, None, d) for d in dilation))]
    return x.unflatten(1, (groups, -1))


# What a function reads, by the names of its arguments: windows and weight
READ = {F.linear: lambda input, weight, bias=None: (input.reshape(-1, 1, input.shape[-1]), weight),
        F.conv1d: _convolution, F.conv2d: _convolution, F.conv3d: _convolution,
        F.conv_transpose1d: _transposed, F.conv_transpose2d: _transposed, F.conv_transpose3d: _transposed}


class _Catch(TorchFunctionMode):
    """Tells ``see`` the windows of every product with a weight of the given shape."""

    def __init__(self, shape: tuple[int, ...], see) -> None:
        super().__init__()
        self.shape, self.see = shape, see

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in READ:
            with torch._C.DisableTorchFunction():
                windows, weight = READ[func](*args, **kwargs)
            if tuple(weight.shape) == self.shape:
                self.see(windows)
        return func(*args, **kwargs)


class LayerMatrix:
    """Views of a convolution, transposed convolution or linear layer, quantized or not.

    With more than ``max_columns`` (default: any number) a matrix falls into blocks of columns, as if the layer had more
    groups: what their products have in common is then lost to solvers. ``groups`` is g below: groups of channels times
    blocks; ``columns`` is C: input channels of a group times places of the kernel, kernel last, of one block.
    """

    def __init__(self, layer: nn.Module, max_columns: int | None = None) -> None:
        self.layer, self.shape = layer, tuple(layer._parameters['weight'].shape)
        self._transposed = isinstance(layer, TRANSPOSED_TYPES)
        self._channel_groups = getattr(layer, 'groups', 1)
        whole = prod(self.shape) // num_outputs(layer)
        self.blocks = next(b for b in range(1, whole + 1) if whole % b == 0 and whole // b <= (max_columns or whole))
        self.groups, self.columns = self._channel_groups * self.blocks, whole // self.blocks

    def matrix(self, weight: Tensor) -> Tensor:
        """A tensor of the weight's shape as (g, R, C), R output channels of a group."""
        if self._transposed:  # (C_in, C_out / groups, ...)
            weight = weight.unflatten(0, (self._channel_groups, -1)).transpose(1, 2)
        return weight.reshape(self._channel_groups, -1, self.blocks, self.columns).transpose(1, 2).flatten(0, 1)

    def tensor(self, matrix: Tensor) -> Tensor:
        """The inverse of :meth:`matrix`."""
        matrix = matrix.unflatten(0, (self._channel_groups, self.blocks)).transpose(1, 2).flatten(2)
        if self._transposed:
            matrix = matrix.unflatten(2, (self.shape[0] // self._channel_groups, -1)).transpose(1, 2)
        return matrix.reshape(self.shape)

    def scaled(self, weight: Tensor, factor: Tensor) -> Tensor:
        """A weight whose output channels are multiplied by ``factor`` (C_out,)."""
        rows = self.matrix(weight)
        return self.tensor(rows * factor.view(self._channel_groups, -1, 1).repeat_interleave(self.blocks, 0))

    def caught(self, see):
        """``see(windows)`` for each product that the layer computes inside a ``with`` block; see :meth:`pieces`."""
        def wrap(name, module, forward):
            def watched(*args, **kwargs):
                with _Catch(self.shape, see):
                    return forward(*args, **kwargs)
            return watched

        return wrapped_forwards(self.layer, wrap, ('', ))

    def pieces(self, windows: Tensor, limit: int = PIECE):
        """Rows (g, m, C) of what :meth:`caught` saw, in pieces of at most about ``limit`` elements."""
        places = (windows.dim() - 3) // 2
        for images in windows.split(max(1, limit // max(1, prod(windows.shape[1:])))):
            lines = max(1, limit // max(1, prod(images.shape) // images.shape[3])) if places else 1
            for piece in images.split(lines, 3) if places else (images, ):
                rows = piece.movedim(1, 0).movedim(2, 2 + places)  # (groups, images, *places, channels, *kernel)
                rows = rows.reshape(self._channel_groups, prod(rows.shape[1:2 + places]), self.blocks, self.columns)
                yield rows.transpose(1, 2).flatten(0, 1)

    @torch.no_grad()
    def rows(self, *args, **kwargs) -> Tensor:
        """Rows (g, m, C) that the layer multiplies when it is called so, in the active mode; ValueError without any."""
        found = []
        with self.caught(found.append):
            self.layer(*args, **kwargs)
        if not found:
            raise ValueError(no_rows(type(self.layer).__name__))
        return torch.cat([rows for windows in found for rows in self.pieces(windows)], 1)


def no_rows(layer: str) -> str:
    """What to say of a layer without rows."""
    return (f'{layer} has no rows to solve for: no image reached it, or it does not multiply its weight by F.conv*d, '
            'F.conv_transpose*d or F.linear (a deformable convolution). Calibrate with images that reach it, or leave '
            'it to another step')
