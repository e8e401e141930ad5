"""AdaRound: Up or Down? Adaptive Rounding for Post-Training Quantization (arXiv 2004.10568).

    min_v  |f(x; w~(v)) - f(x; w)|^2 + lambda * sum(1 - |2 h(v) - 1|^beta),
    w~ = lower(w) + h(v) * (upper(w) - lower(w))

between the neighbours of w on any grid; on the uniform one that is

    w~ = scale * (clip(floor(w / scale) + h(v) + zero_point, q_min, q_max) - zero_point)

The loss and its schedule belong to the reconstruction; this file holds the variables of one weight.
"""
import torch
from torch import Tensor, nn

from mmquant.ops import rectified_sigmoid, regularized_soft_weight, rounding_regularizer, soft_weight
from mmquant.registry import ROUNDINGS
from mmquant.structures import code_dtype

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
        self._axes: list[int] = []
        self._ends: tuple[int, int] | None = None  # of the codes of a uniform grid, which has kernels of its own
        self.grid: nn.Module | None = None
        self.register_parameter('dense_v', None)
        for name in ('base', 'scale', 'zero_point', 'lower', 'upper'):  # rebuilt by start
            self.register_buffer(name, None, persistent=False)

    def _start(self, weight: Tensor, quantizer: nn.Module) -> None:
        form = quantizer.affine_form(weight.shape)
        if form is None:
            self.grid, self._ends = quantizer.twin(), None
            self.lower, self.upper = quantizer.neighbours(weight)
            width = self.upper - self.lower
            fraction = torch.where(width > 0, (weight - self.lower) / width, 0.0)
        else:
            scale, zero_point, *self._ends = form
            self.scale, self.zero_point = scale.detach().float().clone(), zero_point.detach().float().clone()
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
        if self._ends is None:
            if self.beta is not None:
                self.penalty = rounding_regularizer(self.v, self.beta, self.gamma, self.zeta)
            h = rectified_sigmoid(self.v, self.gamma, self.zeta)
            return (self.lower + h * (self.upper - self.lower)).to(self.weight_dtype)
        variables = self.v, self.base, self.scale, self.zero_point, *self._ends
        if self.beta is None:
            return soft_weight(*variables, self.gamma, self.zeta).to(self.weight_dtype)
        weight, self.penalty = regularized_soft_weight(*variables, self.beta, self.gamma, self.zeta)
        return weight if weight.dtype == torch.bfloat16 else weight.to(self.weight_dtype)

    @torch.no_grad()
    def codes(self) -> Tensor:
        up = self.v >= 0
        if self._ends is None:
            return self.grid.encode(torch.where(up, self.upper, self.lower))
        codes = self.base + up.to(self.base.dtype)
        return codes.add_(self.zero_point).clamp_(*self._ends).to(code_dtype(*self._ends))

    @torch.no_grad()
    def undecided(self) -> float:
        h = rectified_sigmoid(self.v, self.gamma, self.zeta)
        return ((h > 0.05) & (h < 0.95)).float().mean().item()
