"""Decided weights as integer kernels take them: int8 codes without zero point, one scale for each output channel."""
from dataclasses import dataclass

import torch
from torch import Tensor

from mmquant.models.layers import QuantizedLayer, channel_axis
from mmquant.models.output_affine import OutputAffine


class NotInteger(ValueError):
    """Values that no integer kernel takes; the text says why, and what to do."""


@dataclass(frozen=True)
class IntegerWeight:
    """``scale * codes`` along ``axis``, with ``codes = integers * 2**shift``; ``bits`` hold the integers.

    Low-bit integers are shifted up, so that the grid of the bias, ``s_x * scale``, is as fine as int8 allows.
    """
    codes: Tensor  # int8, of the weight's shape
    scale: Tensor  # float32, (channels on axis,)
    axis: int
    shift: int
    bits: int


@torch.no_grad()
def integer_weight(layer: QuantizedLayer, largest: int = 127) -> IntegerWeight:
    """The decided weight of a quantized layer, exactly.

    Args:
        layer (QuantizedLayer): With codes.
        largest (int): Bound of the shifted codes, ``-largest - 1 .. largest``. Default 127; with 63 sums of two
            products fit 16 bits, as x86 without VNNI needs. Integers that exceed it by themselves are not shifted.

    Raises:
        NotInteger: For means kept, scales of groups, levels that are no multiples of a step, adapters other than a
            factor for each channel, and zero points so far from the middle that codes leave int8.
    """
    quantizer, axis = layer.weight_quantizer, channel_axis(layer)
    if quantizer.codes is None:
        raise NotInteger('it has no decided codes: call decide() of the model')
    if quantizer.keep_mean:
        raise NotInteger('keep_mean adds a float offset to each channel: quantize it without keep_mean '
                         '(CorrectBias wins most of it back)')
    found = quantizer.integers()
    if found is None:
        raise NotInteger(f'the levels of {type(quantizer).__name__} are no multiples of one step: quantize it by '
                         'UniformAffineQuantizer')
    integers, step = found
    channels = integers.shape[axis]
    step = _per_channel(step, integers.shape, axis)
    for adapter in layer.adapters:
        if not isinstance(adapter, OutputAffine):
            raise NotInteger(f'{type(adapter).__name__} stands around its weight')
        step = step * adapter.scale.to(step)
    low, high = (int(end) for end in integers.aminmax())
    if low < -128 or high > 127:
        raise NotInteger(f'codes less their zero points lie in {low}..{high}, which int8 does not hold: give 8-bit '
                         'weights symmetric=True')
    shift = 0
    while shift < 7 and -largest - 1 <= low * 2**(shift + 1) and high * 2**(shift + 1) <= largest:
        shift += 1
    codes = (integers * 2**shift).to(torch.int8)
    return IntegerWeight(codes, (step / 2**shift).float().expand(channels).contiguous(), axis, shift,
                         quantizer.bit_width)


def leaves_int8(layer: QuantizedLayer) -> bool:
    """Whether a symmetric grid would cure that codes less their zero points leave int8."""
    quantizer = layer.weight_quantizer
    found = None if quantizer.codes is None or quantizer.bit_width > 8 else quantizer.integers()
    symmetric = getattr(getattr(quantizer, 'grid', None), 'symmetric', True)
    return found is not None and not symmetric and not -128 <= found[0].min() <= found[0].max() <= 127


def _per_channel(step: Tensor, shape: torch.Size, axis: int) -> Tensor:
    """Steps (channels or 1,) of what is broadcastable against a weight."""
    if step.numel() not in (1, shape[axis]) or step.numel() > 1 and step.shape[axis] != step.numel():
        raise NotInteger('it has a scale for each group of its columns: use granularity="channel" or "tensor"')
    return step.flatten().double()
