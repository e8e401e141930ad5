"""Round to nearest: nothing to learn."""
from torch import Tensor, nn

from mmquant.registry import ROUNDINGS

from .rounding import Rounding


@ROUNDINGS.register_module()
class NearestRounding(Rounding):
    """Each weight takes the nearest level; the baseline of all other roundings."""

    def __init__(self) -> None:
        super().__init__()
        self.grid: nn.Module | None = None
        self.register_buffer('nearest', None, persistent=False)

    def _start(self, weight: Tensor, quantizer: nn.Module) -> None:
        self.grid = quantizer.twin()
        self.nearest = quantizer.encode(weight)

    def forward(self) -> Tensor:
        return self.grid.decode(self.nearest).to(self.weight_dtype)

    def codes(self) -> Tensor:
        return self.nearest.clone()
