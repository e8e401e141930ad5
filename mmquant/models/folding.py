"""Folding of batch normalisation into the convolution or linear layer before it, found by data flow."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmquant.models.dataflow import DataFlow
from mmquant.models.layers import LAYER_TYPES, channel_axis


@dataclass(frozen=True)
class FoldedBatchNorm:
    """What a folded BatchNorm held, per channel: kept because later steps ask for it (RAPQ, DFQ, PD-Quant)."""
    gamma: torch.Tensor
    beta: torch.Tensor
    mean: torch.Tensor
    sigma: torch.Tensor


def foldable_pairs(model: nn.Module, flow: DataFlow) -> list[tuple[str, str]]:
    """Pairs (layer, BatchNorm) where the BatchNorm alone reads the layer's output and each is called once."""
    modules = dict(model.named_modules())
    makers = {c.outputs[0]: c for c in flow.calls
              if isinstance(modules[c.name], LAYER_TYPES) and len(c.outputs) == 1}
    pairs = []
    for call in flow.calls:
        bn = modules[call.name]
        if not isinstance(bn, _BatchNorm) or bn.running_mean is None or len(call.inputs) != 1:
            continue
        maker = makers.get(call.inputs[0])
        if maker is None or len(flow.calls_of[maker.name]) > 1 or len(flow.calls_of[call.name]) > 1:
            continue
        if call.inputs[0] in flow.calls[0].outputs:
            continue
        if all(call.enter < op.tick < call.exit for op in flow.readers.get(call.inputs[0], ())):
            pairs.append((maker.name, call.name))
    return pairs


@torch.no_grad()
def fold(layer: nn.Module, bn: _BatchNorm) -> None:
    """Fold ``bn`` into ``layer`` exactly: ``w' = w * gamma / sigma``, ``b' = beta + (b - mean) * gamma / sigma``."""
    sigma = (bn.running_var.double() + bn.eps).sqrt()
    gamma = bn.weight.double() if bn.affine else torch.ones_like(sigma)
    beta = bn.bias.double() if bn.affine else torch.zeros_like(sigma)
    factor = gamma / sigma
    axis = channel_axis(layer)
    weight = layer.weight.double()
    if axis == 1:  # transposed convolution: (C_in, C_out / groups, ...)
        per_group = factor.view(layer.groups, -1).repeat_interleave(weight.shape[0] // layer.groups, 0)
        scaled = weight * per_group.view(*per_group.shape, *[1] * (weight.dim() - 2))
    else:
        scaled = weight * factor.view(-1, *[1] * (weight.dim() - 1))
    bias = 0 if layer.bias is None else layer.bias.double()
    bias = beta + (bias - bn.running_mean.double()) * factor
    layer.weight.data = scaled.to(layer.weight.dtype)
    ensure_bias(layer)
    layer.bias.data = bias.to(layer.weight.dtype)
    layer.folded_bn = FoldedBatchNorm(*(t.float() for t in (gamma, beta, bn.running_mean.double(), sigma)))


def ensure_bias(layer: nn.Module) -> None:
    """Give a layer without bias a zero one."""
    if layer.bias is None:
        width = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        layer.bias = nn.Parameter(layer.weight.new_zeros(width))


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put ``new`` at the place of the submodule ``name``."""
    parent, _, leaf = name.rpartition('.')
    setattr(model.get_submodule(parent), leaf, new)


def replace_by_identity(model: nn.Module, name: str) -> None:
    """Put an identity in place of a submodule (its name stays, as mmcv's ConvModule looks norms up by name)."""
    replace_module(model, name, nn.Identity())
