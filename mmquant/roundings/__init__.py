from .adaround import AdaRound
from .rounding import NearestRounding, Rounding
from .straight_through import StraightThrough

__all__ = ['AdaRound', 'NearestRounding', 'Rounding', 'StraightThrough']
