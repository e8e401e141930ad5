from mmquant.reconstruction.hooks import FitHook, KeepBest, LeaveStem, UnitRanges
from mmquant.reconstruction.mixers import ElementMix, Mixer
from mmquant.reconstruction.settings import Settings
from mmquant.reconstruction.terms import FisherLoss, Regularizer, RoundingRegularizer, TailLoss, Term, UnitLoss
from mmquant.reconstruction.unit_fit import UnitFit, reconstruct

__all__ = ['ElementMix', 'FisherLoss', 'FitHook', 'KeepBest', 'LeaveStem', 'Mixer', 'Regularizer',
           'RoundingRegularizer', 'Settings', 'TailLoss', 'Term', 'UnitFit', 'UnitLoss', 'UnitRanges', 'reconstruct']
