"""Inputs and float targets of one unit over the whole calibration set."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten


def _rows_first(x: torch.Tensor) -> torch.Tensor:
    """Keep 4-D maps as (N, H, W, C) in memory, so that picked rows are channels_last without a copy."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.contiguous()


def pick(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """``x[rows]``, keeping channels_last."""
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
    return x.index_select(0, rows)


@dataclass
class UnitInput:
    """Arguments of a unit's call: one tensor with samples first, at one or more places; everything else constant."""
    data: torch.Tensor
    leaves: list
    positions: tuple[int, ...]
    spec: object

    @classmethod
    def gather(cls, arguments: list[tuple[tuple, dict]]) -> 'UnitInput':
        """Join the chunks' arguments; the first tensor is the data."""
        flat = [tree_flatten(a) for a in arguments]
        leaves, spec = flat[0]
        first = next(x for x in leaves if isinstance(x, torch.Tensor))
        positions = tuple(i for i, x in enumerate(leaves) if x is first)
        data = first if len(flat) == 1 else torch.cat([f[0][positions[0]] for f in flat])
        return cls(_rows_first(data.detach()), list(leaves), positions, spec)

    def arguments(self, data: torch.Tensor) -> tuple[tuple, dict]:
        """(args, kwargs) with ``data`` in place."""
        leaves = list(self.leaves)
        for position in self.positions:
            leaves[position] = data
        return tree_unflatten(leaves, self.spec)

    def __len__(self) -> int:
        return len(self.data)


def single_tensor(tree) -> torch.Tensor:
    """The only tensor in a unit's output."""
    return next(x for x in tree_leaves(tree) if isinstance(x, torch.Tensor))


@torch.no_grad()
def run_in_chunks(function, data: torch.Tensor, size: int) -> torch.Tensor:
    """``function``, which may write into its argument, applied to row chunks; joined, channels_last where 4-D."""
    parts = [function(chunk.clone()) for chunk in data.split(size)]
    return _rows_first(parts[0] if len(parts) == 1 else torch.cat(parts))
