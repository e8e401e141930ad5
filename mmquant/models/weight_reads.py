"""Who reads the parameters and buffers of a model: found by the memory that an operation reads."""
from collections import defaultdict

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

# Operations that take a tensor for its shape, type and device alone.
SHAPE_ONLY = frozenset('new_empty new_empty_strided new_full new_ones new_zeros empty_like full_like ones_like '
                       'zeros_like rand_like randn_like randint_like'.split())


def storage_of(tensor: torch.Tensor) -> int | None:
    """Identity of the memory that a tensor shares with its views; None for a layout without one, such as sparse."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return None


def read_by(func, tree) -> set[int | None]:
    """Memory that an ATen call reads; ``tree`` are its arguments."""
    if func._schema.name.split('::')[-1] in SHAPE_ONLY:
        return set()
    return {storage_of(x) for x in tree_leaves(tree) if isinstance(x, torch.Tensor)}


def owners_of(model: nn.Module) -> dict[int | None, set[str]]:
    """Memory -> names of the modules that hold it as a parameter or buffer."""
    owners = defaultdict(set)
    for name, module in model.named_modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                owners[storage_of(tensor)].add(name)
    return owners


class ForeignReads:
    """Reads of a module's parameters or buffers outside of its calls: ``found``, module -> readers, '' the model."""

    def __init__(self, model: nn.Module) -> None:
        self.owners, self.found = owners_of(model), {}
        self.owners.pop(None, None)

    def note(self, func, tree, running: list[str]) -> None:
        """See one ATen call inside the calls of the modules ``running``, innermost last."""
        for storage in read_by(func, tree) & self.owners.keys():
            if running and self.owners[storage].isdisjoint(running):
                for owner in self.owners[storage]:
                    readers = self.found.setdefault(owner, [])
                    readers += [running[-1]] * (running[-1] not in readers)
