"""What happens around the steps of a unit's fit: the contract of all hooks."""
from typing import TYPE_CHECKING

from mmquant.reconstruction.optimizers import ParamGroup
from mmquant.structures.unit import Unit

if TYPE_CHECKING:
    from mmquant.reconstruction.unit_fit import UnitFit


class FitHook:
    """Base of all hooks; each method may stay as it is.

    One hook serves all units, one after another; ``before_fit`` begins anew. Hooks are called in the config's order.
    """
    held_out = 0  # calibration rows that it wants kept out of the fit

    def wanted(self, model, unit: Unit, trains: bool) -> bool:
        """Whether the unit is to be reconstructed. ``trains``: whether more than its weights would train."""
        return True

    def before_fit(self, fit: 'UnitFit') -> None:
        """Before the first step; weights are not soft yet."""

    def after_step(self, fit: 'UnitFit', step: int) -> list[ParamGroup] | None:
        """After each update. What is returned trains from now on, with optimizers that begin anew; None: as before."""

    def after_fit(self, fit: 'UnitFit') -> dict:
        """After the last step, when the unit is decided (weights hard); returns facts for the record."""
        return {}
