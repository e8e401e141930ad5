from mmquant.reconstruction.losses import FisherDiagLoss, LpLoss
from mmquant.reconstruction.mixing import ElementMix

__all__ = ['ElementMix', 'FisherDiagLoss', 'LpLoss']
