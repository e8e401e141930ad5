from mmquant.visualization.report_hook import ReportHook

__all__ = ['ReportHook']
