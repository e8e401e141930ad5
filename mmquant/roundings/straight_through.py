"""Straight-through rounding: weight and scale are trained, the weight always rounded to nearest (AdaQuant's way)."""
import torch
from torch import Tensor, nn

from mmquant.ops import fake_quantize, quantize
from mmquant.ops.affine_parameters import SCALE_FLOOR
from mmquant.registry import ROUNDINGS

from .rounding import Rounding


@ROUNDINGS.register_module()
class StraightThrough(Rounding):
    """Trains a copy of the weight (role ``weight``) and the scale (role ``weight_scale``); the zero point stays.

    The gradient of rounding is taken as that of the identity, 0 where a weight is clipped; the scale's is that of LSQ
    (see ``ops.fake_quantize``). At 8 and 6 bits small moves of the weights suffice; at 4 and less AdaRound does better.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter('weight', None)
        self.register_parameter('step', None)
        self.granularity = None

    def start(self, weight: Tensor, quantizer: nn.Module) -> None:
        super().start(weight, quantizer)
        self.granularity = quantizer.granularity
        self.step = nn.Parameter(quantizer.scale.detach().float().clone())

    def _start(self, weight: Tensor) -> None:
        self.weight = nn.Parameter(weight.clone())

    def _scale(self) -> Tensor:
        return self.granularity.expand(self.step, self.weight.shape)

    def forward(self) -> Tensor:
        quantized = fake_quantize(self.weight, self._scale(), self.zero_point, self.grid.q_min, self.grid.q_max)
        return quantized.to(self.weight_dtype)

    @torch.no_grad()
    def codes(self) -> Tensor:
        codes = quantize(self.weight, self._scale(), self.zero_point, self.grid.q_min, self.grid.q_max)
        return codes.to(self.grid.code_dtype)

    def roles(self) -> dict[str, list[nn.Parameter]]:
        return {'weight': [self.weight], 'weight_scale': [self.step]}

    @torch.no_grad()
    def constrain(self) -> None:
        self.step.clamp_(min=SCALE_FLOOR)

    def learnt_scale(self) -> Tensor:
        return self.step.detach()
