from mmquant.search.parabola import fit_parabola
from mmquant.search.problem import ClipProblem
from mmquant.search.searcher import CoordinateDescent, GradientSearch, PatternSearch, PowellSearch, Searcher

__all__ = ['ClipProblem', 'CoordinateDescent', 'GradientSearch', 'PatternSearch', 'PowellSearch', 'Searcher',
           'fit_parabola']
