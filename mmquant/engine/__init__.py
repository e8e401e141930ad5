from mmquant.engine.hooks import EvaluationHook, ReportHook
from mmquant.engine.loops import CalibrationLoop
from mmquant.engine.sources import LoaderImages, Source

__all__ = ['CalibrationLoop', 'EvaluationHook', 'LoaderImages', 'ReportHook', 'Source']
