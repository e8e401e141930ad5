from .level_set import LevelSetQuantizer

__all__ = ['LevelSetQuantizer']
