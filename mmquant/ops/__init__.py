from .affine_ranges import SCALE_FLOOR, affine_errors, affine_parameters, positive
from .bit_packing import pack_bits, packed_bytes, unpack_bits, width_of
from .elementwise import clamp, pieces, power_
from .fake_quantize import dequantize, fake_quantize, quantize
from .power_distance import power_distance
from .soft_round import rectified_sigmoid, regularized_soft_weight, rounding_regularizer, soft_weight

__all__ = ['SCALE_FLOOR', 'affine_errors', 'affine_parameters', 'clamp', 'dequantize', 'fake_quantize', 'pack_bits',
           'packed_bytes', 'pieces', 'positive', 'power_', 'power_distance', 'quantize', 'rectified_sigmoid',
           'regularized_soft_weight', 'rounding_regularizer', 'soft_weight', 'unpack_bits', 'width_of']
