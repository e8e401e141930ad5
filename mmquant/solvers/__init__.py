from .gptq import GPTQ
from .solver import Solver, better_rows

__all__ = ['GPTQ', 'Solver', 'better_rows']
