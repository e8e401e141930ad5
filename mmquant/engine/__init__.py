from mmquant.engine.hooks import EvaluationHook
from mmquant.engine.loops import CalibrationLoop

__all__ = ['CalibrationLoop', 'EvaluationHook']
