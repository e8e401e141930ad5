"""Round to nearest, half to even: nothing to learn."""
from torch import Tensor

from mmquant.ops import dequantize, quantize
from mmquant.registry import ROUNDINGS

from .rounding import Rounding


@ROUNDINGS.register_module()
class NearestRounding(Rounding):
    """Each weight takes the nearest level; the baseline of all other roundings."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer('nearest', None, persistent=False)

    def _start(self, weight: Tensor) -> None:
        codes = quantize(weight, self.scale, self.zero_point, self.grid.q_min, self.grid.q_max)
        self.nearest = codes.to(self.grid.code_dtype)

    def forward(self) -> Tensor:
        return dequantize(self.nearest, self.scale, self.zero_point).to(self.weight_dtype)

    def codes(self) -> Tensor:
        return self.nearest.clone()
