from mmquant.reconstruction.terms.fisher_loss import FisherLoss
from mmquant.reconstruction.terms.rounding_regularizer import RoundingRegularizer
from mmquant.reconstruction.terms.tail_loss import TailLoss
from mmquant.reconstruction.terms.term import Regularizer, Term, UnitData
from mmquant.reconstruction.terms.unit_loss import UnitLoss

__all__ = ['FisherLoss', 'Regularizer', 'RoundingRegularizer', 'TailLoss', 'Term', 'UnitData', 'UnitLoss']
