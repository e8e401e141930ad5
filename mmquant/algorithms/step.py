"""One stage of an algorithm."""
from __future__ import annotations

from mmquant.calibration.context import CalibrationContext


class Step:
    """Base of all steps.

    Attributes:
        structural (bool): Rebuilds structure from the float weights; runs again when a run is resumed.
        evaluates (tuple[bool, bool] | None): Quantization of (weights, activations) to evaluate after this step.
        distributed (bool): Gives the same result in every process where the images are scattered over several. Default
            True: sums over images are to be summed over processes (:mod:`mmquant.utils.distributed`).
        unit (str | None): Kind of the units that it goes through; None, the default: of none.
        name (str): Name of the stage in results.
    """
    structural = False
    distributed = True
    evaluates: tuple[bool, bool] | None = None
    unit: str | None = None

    def __init__(self, name: str | None = None) -> None:
        self.name = name or type(self).__name__

    def run(self, context: CalibrationContext) -> None:
        """Change ``context.model``."""
        raise NotImplementedError(f'{type(self).__name__} does not define run(context)')

    def image_passes(self, units: int) -> int:
        """Images that pass the whole net forward and backward in this step, over all of its ``units`` together.

        A dry run estimates the time from it. Default 0: nothing worth telling.
        """
        return 0
