from .columns import Columns
from .no_zero import NoZeroQuantizer
from .quantizer import Quantizer
from .uniform_affine import UniformAffineQuantizer

__all__ = ['Columns', 'NoZeroQuantizer', 'Quantizer', 'UniformAffineQuantizer']
