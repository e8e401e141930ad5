from mmquant.visualization.landscape import plot_hessian, plot_norms, plot_surface
from mmquant.visualization.report_hook import ReportHook

__all__ = ['ReportHook', 'plot_hessian', 'plot_norms', 'plot_surface']
