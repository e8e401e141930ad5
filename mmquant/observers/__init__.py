from .histogram_kl import HistogramKLObserver
from .lp_norm import LpNormObserver
from .observer import MinMaxObserver, Observer
from .percentile import PercentileObserver
from .sampled import SampledObserver

__all__ = ['HistogramKLObserver', 'LpNormObserver', 'MinMaxObserver', 'Observer', 'PercentileObserver',
           'SampledObserver']
