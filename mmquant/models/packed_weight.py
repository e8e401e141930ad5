"""What stands in the place of a float weight that is not there: a layer of a packed checkpoint has codes alone."""
from __future__ import annotations

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

_PROPERTIES = ('shape', 'dtype', 'device', 'layout', 'ndim', 'grad', 'requires_grad', 'is_leaf', 'is_cuda', 'is_cpu',
               'is_meta', 'is_sparse', 'is_quantized', 'is_mkldnn', 'itemsize')
_METHODS = ('dim', 'size', 'numel', 'nelement', 'stride', 'element_size', 'is_contiguous', 'is_floating_point',
            'is_complex', 'untyped_storage', 'requires_grad_', '__len__', '__hash__')
_HARMLESS = {getattr(torch.Tensor, name).__get__ for name in _PROPERTIES}
_HARMLESS |= {getattr(torch.Tensor, name) for name in _METHODS}


class NoFloatWeight(RuntimeError):
    """The float weight of a layer was asked for, but the checkpoint held its codes only."""


class PackedWeight(nn.Parameter):
    """A parameter like a weight (scalar ``like``: dtype, device), without memory; whoever computes with it is told."""

    def __new__(cls, like: torch.Tensor, shape: tuple[int, ...], layer: str) -> PackedWeight:
        return torch.Tensor._make_subclass(cls, like.detach().new_zeros(()).expand(shape), False)

    def __init__(self, like: torch.Tensor, shape: tuple[int, ...], layer: str) -> None:
        self.layer = layer

    def missing(self) -> NoFloatWeight:
        return NoFloatWeight(
            f'layer {self.layer} was loaded from a packed checkpoint: its codes are there, its float weight is not. '
            'The float net, new ranges or bits of weights, and further calibration need it: call '
            'model.load_float_checkpoint() and then model.load(path, float_weights=True), or quantize again with '
            'tools/ptq.py')

    def moved(self, function) -> PackedWeight:
        """What ``function``, such as a move to a device, makes of it."""
        scalar = torch.zeros((), dtype=self.dtype, device=self.device)
        return PackedWeight(function(scalar), tuple(self.shape), self.layer)

    def __deepcopy__(self, memo) -> PackedWeight:
        return memo.setdefault(id(self), self.moved(lambda scalar: scalar))

    def __reduce_ex__(self, protocol) -> tuple:
        return PackedWeight, (torch.zeros((), dtype=self.dtype, device=self.device), tuple(self.shape), self.layer)

    def __repr__(self, **kwargs) -> str:
        return f'PackedWeight of {self.layer}, shape {tuple(self.shape)}, {self.dtype}, {self.device}'

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in _HARMLESS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        own = next(x for x in tree_leaves((args, kwargs)) if isinstance(x, cls))
        if func is torch.Tensor.detach:  # of state_dict()
            return own
        if func is torch.Tensor.to:
            return own.moved(lambda scalar: scalar.to(*args[1:], **(kwargs or {})))
        raise own.missing()
