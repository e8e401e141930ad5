from mmquant.losses.lp import FisherDiagLoss, LpLoss
from mmquant.losses.objectives import CrossEntropy, LogitDistance, Objective, OutputDivergence
from mmquant.losses.training_loss import TrainingLoss

__all__ = ['CrossEntropy', 'FisherDiagLoss', 'LogitDistance', 'LpLoss', 'Objective', 'OutputDivergence',
           'TrainingLoss']
