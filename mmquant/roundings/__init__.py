from .adaround import AdaRound
from .nearest import NearestRounding
from .rounding import Rounding
from .straight_through import StraightThrough

__all__ = ['AdaRound', 'NearestRounding', 'Rounding', 'StraightThrough']
