from .affine_parameters import SCALE_FLOOR, affine_parameters
from .clamp import clamp
from .fake_quantize import dequantize, fake_quantize, quantize
from .soft_round import rectified_sigmoid, rounding_regularizer, soft_weight

__all__ = [
    'SCALE_FLOOR', 'affine_parameters', 'clamp', 'dequantize', 'fake_quantize', 'quantize', 'rectified_sigmoid',
    'rounding_regularizer', 'soft_weight'
]
