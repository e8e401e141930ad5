from mmquant.reconstruction.losses import FisherDiagLoss, LpLoss

__all__ = ['FisherDiagLoss', 'LpLoss']
