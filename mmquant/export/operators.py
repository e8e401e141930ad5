"""Operators that stand for a quantizer, or for a compiled one of mmcv, while a model is exported; their ONNX nodes.

They compute what the model computes, so the exported program can be compared with the model before it is written.
"""
import contextlib
import sys
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.utils import _pair

from mmquant.export._extras import need
from mmquant.ops import fake_quantize


@torch.library.custom_op('mmquant::quantize_dequantize', mutates_args=())
def quantize_dequantize(x: Tensor, scale: float, zero_point: int, q_min: int, q_max: int) -> Tensor:
    """Values of ``clip(round(x / scale) + zero_point, q_min, q_max)``, codes within 0..255; one scale a tensor."""
    step, zero = (x.new_tensor(float(v), dtype=torch.float32) for v in (scale, zero_point))
    return fake_quantize(x, step, zero, q_min, q_max).clone()


@quantize_dequantize.register_fake
def _(x: Tensor, scale: float, zero_point: int, q_min: int, q_max: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op('mmquant::dequantize_weight', mutates_args=())
def dequantize_weight(codes: Tensor, scale: Tensor, axis: int) -> Tensor:
    """``scale * codes``: int8 codes, float32 scales of the channels on ``axis``."""
    shape = [1] * codes.dim()
    shape[axis] = -1
    return codes.to(scale.dtype) * scale.view(shape)


@dequantize_weight.register_fake
def _(codes: Tensor, scale: Tensor, axis: int) -> Tensor:
    return torch.empty_like(codes, dtype=scale.dtype)


@torch.library.custom_op('mmquant::deform_conv2d', mutates_args=())
def deform_conv2d(x: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor | None,
                  stride: list[int], padding: list[int], dilation: list[int], groups: int, offset_groups: int
                  ) -> Tensor:
    """mmcv's deformable convolution, modulated with a mask; sizes are (height, width)."""
    from mmcv.ops.deform_conv import DeformConv2dFunction
    from mmcv.ops.modulated_deform_conv import ModulatedDeformConv2dFunction
    x, offset, weight = x.contiguous(), offset.contiguous(), weight.contiguous()
    if mask is None:
        return DeformConv2dFunction.apply(x, offset, weight, stride, padding, dilation, groups, offset_groups)
    return ModulatedDeformConv2dFunction.apply(x, offset, mask.contiguous(), weight, bias, stride, padding, dilation,
                                               groups, offset_groups)


@deform_conv2d.register_fake
def _(x, offset, mask, weight, bias, stride, padding, dilation, groups, offset_groups):
    return x.new_empty(x.shape[0], weight.shape[0], *offset.shape[2:])


@contextlib.contextmanager
def traceable_deform_conv():
    """Let mmcv's deformable convolutions call the operator above, which torch's exporter can follow."""
    if 'mmcv.ops' not in sys.modules:
        yield
        return
    places = [(module, name) for module in list(sys.modules.values()) for name in DEFORMABLE
              if callable(vars(module).get(name)) and getattr(vars(module)[name], '__name__', '') == 'apply']
    before = {place: getattr(*place) for place in places}
    for module, name in places:
        setattr(module, name, DEFORMABLE[name])
    try:
        yield
    finally:
        for place, function in before.items():
            setattr(*place, function)


def _plain(x, offset, weight, stride=1, padding=0, dilation=1, groups=1, deform_groups=1, bias=False, im2col_step=32):
    return deform_conv2d(x, offset, None, weight, None, *map(_pair, (stride, padding, dilation)), groups,
                         deform_groups)


def _modulated(x, offset, mask, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, deform_groups=1):
    return deform_conv2d(x, offset, mask, weight, bias, *map(_pair, (stride, padding, dilation)), groups,
                         deform_groups)


DEFORMABLE = dict(deform_conv2d=_plain, modulated_deform_conv2d=_modulated)


def translations() -> dict:
    """Operator -> its nodes, for ``torch.onnx.export(custom_translation_table=...)``, opset 21."""
    op = need('onnxscript').opset21

    def activation(x, scale: float, zero_point: int, q_min: int, q_max: int):
        step = op.Constant(value=_constant(np.float32(scale)))
        zero = op.Constant(value=_constant(np.uint8(zero_point)))
        codes = op.QuantizeLinear(x, step, zero)
        if (q_min, q_max) != (0, 255):
            ends = (op.Constant(value=_constant(np.uint8(end))) for end in (q_min, q_max))
            codes = op.Clip(codes, *ends)
        return op.DequantizeLinear(codes, step, zero)

    def weight(codes, scale, axis: int):
        zeros = op.CastLike(op.Sub(scale, scale), codes)
        return op.DequantizeLinear(codes, scale, zeros, axis=axis)

    def deformable(x, offset, mask, weight, bias, stride: Sequence[int], padding: Sequence[int],
                   dilation: Sequence[int], groups: int, offset_groups: int):
        return op.DeformConv(x, weight, offset, bias, mask, strides=stride, pads=[*padding, *padding],
                             dilations=dilation, group=groups, offset_group=offset_groups,
                             kernel_shape=[int(n) for n in weight.shape[2:]])

    return {torch.ops.mmquant.quantize_dequantize.default: activation,
            torch.ops.mmquant.deform_conv2d.default: deformable,
            torch.ops.mmquant.dequantize_weight.default: weight}


def _constant(value):
    return need('onnx.numpy_helper').from_array(value)
