from .apot import APoTQuantizer
from .level_set import LevelSetQuantizer

__all__ = ['APoTQuantizer', 'LevelSetQuantizer']
