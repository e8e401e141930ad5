"""Linear layers whose weight another module hands to ``F.linear``, called as the layers they are.

mmpretrain's BEiT and Swin V2 compute ``F.linear(x, self.qkv.weight, bias)`` with a bias put together from parts. Such a
module is turned into a subclass whose ``forward`` runs under a ``TorchFunctionMode`` that answers this function with
``self.qkv(x) + bias``, so that the layer shows in the data flow and is quantized like every other.
"""
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from mmquant.models.layers import mixed_class


def linear_arguments(input, weight, bias=None) -> tuple:
    """Arguments of ``F.linear`` in order, by place or by name."""
    return input, weight, bias


def fits(layer: nn.Linear, bias) -> bool:
    """Whether calling the layer can stand for the function: its own bias, or none and maybe another one."""
    return layer.bias is bias or layer.bias is None


class _Calls(TorchFunctionMode):
    """Answers ``F.linear`` with one of the layers' weights by a call of the layer."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        super().__init__()
        self.layers = layers

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.linear:
            return func(*args, **(kwargs or {}))
        x, weight, bias = linear_arguments(*args, **(kwargs or {}))
        layer = next((m for m in self.layers if m.weight is weight and fits(m, bias)), None)
        if layer is None:
            return func(x, weight, bias)
        return layer(x) if layer.bias is bias else layer(x) + bias


class FunctionalLayerOwner:
    """Mix-in: runs ``forward`` with ``F.linear`` answered by the layers named in ``functional_layers``."""

    def forward(self, *args, **kwargs):
        with _Calls([self.get_submodule(name) for name in self.functional_layers]):
            return super().forward(*args, **kwargs)


def call_functional_layers(model: nn.Module, found: dict[str, list[str]]) -> None:
    """Make modules call their layers, in place, once; ``found`` is :attr:`DataFlow.functional`."""
    for owner, names in found.items():
        module = model.get_submodule(owner)
        if not isinstance(module, FunctionalLayerOwner):
            module.__class__ = mixed_class(FunctionalLayerOwner, type(module), 'Calling')
        module.functional_layers = tuple(name.removeprefix(f'{owner}.') for name in names)
