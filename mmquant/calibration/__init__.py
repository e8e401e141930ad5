from mmquant.calibration.cache import Cache
from mmquant.calibration.context import CalibrationContext
from mmquant.calibration.visits import Visit

__all__ = ['Cache', 'CalibrationContext', 'Visit']
