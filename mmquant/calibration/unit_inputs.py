"""Inputs and float targets of one unit over the whole calibration set, and the unit as a function of them."""
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from mmquant.calibration.cache import Cache, CachedTensor
from mmquant.calibration.items import PLAIN, Items, Layout, first_tensor
from mmquant.models import QuantizedModel
from mmquant.models.units import activation_of, unit_module
from mmquant.structures.unit import Unit


def _rows_first(x: torch.Tensor) -> torch.Tensor:
    """Keep 4-D maps as (N, H, W, C) in memory, so that picked rows are channels_last without a copy."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.contiguous()


class Rows:
    """Rows of at least one chunk, each in memory or in a file, of one shape but for their number."""

    def __init__(self, parts: list[torch.Tensor | CachedTensor]) -> None:
        self.parts, self.sizes = parts, [p.shape[0] for p in parts]

    def __len__(self) -> int:
        return sum(self.sizes)

    def pick(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows by number, in this order."""
        found, start = None, 0
        for part, size in zip(self.parts, self.sizes):
            places = ((rows >= start) & (rows < start + size)).nonzero()[:, 0]
            if len(places):
                local, cached = rows[places] - start, isinstance(part, CachedTensor)
                piece = part.rows(local) if cached else part.index_select(0, local.to(part.device))
                if found is None:
                    form = torch.channels_last if piece.dim() == 4 else torch.contiguous_format
                    found = torch.empty((len(rows), *piece.shape[1:]), dtype=piece.dtype, device=piece.device,
                                        memory_format=form)
                found[places] = piece
            start += size
        return found


class Arranged:
    """Items first (Tensor or Rows), that are handed out as a unit takes or returns them."""

    def __init__(self, items: torch.Tensor | Rows, layout: Layout) -> None:
        self.items, self.layout = items, layout

    def __len__(self) -> int:
        return len(self.items)

    def pick(self, rows: torch.Tensor) -> torch.Tensor:
        """Items by number, in this order."""
        return self.layout.merge(pick(self.items, rows))


def pick(x, rows: torch.Tensor):
    """``x[rows]``, keeping channels_last; of each tensor where there are several."""
    if isinstance(x, tuple):
        return tuple(pick(y, rows) for y in x)
    if isinstance(x, (Rows, Arranged)):
        return x.pick(rows)
    rows = rows.to(x.device)
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return x.index_select(0, rows)


def collect(parts: Iterable, cache: Cache | None = None, layouts: tuple[Layout, ...] = ()):
    """Chunks, of a tensor or a tuple of them, joined to items that :func:`pick` hands out in the same layouts.

    A tensor, :class:`Rows` where the cache is limited, :class:`Arranged` where items are not plain rows. Without
    layouts all are plain. Chunks that are one item each and of other shapes than the first one's are left out.
    """
    return _arranged(join(_of_one_shape([keep(x, cache, layouts) for x in parts], layouts), cache), layouts)


def join(parts: list, cache: Cache | None = None):
    """Items of chunks as one tensor, or as :class:`Rows` where the cache is limited; tuples of tensors one by one."""
    if isinstance(parts[0], tuple):
        return tuple(join(list(column), cache) for column in zip(*parts))
    if cache is not None and cache.has_budget:
        return Rows([p if isinstance(p, CachedTensor) else cache.put(_rows_first(p.detach())) for p in parts])
    return _rows_first((parts[0] if len(parts) == 1 else torch.cat(parts)).detach())


def keep(x, cache: Cache | None, layouts: tuple[Layout, ...] = ()):
    """Items of one chunk, handed to a limited cache, so that :func:`join` finds them there."""
    if isinstance(x, tuple):
        return tuple(keep(y, cache, (layout, )) for y, layout in zip(x, layouts or (PLAIN, ) * len(x), strict=True))
    x = x if not layouts or layouts[0] == PLAIN else layouts[0].split(x)
    return cache.put(_rows_first(x.detach())) if cache is not None and cache.has_budget else x


def _of_one_shape(parts: list, layouts: tuple[Layout, ...]) -> list:
    def shapes(x):
        return [y.shape for y in (x if isinstance(x, tuple) else (x, ))]

    return [x for x in parts if shapes(x) == shapes(parts[0])] if layouts and layouts[0].axis is None else parts


def _arranged(x, layouts: tuple[Layout, ...]):
    if isinstance(x, tuple):
        return tuple(_arranged(y, (layout, )) for y, layout in zip(x, layouts or (PLAIN, ) * len(x)))
    return x if not layouts or layouts[0] == PLAIN else Arranged(x, layouts[0])


@dataclass
class UnitInput:
    """Arguments of a unit's call: tensors of all items, each at one or more places; everything else constant."""
    data: object  # of all items, see `collect`; a tuple for several tensors
    leaves: list  # of the first chunk's (args, kwargs), without the data
    positions: tuple[tuple[int, ...], ...]  # places of each data tensor among the leaves
    spec: object  # structure of (args, kwargs)
    items: Items  # how the call keeps them

    def arguments(self, data) -> tuple[tuple, dict]:
        """(args, kwargs) with ``data`` in place."""
        leaves = list(self.leaves)
        for group, x in zip(self.positions, data if isinstance(data, tuple) else (data, )):
            for position in group:
                leaves[position] = x
        return tree_unflatten(leaves, self.spec)

    def __len__(self) -> int:
        return num_rows(self.data)


