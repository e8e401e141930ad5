"""Folding of batch normalisation into the convolution or linear layer before it, found by data flow."""
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmquant.models.dataflow import DataFlow
from mmquant.models.layer_matrix import LayerMatrix
from mmquant.models.layers import LAYER_TYPES, altered, output_axis, replace_parameter


class FoldedBatchNorm(nn.Module):
    """What a folded BatchNorm held, per channel (C_out,): buffers of the layer, for later steps (RAPQ, DFQ, PD-Quant).

    Over the training data, the folded layer's output has the mean ``beta`` and the standard deviation ``|gamma|``;
    without the BatchNorm these were ``mean`` and ``sigma``. What is not known is None: all of it where a checkpoint did
    not hold them, and all but ``beta`` where branches were merged, as the variance of a sum needs covariances.
    """

    def __init__(self, gamma: Tensor | None = None, beta: Tensor | None = None, mean: Tensor | None = None,
                 sigma: Tensor | None = None) -> None:
        super().__init__()
        for name, value in (('gamma', gamma), ('beta', beta), ('mean', mean), ('sigma', sigma)):
            self.register_buffer(name, None if value is None else value.detach().float().clone())

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        for name in self._buffers:
            saved = state_dict.get(prefix + name)
            setattr(self, name, None if saved is None else saved.new_empty(saved.shape, dtype=torch.float32))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.no_grad()
    def scale(self, factor: Tensor) -> None:
        """Follow a factor of the layer's output channels (C_out,)."""
        for value in (self.gamma, self.beta):
            if value is not None:
                value.mul_(factor)


def candidates(model: nn.Module, flow: DataFlow) -> list[tuple[str, str, str]]:
    """(layer, BatchNorm, why it cannot be folded or '') where a BatchNorm alone reads a layer's output, each once."""
    modules, found = dict(model.named_modules()), []
    for call in flow.calls:
        bn = modules[call.name]
        if not isinstance(bn, _BatchNorm) or len(call.inputs) != 1:
            continue
        value, maker = call.inputs[0], flow.maker(call.inputs[0])
        if maker is None or maker.name not in flow.layers or (len(maker.inputs), len(maker.outputs)) != (1, 1):
            continue
        layer = modules[maker.name]
        once = len(flow.calls_of[maker.name]) == len(flow.calls_of[call.name]) == 1
        alone = value not in flow.calls[0].outputs and all(
            call.enter < op.tick < call.exit for op in flow.readers.get(value, ()))
        same_channels = output_axis(layer) % len(flow.shapes[value]) == 1  # BatchNorm's are axis 1 of its input
        if once and alone and same_channels and hasattr(layer, 'bias'):
            why = not_plain(bn) or _not_alone(maker.name, layer, flow) or _not_alone(call.name, bn, flow)
            if not why and not is_linear_in_weight(layer, flow.shapes[maker.inputs[0]]):
                why = f'{maker.name} does more with its weight than multiply it'
            found.append((maker.name, call.name, why))
    return found


def not_plain(bn: nn.Module) -> str:
    """Why a BatchNorm cannot be written as a factor and a bias for each channel; '' if it can."""
    if type(bn).forward not in (_BatchNorm.forward, nn.SyncBatchNorm.forward) or bn._modules:
        return f'{type(bn).__name__} has a forward or parts of its own'
    if bn.running_mean is None or bn.running_var is None or bn.training:
        return 'it normalizes by the statistics of the batch'
    return '' if {'weight', 'bias'} <= bn._parameters.keys() else 'its parameters are computed in each forward pass'


def _not_alone(name: str, module: nn.Module, flow: DataFlow) -> str:
    """Why a module's parameters cannot be changed; '' if they can."""
    if why := altered(module):
        return f'{name}: {why}'
    if readers := flow.foreign.get(name):
        return f'{name}: {readers[0] or "the model itself"} reads its parameters too'
    return ''


@torch.no_grad()
def is_linear_in_weight(layer: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether a factor in the weight is a factor in the output; not so for weight standardisation or spectral norm.

    A float layer whose class has its own ``forward`` is tried out on an input of ``shape``.
    """
    weight = layer._parameters.get('weight')
    if weight is None:  # made anew in each forward pass
        return False
    if any(type(layer).forward is cls.forward for cls in LAYER_TYPES):
        return True
    x, kept = torch.linspace(-1, 1, prod(shape), device=weight.device).reshape(shape).to(weight.dtype), weight.data
    try:
        once = layer(x)
        weight.data = kept * 2
        twice = layer(x)
        weight.data = kept * 0
        bias = layer(x)
    finally:
        weight.data = kept
    return torch.allclose(twice - bias, 2 * (once - bias), rtol=1e-3, atol=1e-4 * once.abs().max().item())


@torch.no_grad()
def fold(layer: nn.Module, bn: _BatchNorm) -> None:
    """Fold ``bn`` into ``layer`` exactly: ``w' = w * gamma / sigma``, ``b' = beta + (b - mean) * gamma / sigma``."""
    sigma = (bn.running_var.double() + bn.eps).sqrt()
    gamma = torch.ones_like(sigma) if bn.weight is None else bn.weight.double()
    beta = torch.zeros_like(sigma) if bn.bias is None else bn.bias.double()
    factor, weight = gamma / sigma, layer.weight
    bias = torch.zeros_like(sigma) if layer.bias is None else layer.bias.double()
    replace_parameter(layer, 'weight', LayerMatrix(layer).scaled(weight.double(), factor))
    replace_parameter(layer, 'bias', (beta + (bias - bn.running_mean.double()) * factor).to(weight.dtype))
    layer.folded_bn = FoldedBatchNorm(gamma, beta, bn.running_mean, sigma)


def become_identity(bn: _BatchNorm) -> None:
    """Turn a BatchNorm into an identity in place, for every name it has; its hooks and plain attributes stay."""
    tensors = {**bn._parameters, **bn._buffers}
    bn._parameters.clear()
    bn._buffers.clear()
    bn.__dict__.update(tensors)  # out of its state, for whoever asks for a dtype or device
    bn.__class__ = nn.Identity
