from mmquant.visualization.landscape import plot_hessian, plot_norms, plot_surface

__all__ = ['plot_hessian', 'plot_norms', 'plot_surface']
