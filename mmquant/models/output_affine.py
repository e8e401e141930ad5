"""A factor and a bias for each output channel of a quantized layer: the affine layer of RepAPQ's protected convolution.

    y = a * (Q(v) * x + c) + d = (a Q(v)) * x + b_q    with v = w / a_0 and b_q = a c + d

``a`` is the factor, ``a_0`` its initial value, ``*`` between tensors the convolution. A factor of output channels is a
factor of the weight, so the layer stays one convolution and its activations are touched once; ``c`` and ``d`` only
count together. Both act while weights are quantized: the float layer does not know them.
"""
from __future__ import annotations

import torch
from torch import nn

from mmquant.models.layers import TRANSPOSED_TYPES, QuantizedLayer
from mmquant.structures.granularity import PerChannel, PerGroup

FLOOR = 1e-6
"""Smallest factor: scales stay positive when it is folded into them."""
SMALLEST_DENSE_SCALE = 1e-4


class OutputAffine(nn.Module):
    """Factor and bias of each output channel.

    Args:
        bias (Tensor): Float bias, (C_out,); the initial bias.
        weight_dims (int): Number of axes of the layer's weight, whose first axis counts output channels.

    Attributes:
        scale, initial_scale (Tensor): Buffers (C_out,), the factor and its value at the start; 1 by default.
        bias (Tensor): Buffer (C_out,).
    """

    def __init__(self, bias: torch.Tensor, weight_dims: int) -> None:
        super().__init__()
        self.shape = (-1, *[1] * (weight_dims - 1))
        self.register_buffer('scale', torch.ones_like(bias))
        self.register_buffer('initial_scale', torch.ones_like(bias))
        self.register_buffer('bias', bias.detach().clone())

    @torch.no_grad()
    def start(self, scale: torch.Tensor) -> None:
        """Begin at another factor; values below 1e-4, which would blow up their channel's weights, become 1."""
        scale = torch.where(scale < SMALLEST_DENSE_SCALE, torch.ones_like(scale), scale)
        self.scale.copy_(scale)
        self.initial_scale.copy_(scale)

    def divide(self, weight: torch.Tensor) -> torch.Tensor:
        """``w / a_0``: what is left to quantize."""
        return weight / self.initial_scale.view(self.shape)

    def multiply(self, weight: torch.Tensor) -> torch.Tensor:
        """``a * weight``, differentiable in the factor."""
        return weight * self.scale.view(self.shape).to(weight.dtype)

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep the factors positive."""
        self.scale.clamp_(min=FLOOR)


def add_output_affine(layer: QuantizedLayer) -> None:
    """Give a quantized layer an :class:`OutputAffine` that changes nothing yet, and a bias if it has none."""
    weight, bias = layer._parameters['weight'], layer._parameters['bias']
    bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
    layer.output_affine = OutputAffine(bias, weight.dim()).to(weight.device)


def takes_output_affine(layer: nn.Module) -> bool:
    """Whether output channels are the first axis of the weight, so that a factor of one is a factor of the other."""
    return not isinstance(layer, TRANSPOSED_TYPES)


@torch.no_grad()
def fold_output_affine(layer: QuantizedLayer) -> bool:
    """Move the factor into the scales of the weight quantizer, integers unchanged; the bias stays.

    Returns:
        bool: False where the weight has one scale for all channels: the factor then stays as a multiplier of each
        channel, as in the requantization of integer kernels.
    """
    quantizer, affine = layer.weight_quantizer, layer.output_affine
    if not isinstance(quantizer.granularity, (PerChannel, PerGroup)):
        return False
    if quantizer.codes is None:
        quantizer.set_codes(quantizer.encode(layer.quantized_tensor))
    affine.clamp()
    rows = quantizer.scale.shape[0]
    quantizer.scale.mul_(affine.scale.view(rows, *[1] * (quantizer.scale.dim() - 1)))
    affine.scale.fill_(1)
    affine.initial_scale.fill_(1)
    return True
