"""AdaRound: Up or Down? Adaptive Rounding for Post-Training Quantization (arXiv 2004.10568).

    min_v  |f(x; w~(v)) - f(x; w)|^2 + lambda * sum(1 - |2 h(v) - 1|^beta),
    w~ = scale * (clip(floor(w / scale) + h(v) + zero_point, q_min, q_max) - zero_point)

The loss and its schedule belong to the reconstruction; this file holds the variables of one weight.
"""
import torch
from torch import Tensor, nn

from mmquant.ops import rectified_sigmoid, regularized_soft_weight, rounding_regularizer, soft_weight
from mmquant.registry import ROUNDINGS

from .rounding import Rounding


@ROUNDINGS.register_module()
class AdaRound(Rounding):
    """Learns per weight whether to round down or up.

    The one parameter holds ``v``, of the weight's shape, in the order of the weight in memory; ``start`` sets it such
    that the soft weight equals the float weight wherever that lies inside the grid's range. Rounds up where ``v >= 0``.

    Args:
        gamma: Lower stretch of the sigmoid, < 0. Default: -0.1.
        zeta: Upper stretch of the sigmoid, > 1. Default: 1.1.

    Raises:
        ValueError: Without stretch the decisions 0 and 1 could never be reached.
    """

    def __init__(self, gamma: float = -0.1, zeta: float = 1.1) -> None:
        super().__init__()
        if not (gamma < 0 and zeta > 1):
            raise ValueError(f'AdaRound got gamma={gamma}, zeta={zeta}: expected gamma < 0 and zeta > 1, such as -0.1 '
                             'and 1.1.')
        self.gamma, self.zeta = gamma, zeta
        self._axes = []
        self._beta, self._penalty = None, None  # what sharpen announced, and the regularizer that forward computed
        self.register_parameter('dense_v', None)
        self.register_buffer('base', None, persistent=False)

    def _start(self, weight: Tensor) -> None:
        steps = torch.div(weight, self.scale)
        self.base = steps.floor()
        fraction = steps.sub_(self.base)  # [0, 1]
        odds = fraction.sub_(self.gamma).reciprocal_().mul_(self.zeta - self.gamma).sub_(1)
        v = odds.log_().neg_()
        order = sorted(range(v.dim()), key=lambda d: -v.stride(d))
        self._axes = [order.index(d) for d in range(v.dim())]
        self.dense_v = nn.Parameter(v.permute(order))  # contiguous, which the optimizer is faster with

    @property
    def v(self) -> Tensor:
        """The variables, shape and memory order of the weight."""
        return self.dense_v.permute(self._axes)

    def forward(self) -> Tensor:
        variables = self.v, self.base, self.scale, self.zero_point, self.grid.q_min, self.grid.q_max
        if self._beta is None:
            return soft_weight(*variables, self.gamma, self.zeta).to(self.weight_dtype)
        weight, self._penalty = regularized_soft_weight(*variables, self._beta, self.gamma, self.zeta)
        return weight if weight.dtype == torch.bfloat16 else weight.to(self.weight_dtype)

    @torch.no_grad()
    def codes(self) -> Tensor:
        codes = self.base + (self.v >= 0).to(self.base.dtype)
        return codes.add_(self.zero_point).clamp_(self.grid.q_min, self.grid.q_max).to(self.grid.code_dtype)

    def sharpen(self, beta: float | Tensor) -> None:
        self._beta = beta

    def regularizer(self, beta: float | Tensor) -> Tensor:
        penalty, known = self._penalty, self._beta is beta
        self._beta = self._penalty = None
        if penalty is not None and known:
            return penalty
        return rounding_regularizer(self.v, beta, self.gamma, self.zeta)

    @torch.no_grad()
    def undecided(self) -> float:
        h = rectified_sigmoid(self.v, self.gamma, self.zeta)
        return ((h > 0.05) & (h < 0.95)).float().mean().item()
