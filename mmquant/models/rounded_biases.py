"""Biases as 32-bit integers on the grid of a layer's sums, ``s_x s_w``."""
import torch

from mmquant.models.integer_weights import NotInteger, integer_weight
from mmquant.models.layers import QuantizedLayer, own_bias

MOST = 2**30  # of the 31 bits of a bias; the other one is room for the sum


@torch.no_grad()
def round_bias(layer: QuantizedLayer, input_scale: float, largest: int = 127) -> float:
    """Round the bias of the quantized mode, half to even; returns its largest change.

    A channel with ``|b| > 2^30 s_x s_w`` gets ``s_w = |b| / (2^30 s_x)`` and its weights the nearest codes there.

    Args:
        layer (QuantizedLayer): With codes; one without a bias stays as it is.
        input_scale (float): ``s_x`` of its input.
        largest (int): See :func:`integer_weight`; raises its errors.
    """
    if layer.quantized_bias is None and layer._parameters.get('bias') is None:
        return 0.0
    bias = own_bias(layer).double()
    step = _grid(integer_weight(layer, largest), input_scale)
    if bool((bias.abs() > MOST * step).any()):
        _widen(layer, bias.abs() / MOST / input_scale, largest)
        step = _grid(integer_weight(layer, largest), input_scale)
    rounded = torch.round(bias / step) * step
    change = (rounded - bias).abs().max().item()
    layer.quantized_bias.copy_(rounded)
    return change


def _grid(weight, input_scale: float) -> torch.Tensor:
    """``s_x s_w`` of each channel as a runtime multiplies them, in float32."""
    return (weight.scale * torch.tensor(input_scale, dtype=torch.float32, device=weight.scale.device)).double()


def _widen(layer: QuantizedLayer, smallest: torch.Tensor, largest: int) -> None:
    """Raise the scale of channels below ``smallest`` (C,), and encode their weights anew."""
    quantizer = layer.weight_quantizer
    weight = integer_weight(layer, largest)
    factor = (smallest.to(weight.scale.device) / weight.scale).clamp(min=1.0)
    values = quantizer.decode(quantizer.codes)
    if not quantizer.rescale((factor * (1 + 2**-20)).to(values.dtype)):
        raise NotInteger('its bias does not fit 32 bits, and its channels share a scale: use granularity="channel"')
    quantizer.set_codes(quantizer.encode(values))
