"""Quantized matrix products inside attention, without touching the module's code.

The module that computes ``q @ k`` or ``scaled_dot_product_attention`` in its own ``forward`` is turned into a subclass
whose ``forward`` runs under a ``TorchFunctionMode`` that quantizes the operands.
"""
import math
import threading

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mmquant.models.layers import mixed_class
from mmquant.models.recorder import MATMULS, operands

# Operands of a product that get a quantizer each.
OPERANDS = {'matmul': ('left', 'right'), 'attention': ('query', 'key', 'probabilities', 'value')}


class _Running(threading.local):
    """Modules that this thread runs, innermost last: an owner's mode, or None for one inside. Empty outside owners."""

    def __init__(self) -> None:
        self.modes: list[_OperandMode | None] = []


_RUNNING = _Running()


class _OperandMode(TorchFunctionMode):
    """Quantizes the operands of the products of one module call; products of inner modules are theirs."""

    def __init__(self, sites: nn.ModuleDict) -> None:
        super().__init__()
        self.sites, self.position = sites, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, site = kwargs or {}, None
        if func in MATMULS and _RUNNING.modes[-1] is self:
            site = str(self.position)
            self.position += 1
        if site not in self.sites:
            return func(*args, **kwargs)
        quantizers = self.sites[site]
        if MATMULS[func] == 'matmul':
            left, right = operands(args, kwargs)
            return func(quantizers['left'](left), quantizers['right'](right))
        if any(q.enabled for q in quantizers.values()):
            return quantized_attention(quantizers, *args, **kwargs)
        return func(*args, **kwargs)


def quantized_attention(quantizers, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None,
                        enable_gqa=False):
    """``scaled_dot_product_attention`` with its operands quantized: (..., L, E), (..., S, E), (..., S, V); no dropout.

    ``quantizers``: of ``query``, ``key``, ``probabilities``, ``value``. ValueError for grouped-query attention.
    """
    if enable_gqa:
        raise ValueError('quantized attention does not support enable_gqa=True; exclude this module by a quantizer '
                         'override with a_bits=None')
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = quantizers['query'](query) @ quantizers['key'](key).transpose(-2, -1) * scale
    if is_causal:
        attn_mask = scores.new_ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return quantizers['probabilities'](scores.softmax(-1)) @ quantizers['value'](value)


class QuantizedMatmulOwner:
    """Mix-in: runs ``forward`` with the operands of its own matrix products quantized."""

    def forward(self, *args, **kwargs):
        _RUNNING.modes.append(_OperandMode(self.matmul_quantizers))
        try:
            with _RUNNING.modes[-1]:
                return super().forward(*args, **kwargs)
        finally:
            _RUNNING.modes.pop()


def quantize_matmuls(module: nn.Module, sites: dict[str, nn.ModuleDict]) -> None:
    """Quantize a module's own matrix products, in place; ``sites`` maps a position to its operands' quantizers."""
    for inner in module.modules():
        if inner is not module:
            inner.register_forward_pre_hook(_enter)
            inner.register_forward_hook(_leave, always_call=True)
    module.__class__ = mixed_class(QuantizedMatmulOwner, type(module))
    module.matmul_quantizers = nn.ModuleDict(sites)


def _enter(*_) -> None:
    _RUNNING.modes.append(None)


def _leave(*_) -> None:
    _RUNNING.modes.pop()
