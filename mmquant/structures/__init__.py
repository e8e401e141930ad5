from .granularity import Granularity, PerChannel, PerGroup, PerTensor, build_granularity
from .integer_grid import IntegerGrid, code_dtype

__all__ = ['Granularity', 'IntegerGrid', 'PerChannel', 'PerGroup', 'PerTensor', 'build_granularity', 'code_dtype']
