from .quantizer import Quantizer
from .uniform_affine import UniformAffineQuantizer

__all__ = ['Quantizer', 'UniformAffineQuantizer']
