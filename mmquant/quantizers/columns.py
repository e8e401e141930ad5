"""A quantizer seen through the columns of its layer's weight matrix: what solvers work with."""
from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from mmquant.structures import PerChannel, PerTensor


class Columns:
    """Some columns of a weight matrix on a quantizer's grid; ``columns[a:b]`` narrows further.

    ``nearest``, ``encode`` and ``decode`` are the quantizer's, on tensors (groups, rows, columns of this view). ``fit``
    changes the quantizer; a view made before sees the change.

    Args:
        quantizer (Quantizer): Its grid.
        index: Number of the scale of each element, (groups, rows, columns).
        counts: Elements of the whole weight at each scale, (num_scales,).
    """

    def __init__(self, quantizer, index: Tensor, counts: Tensor) -> None:
        self.quantizer, self.index, self.counts = quantizer, index, counts

    @classmethod
    def of(cls, quantizer, shape: tuple[int, ...], as_matrix: Callable[[Tensor], Tensor]) -> Columns:
        """All columns of ``as_matrix(weight)`` for a weight of ``shape``."""
        shape = tuple(shape)
        scale_shape = quantizer.granularity.scale_shape(shape)
        if prod(scale_shape) != quantizer.num_scales:
            raise ValueError(f'a weight of shape {shape} has {prod(scale_shape)} scales, but the quantizer has '
                             f"{quantizer.num_scales}: call allocate(weight's shape) first")
        numbers = torch.arange(quantizer.num_scales, device=quantizer.bits.device)
        each = quantizer.granularity.expand(numbers.reshape(scale_shape), shape).expand(shape)
        return cls(quantizer, as_matrix(each), torch.bincount(each.flatten(), minlength=quantizer.num_scales))

    def __getitem__(self, part: slice) -> Columns:
        return Columns(self.quantizer, self.index[..., part], self.counts)

    def ordered(self, order: Tensor) -> Columns:
        """The columns of each group in an order of its own, (groups, 1, columns)."""
        return Columns(self.quantizer, self.index.take_along_dim(order, 2), self.counts)

    def __len__(self) -> int:
        return self.index.shape[-1]

    def _grid(self):
        """The quantizer with the parameters of each element."""
        grid = self.quantizer.twin()
        grid.granularity = PerTensor()  # whose stored scale is used as it is: here one per element
        for name in grid.per_scale:
            setattr(grid, name, getattr(self.quantizer, name).flatten()[self.index])
        return grid

    def nearest(self, values: Tensor) -> Tensor:
        return self._grid().nearest(values)

    def encode(self, values: Tensor) -> Tensor:
        return self._grid().encode(values)

    def decode(self, codes: Tensor) -> Tensor:
        return self._grid().decode(codes)

    @torch.no_grad()
    def fit(self, values: Tensor, observer, importance: Tensor | None = None) -> None:
        """As :meth:`Quantizer.fit` of these columns; the view must hold all elements of the scales in it, one a row.

        Raises:
            ValueError: A scale reaches beyond these columns or rows, or a row has several.
        """
        index = self.index.flatten(0, -2)  # (rows, columns)
        first = index[:, 0]
        if not bool((index == first[:, None]).all() and (self.counts[first] == len(self)).all()):
            raise ValueError(f'{len(self)} columns are no group of scales of their own ({self.quantizer.granularity}, '
                             f'{int(self.counts[first].max())} elements): fit whole groups, of one row each')
        rows = values.flatten(0, -2)
        grid = self.quantizer.twin()
        grid.granularity = PerChannel(0)
        grid.allocate(rows.shape)
        grid.fit(rows, observer, None if importance is None else importance.flatten(0, -2))
        for name in grid.per_scale:
            own = getattr(self.quantizer, name)
            own.view(-1)[first] = getattr(grid, name).flatten().to(own.dtype)
