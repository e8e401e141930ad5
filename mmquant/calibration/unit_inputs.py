"""Inputs and float targets of one unit over the whole calibration set, and the unit as a function of them."""
from dataclasses import dataclass

import torch
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from mmquant.calibration.cache import Cache, CachedTensor
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


def pick(x, rows: torch.Tensor):
    """``x[rows]``, keeping channels_last; of each tensor where there are several."""
    if isinstance(x, tuple):
        return tuple(pick(y, rows) for y in x)
    if isinstance(x, Rows):
        return x.pick(rows)
    rows = rows.to(x.device)
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return x.index_select(0, rows)


def join(parts: list, cache: Cache | None = None):
    """Chunks of rows as one tensor, or as :class:`Rows` where the cache is limited; tuples of tensors one by one."""
    if isinstance(parts[0], tuple):
        return tuple(join(list(column), cache) for column in zip(*parts))
    if cache is not None and cache.has_budget:
        return Rows([p if isinstance(p, CachedTensor) else cache.put(_rows_first(p.detach())) for p in parts])
    return _rows_first((parts[0] if len(parts) == 1 else torch.cat(parts)).detach())


def keep(x, cache: Cache | None):
    """Hand one chunk to a limited cache, so that :func:`join` finds it there."""
    if isinstance(x, tuple):
        return tuple(keep(y, cache) for y in x)
    return cache.put(_rows_first(x.detach())) if cache is not None and cache.has_budget else x


@dataclass
class UnitInput:
    """Arguments of a unit's call: tensors with samples first, each at one or more places; everything else constant."""
    data: object  # Tensor or Rows of all samples; a tuple for several tensors
    leaves: list  # of the first chunk's (args, kwargs), without the data
    positions: tuple[tuple[int, ...], ...]  # places of each data tensor among the leaves
    spec: object  # structure of (args, kwargs)

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

    ``places`` are the leaves that depend on the image (:attr:`Call.leaves`): those with as many rows as the first one
    are data. Default: the first tensor alone.
    """

    def __init__(self, places: tuple[int, ...] | None = None, cache: Cache | None = None) -> None:
        self.places, self.cache = places, cache
        self.parts: list = []

    def add(self, arguments: tuple[tuple, dict]) -> None:
        """Take in one chunk's (args, kwargs)."""
        leaves, spec = tree_flatten(arguments)
        if not self.parts:
            self.positions, self.spec = _data_positions(leaves, self.places), spec
            flat = {i for group in self.positions for i in group}
            self.leaves = [None if i in flat else x for i, x in enumerate(leaves)]
        data = tuple(leaves[group[0]] for group in self.positions)
        self.parts.append(keep(data if len(data) > 1 else data[0], self.cache))

    def build(self) -> UnitInput:
        """The joined chunks."""
        return UnitInput(join(self.parts, self.cache), self.leaves, self.positions, self.spec)


def _data_positions(leaves: list, places: tuple[int, ...] | None) -> tuple[tuple[int, ...], ...]:
    tensors = [i for i, x in enumerate(leaves) if isinstance(x, torch.Tensor)]
    first = leaves[tensors[0] if not places else places[0]]
    wanted = [leaves[i] for i in places or () if leaves[i].dim() and leaves[i].shape[0] == first.shape[0]] or [first]
    distinct = list({id(x): x for x in wanted}.values())
    return tuple(tuple(i for i in tensors if leaves[i] is x) for x in distinct)


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
    return x.parts if isinstance(x, Rows) else [x]


@torch.no_grad()
def run_in_chunks(function, data, size: int, cache: Cache | None = None):
    """``function``, which may write into its argument, applied to row chunks; joined, channels_last where 4-D."""
    if isinstance(data, torch.Tensor):
        chunks = (chunk.clone() for chunk in data.split(size))
    else:
        chunks = (pick(data, rows) for rows in torch.arange(num_rows(data)).split(size))
    return join([keep(function(chunk), cache) for chunk in chunks], cache)


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
