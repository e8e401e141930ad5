"""Two operators that stand for a quantizer while a model is exported, and the ONNX nodes that they become.

Both compute what the quantizers compute, so the exported program can be compared with the model before it is written.
"""
import numpy as np
import torch
from torch import Tensor

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

    return {torch.ops.mmquant.quantize_dequantize.default: activation,
            torch.ops.mmquant.dequantize_weight.default: weight}


def _constant(value):
    return need('onnx.numpy_helper').from_array(value)
