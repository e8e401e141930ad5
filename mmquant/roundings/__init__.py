from .adaround import AdaRound
from .nearest import NearestRounding
from .rounding import Rounding

__all__ = ['AdaRound', 'NearestRounding', 'Rounding']
