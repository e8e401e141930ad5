from mmquant.search.objectives import CrossEntropy, Objective, OutputDistance, OutputKL
from mmquant.search.parabola import fit_parabola
from mmquant.search.problem import ClipProblem
from mmquant.search.searcher import CoordinateDescent, DescentAndPolish, PowellSearch, Searcher

__all__ = ['ClipProblem', 'CoordinateDescent', 'CrossEntropy', 'DescentAndPolish', 'Objective', 'OutputDistance',
           'OutputKL', 'PowellSearch', 'Searcher', 'fit_parabola']
