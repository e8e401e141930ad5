from mmquant.engine.loops.calibration_loop import CalibrationLoop

__all__ = ['CalibrationLoop']
