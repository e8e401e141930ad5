from .granularity import Granularity, PerChannel, PerGroup, PerTensor, build_granularity
from .integer_grid import IntegerGrid

__all__ = ['Granularity', 'IntegerGrid', 'PerChannel', 'PerGroup', 'PerTensor', 'build_granularity']
