"""A quantized model as torch's exporter can follow it: operators in the place of quantizers."""
from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from mmquant.export.operators import dequantize_weight, quantize_dequantize, traceable_deform_conv
from mmquant.models import QuantizedModel
from mmquant.models.integer_weights import IntegerWeight, NotInteger, integer_weight
from mmquant.quantizers import Quantizer


class ExportError(ValueError):
    """A model that a profile cannot express; the text names the layer and the way out."""


class WeightStand(nn.Module):
    """In the place of a weight quantizer: its values, by buffers that lie in memory as the weight did."""
    enabled = True

    def use_plain_memory(self) -> None:
        """Lay the buffers out plainly."""
        for name, buffer in self.named_buffers():
            setattr(self, name, buffer.contiguous())


class _Codes(WeightStand):
    """Its codes, and the operator that gives them their values."""

    def __init__(self, weight: IntegerWeight) -> None:
        super().__init__()
        self.axis = weight.axis
        self.register_buffer('codes', weight.codes)
        self.register_buffer('scale', weight.scale)

    def forward(self, weight: Tensor) -> Tensor:
        return dequantize_weight(self.codes, self.scale, self.axis)


class _Floats(WeightStand):
    """Values that integer kernels do not take."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer('values', values.detach())

    def forward(self, weight: Tensor) -> Tensor:
        return self.values


@contextlib.contextmanager
def traceable(model: QuantizedModel, largest: int = 127, float_layers: dict[str, str] | None = None):
    """Put operators into the places of all quantizers for a while.

    Args:
        model (QuantizedModel): With ranges, and codes of all weights.
        largest (int): See :func:`integer_weight`.
        float_layers (dict | None): Filled with layers whose weights no integer kernel takes, and why; None: they are an
            error.

    Raises:
        ExportError: Without a range, and for what integer kernels do not take, with the names.
    """
    layers = model.quantized_layers()
    weights, refused = {}, {}
    for name, layer in layers.items():
        try:
            weights[name] = _Codes(integer_weight(layer, largest))
        except NotInteger as error:
            refused[name] = str(error)
            weights[name] = _Floats(layer.quantized_weight)
    if refused and float_layers is None:
        name, why = next(iter(refused.items()))
        raise ExportError(f'{len(refused)} layers have weights that integer kernels do not take, the first one is '
                          f'{name}: {why}. To keep them float in the file allow it (allow_float=True, --allow-float)')
    if float_layers is not None:
        float_layers.update(refused)
    activations = {name: _activation(name, q) for name, q in model.activation_quantizers().items()}
    quantizers = model.activation_quantizers()
    before = {name: (x._modules['weight_quantizer'], x.adapters, x._parameters['weight']) for name, x in layers.items()}
    try:
        for name, layer in layers.items():
            weight = before[name][2]
            layer.weight_quantizer, layer.adapters = weights[name], nn.ModuleList()
            layer._parameters['weight'] = nn.Parameter(torch.zeros(()).expand(weight.shape), False)
        for name, forward in activations.items():
            quantizers[name].__dict__['forward'] = forward
        with traceable_deform_conv():
            yield
    finally:
        for name, layer in layers.items():
            layer.weight_quantizer, layer.adapters, layer._parameters['weight'] = before[name]
        for quantizer in quantizers.values():
            quantizer.__dict__.pop('forward', None)


def _activation(name: str, quantizer: Quantizer):
    """What stands for the ``forward`` of an activation quantizer."""
    if not quantizer.initialized:
        raise ExportError(f'{name} has no range yet: calibrate the model first (tools/ptq.py, mmquant.quantize)')
    if not quantizer.enabled:
        return lambda x: x
    form = quantizer.affine_form((1, quantizer.num_channels)) if quantizer.num_scales == 1 else \
        (quantizer.scale, quantizer.zero_point, *quantizer.code_range)
    if form is None or quantizer.keep_mean:
        raise ExportError(f'{name}: no runtime has the levels of {type(quantizer).__name__} for activations; quantize '
                          'it by UniformAffineQuantizer')
    scale, zero_point, q_min, q_max = form
    if quantizer.num_scales > 1 or quantizer.bit_width > 8:
        return _in_float(scale, zero_point, q_min, q_max)
    step, zero = float(scale), int(zero_point)
    shift = -q_min  # signed codes become unsigned ones
    return lambda x: quantize_dequantize(x, step, zero + shift, 0, q_max + shift)


def _in_float(scale: Tensor, zero_point: Tensor, q_min: int, q_max: int):
    """Quantization in plain float operations, for scales of channels and for codes above 8 bits."""
    low, high, scale = q_min - zero_point, q_max - zero_point, scale.clone()

    def forward(x: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(torch.round(x / scale), low), high) * scale

    return forward
