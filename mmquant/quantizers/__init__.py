from .columns import Columns
from .grids import *  # noqa: F403 (a grid is one file and a line in grids/__init__.py)
from .no_zero import NoZeroQuantizer
from .quantizer import Quantizer
from .uniform_affine import UniformAffineQuantizer
from .wide import Wide

__all__ = ['Columns', 'NoZeroQuantizer', 'Quantizer', 'UniformAffineQuantizer', 'Wide']
