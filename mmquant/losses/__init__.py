from mmquant.losses.lp import LpLoss
from mmquant.losses.objectives import CrossEntropy, LogitDistance, Objective, OutputDivergence, TrainingLoss

__all__ = ['CrossEntropy', 'LogitDistance', 'LpLoss', 'Objective', 'OutputDivergence', 'TrainingLoss']
