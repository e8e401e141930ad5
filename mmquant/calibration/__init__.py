from mmquant.calibration.cache import Cache
from mmquant.calibration.context import CalibrationContext, Visit

__all__ = ['Cache', 'CalibrationContext', 'Visit']
