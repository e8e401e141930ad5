"""Distance of a unit's output from the float one."""
import torch

from mmquant.losses import LpLoss
from mmquant.reconstruction.terms.term import Term
from mmquant.registry import TERMS


@TERMS.register_module()
class UnitLoss(Term):
    """``|unit(x) - float unit(x)|^p`` at the unit's output.

    Args:
        p (float): Exponent, at least 1. Default 2.
        reduction (str): ``'channel_sum'`` (default) or ``'mean'``, see :class:`mmquant.losses.LpLoss`.
        weight, inputs: See :class:`Term`.
    """

    def __init__(self, p: float = 2.0, reduction: str = 'channel_sum', weight: float = 1.0,
                 inputs: str | None = None) -> None:
        super().__init__(weight, inputs)
        self._distance = LpLoss(p, reduction)

    def loss(self, prediction, target, channel_dim: int, importance=None) -> torch.Tensor:
        return self._distance(prediction, target, channel_dim, importance)
