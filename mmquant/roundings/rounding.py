"""How a weight picks its level: the contract."""
from abc import abstractmethod

import torch
from torch import Tensor, nn

from mmquant.structures import IntegerGrid


class Rounding(nn.Module):
    """Chooses a code for each element of one weight on a fixed grid.

    Life: ``start`` with the float weight, train the parameters with ``forward`` in place of the weight, then store
    ``codes()`` in the quantizer, with ``learnt_scale()`` if there is one, and drop the rounding. ``start`` copies scale
    and zero point; a later change of the quantizer is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.grid: IntegerGrid | None = None
        self.weight_dtype = torch.float32
        # Rebuilt by start(), hence not in checkpoints.
        self.register_buffer('scale', None, persistent=False)
        self.register_buffer('zero_point', None, persistent=False)

    @torch.no_grad()
    def start(self, weight: Tensor, quantizer: nn.Module) -> None:
        """Begin at the float weight.

        Args:
            weight: Float weight, any shape.
            quantizer: An initialized ``UniformAffineQuantizer`` allocated for this shape.

        Raises:
            RuntimeError: The quantizer has no range yet.
        """
        if not quantizer.initialized:
            raise RuntimeError(f'{type(self).__name__} cannot start on a weight of shape {tuple(weight.shape)}: its '
                               'quantizer has no range yet. Call set_range first (in a recipe: the step '
                               'InitWeightRange).')
        scale, zero_point = quantizer.expanded(weight.shape)
        self.grid, self.weight_dtype = quantizer.grid, weight.dtype
        self.scale, self.zero_point = scale.detach().float().clone(), zero_point.detach().float().clone()
        self._start(weight.detach().float())

    @abstractmethod
    def _start(self, weight: Tensor) -> None:
        """Set the variables from the float32 weight; grid, scale and zero_point are set already."""

    @abstractmethod
    def forward(self) -> Tensor:
        """The weight to train with: soft, differentiable in the parameters, of the weight's shape and dtype."""

    @abstractmethod
    def codes(self) -> Tensor:
        """Hard decision: integer codes in ``q_min..q_max``, dtype ``grid.code_dtype``."""

    def sharpen(self, beta: float | Tensor) -> None:  # noqa: B027 (optional)
        """Announces that ``regularizer(beta)`` is asked for behind the next ``forward``, which may compute it too."""

    def regularizer(self, beta: float | Tensor) -> Tensor:
        """Scalar that pushes towards a decision; ``beta`` is the sharpness (see ``ops.rounding_regularizer``)."""
        return torch.zeros((), device=self.scale.device)

    def undecided(self) -> float:
        """Fraction (0..1) of elements that hardening may still move by more than 5 % of a step."""
        return 0.0

    def roles(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by what they are: each role has its own learning rate."""
        return {'rounding': list(self.parameters())}

    def constrain(self) -> None:  # noqa: B027 (optional)
        """Bring the parameters back to valid values; called behind each training step."""

    def learnt_scale(self) -> Tensor | None:
        """The scale that goes with ``codes()``, in the shape of the quantizer's; None where it was not trained."""
        return None
