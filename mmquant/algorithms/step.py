"""One stage of an algorithm."""
from mmquant.calibration.context import CalibrationContext


class Step:
    """Base of all steps; ``name`` is that of the stage in results."""
    structural = False  # rebuilds structure from the float weights; runs again when a run is resumed
    # Gives the same result in every process where the images are scattered over several: sums over images are summed
    # over processes (`mmquant.utils.distributed`).
    distributed = True
    evaluates: tuple[bool, bool] | None = None  # quantization of (weights, activations) to evaluate after this step
    unit: str | None = None  # kind of the units that it goes through; None: of none

    def __init__(self, name: str | None = None) -> None:
        self.name = name or type(self).__name__

    def run(self, context: CalibrationContext) -> None:
        """Change ``context.model``."""
        raise NotImplementedError(f'{type(self).__name__} does not define run(context)')

    def image_passes(self, units: int) -> int:
        """Images that pass the whole net forward and backward in all ``units``, for the estimate of a dry run."""
        return 0
