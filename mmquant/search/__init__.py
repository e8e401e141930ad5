from mmquant.search.calibration import Calibration
from mmquant.search.objectives import CrossEntropy, LogitDistance, Objective, OutputDivergence
from mmquant.search.parabola import fit_parabola
from mmquant.search.problem import ClipProblem
from mmquant.search.searcher import CoordinateDescent, GradientSearch, PatternSearch, PowellSearch, Searcher
from mmquant.search.training_loss import TrainingLoss

__all__ = ['Calibration', 'ClipProblem', 'CoordinateDescent', 'CrossEntropy', 'GradientSearch', 'LogitDistance',
           'Objective', 'OutputDivergence', 'PatternSearch', 'PowellSearch', 'Searcher', 'TrainingLoss', 'fit_parabola']
