"""Straight-through rounding: weight and grid are trained, the weight always rounded to nearest (AdaQuant's way)."""
import torch
from torch import Tensor, nn

from mmquant.registry import ROUNDINGS

from .rounding import Rounding


@ROUNDINGS.register_module()
class StraightThrough(Rounding):
    """Trains a copy of the weight (role ``weight``) and what the grid lets train, such as its scale (``weight_scale``).

    The gradient of rounding is that of the grid's ``nearest``: for uniform grids the identity's, 0 where a weight is
    clipped, and LSQ's for the scale (see ``ops.fake_quantize``). At 8 and 6 bits small moves of the weights suffice; at
    4 and less AdaRound does better.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter('weight', None)
        self.grid: nn.Module | None = None

    def _start(self, weight: Tensor, quantizer: nn.Module) -> None:
        self.weight = nn.Parameter(weight.clone())
        self.grid = quantizer.twin()

    def forward(self) -> Tensor:
        return self.grid.nearest(self.weight).to(self.weight_dtype)

    @torch.no_grad()
    def codes(self) -> Tensor:
        return self.grid.encode(self.weight)

    @torch.no_grad()
    def harden(self, quantizer: nn.Module) -> None:
        for own, learnt in zip(quantizer.state(), self.grid.state(), strict=True):
            own.copy_(learnt)
        super().harden(quantizer)

    def roles(self) -> dict[str, list[Tensor]]:
        # Grids name their roles for activations; of a weight they are others, with rates of their own.
        grid = {f'weight_{role.removeprefix("activation_")}': x for role, x in self.grid.trainables().items()}
        return {'weight': [self.weight], **grid}

    def constrain(self) -> None:
        self.grid.constrain()
