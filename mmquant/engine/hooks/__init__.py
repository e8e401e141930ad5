from mmquant.engine.hooks.evaluation_hook import EvaluationHook
from mmquant.engine.hooks.report_hook import ReportHook

__all__ = ['EvaluationHook', 'ReportHook']
