from mmquant.reconstruction.hooks.hook import FitHook
from mmquant.reconstruction.hooks.keep_best import KeepBest
from mmquant.reconstruction.hooks.leave_stem import LeaveStem
from mmquant.reconstruction.hooks.unit_ranges import UnitRanges

__all__ = ['FitHook', 'KeepBest', 'LeaveStem', 'UnitRanges']
