"""The whole range."""

from torch import Tensor

from mmquant.registry import OBSERVERS

from .observer import Observer


@OBSERVERS.register_module()
class MinMaxObserver(Observer):
    """Exact minimum and maximum: nothing is clipped, outliers cost resolution. ``granularity``: See ``Observer``."""

    def _range(self, low: Tensor, high: Tensor, quantizer) -> tuple[Tensor, Tensor]:
        return low, high
