from .histogram_kl import HistogramKLObserver
from .lp_norm import LpNormObserver
from .min_max import MinMaxObserver
from .observer import Observer
from .percentile import PercentileObserver
from .sampled import SampledObserver

__all__ = ['HistogramKLObserver', 'LpNormObserver', 'MinMaxObserver', 'Observer', 'PercentileObserver',
           'SampledObserver']