class UnitInputBuilder:
    """Joins the arguments of a unit's call chunk by chunk.

    ``find(parts)`` tells its :class:`Items`, from ((args, kwargs), number of images) of the first one or two chunks,
    with two images at least if there are so many. Default: the rows of the first tensor alone.
    """

    def __init__(self, find: Callable[[list], Items] = first_tensor, cache: Cache | None = None) -> None:
        self.find, self.cache = find, cache
        self.parts: list = []
        self.waiting: list = []
        self.items: Items | None = None

    def add(self, arguments: tuple[tuple, dict], images: int = 2) -> None:
        """Take in one chunk's (args, kwargs), of so many images. ValueError if it does not fit to the first one's."""
        self.waiting.append((arguments, images))
        if self.items is None and sum(n for _, n in self.waiting) >= 2:
            self._begin()
        while self.items is not None and self.waiting:
            self._take(self.waiting.pop(0)[0])

    def _begin(self) -> None:
        self.items = self.find(self.waiting)
        leaves, self.spec = tree_flatten(self.waiting[0][0])
        distinct = list({id(leaves[i]): leaves[i] for i in self.items.inputs}.values())
        self.positions = tuple(tuple(i for i, x in enumerate(leaves) if x is y) for y in distinct)
        self.layouts = tuple(self.items.inputs[next(i for i in group if i in self.items.inputs)]
                             for group in self.positions)
        flat = {i for group in self.positions for i in group}
        self.leaves = [None if i in flat else x for i, x in enumerate(leaves)]

    def _take(self, arguments: tuple[tuple, dict]) -> None:
        leaves = tree_flatten(arguments)[0]
        for i, (first, x) in enumerate(zip(self.leaves, leaves)):
            if isinstance(first, torch.Tensor) and not (isinstance(x, torch.Tensor) and torch.equal(first, x)):
                raise ValueError(f'its argument number {i}, of shape {tuple(first.shape)}, differs from chunk to '
                                 'chunk, but not with the images, so images cannot be mixed; leave the module float '
                                 '(quantizer.overrides), choose other units, or give all images in one chunk')
        data = tuple(leaves[group[0]] for group in self.positions)
        self.parts.append(keep(data if len(data) > 1 else data[0], self.cache, self.layouts))

    def build(self) -> UnitInput:
        """The joined chunks."""
        if self.items is None:
            self._begin()
            self._take(self.waiting.pop()[0])
        data = _arranged(join(_of_one_shape(self.parts, self.layouts), self.cache), self.layouts)
        return UnitInput(data, self.leaves, self.positions, self.spec, self.items)


def num_rows(data) -> int:
    """Samples in data of a unit."""
    return len(data[0] if isinstance(data, tuple) else data)


def output_of(tree):
    """The floating-point tensor in a unit's output, or a tuple of all of them; ValueError if there is none."""
    found = tuple(x for x in tree_leaves(tree) if isinstance(x, torch.Tensor) and x.is_floating_point())
    if not found:
        raise ValueError(f'a unit returned {type(tree).__name__} without any floating-point tensor, so its quantized '
                         'and float output cannot be compared; choose smaller units (unit="layer")')
    return found if len(found) > 1 else found[0]


def tensors_in(x) -> list:
    """The tensors (or kept ones) that data, targets or weights consist of."""
    if isinstance(x, tuple):
        return [z for y in x for z in tensors_in(y)]
    if isinstance(x, Arranged):
        return tensors_in(x.items)
    return x.parts if isinstance(x, Rows) else [x]


@torch.no_grad()
def run_in_chunks(function, data, size: int, cache: Cache | None = None, layouts: tuple[Layout, ...] = ()):
    """``function``, which may write into its argument, applied to ``size`` items at a time; joined by :func:`collect`,
    ``layouts`` being those of what it returns."""
    if isinstance(data, torch.Tensor):
        chunks = (chunk.clone() for chunk in data.split(size))
    else:
        chunks = (pick(data, rows) for rows in torch.arange(num_rows(data)).split(size))
    return collect(map(function, chunks), cache, layouts)


class UnitRun:
    """Call number ``call`` of a unit as a function of its data, in the quantization mode that is active.

    Args:
        data (UnitInput | None): Where rows of data stand among the arguments; None: only :meth:`on` is used.
        activation (bool): Run the activation that alone reads the output too.
    """

    def __init__(self, model: QuantizedModel, unit: Unit, call: int = 0, data: UnitInput | None = None,
                 activation: bool = True) -> None:
        self.module, self.data = unit_module(model.architecture, unit), data
        self.activation = activation_of(model.architecture, unit) if activation else None
        self.per_call = model.per_call_within(unit, call)

    def __call__(self, x):
        return self.on(self.data.arguments(x))

    def on(self, arguments: tuple[tuple, dict]):
        """Output for (args, kwargs), into which the unit may write; one tensor or a tuple, as for rows of data."""
        for quantizer, position in self.per_call:
            quantizer.position = position
        output = output_of(self.module(*arguments[0], **arguments[1]))
        return output if self.activation is None else self.activation(output)
