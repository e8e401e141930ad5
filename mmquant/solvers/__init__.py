from mmquant.solvers.gptq import GPTQ
from mmquant.solvers.solver import Solver, better_rows

__all__ = ['GPTQ', 'Solver', 'better_rows']
