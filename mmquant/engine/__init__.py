from mmquant.engine.hooks import EvaluationHook, ReportHook
from mmquant.engine.loops import CalibrationLoop

__all__ = ['CalibrationLoop', 'EvaluationHook', 'ReportHook']
