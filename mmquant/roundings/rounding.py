"""How a weight picks its level: the contract, and the nearest one, where nothing is learned."""
from abc import abstractmethod

import torch
from torch import Tensor, nn

from mmquant.registry import ROUNDINGS


class Rounding(nn.Module):
    """Chooses a code for each element of one weight, on any grid.

    Life: ``start`` with the float weight, train the tensors of ``roles`` with ``forward`` in place of the weight, then
    ``harden``, which writes codes and all else that was learnt into the quantizer, and drop the rounding. ``start``
    copies what it needs of the grid; a later change of the quantizer is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        # Sharpness of the regularizer (see `ops.rounding_regularizer`), set by the training loop; and what the last
        # forward found while it was set: a scalar that pushes towards a decision, None where all is decided.
        self.beta: float | Tensor | None = None
        self.penalty: Tensor | None = None
        self.weight_dtype = torch.float32

    @torch.no_grad()
    def start(self, weight: Tensor, quantizer: nn.Module) -> None:
        """Begin at the float weight, of the shape that its ``Quantizer`` is allocated for.

        Raises:
            RuntimeError: The quantizer has no range yet.
        """
        if not quantizer.initialized:
            raise RuntimeError(f'{type(self).__name__} cannot start on a weight of shape {tuple(weight.shape)}: its '
                               'quantizer has no range yet. Call set_range first (in a recipe: the step '
                               'InitWeightRange).')
        self.weight_dtype = weight.dtype
        self._start(weight.detach().float(), quantizer)

    @abstractmethod
    def _start(self, weight: Tensor, quantizer: nn.Module) -> None:
        """Set the variables from the float32 weight, and keep copies of the quantizer's parameters."""

    @abstractmethod
    def forward(self) -> Tensor:
        """The weight to train with: soft, differentiable in the parameters, of the weight's shape and dtype."""

    @abstractmethod
    def codes(self) -> Tensor:
        """Hard decision: integer codes, as from ``quantizer.encode``."""

    @torch.no_grad()
    def harden(self, quantizer: nn.Module) -> None:
        """Write what was learnt, and the codes, into the quantizer."""
        quantizer.set_codes(self.codes())

    def undecided(self) -> float:
        """Fraction (0..1) of elements that hardening may still move by more than 5 % of a step."""
        return 0.0

    def roles(self) -> dict[str, list[Tensor]]:
        """Tensors to train by what they are: each role has its own learning rate."""
        return {'rounding': list(self.parameters())}

    def constrain(self) -> None:  # noqa: B027 (optional)
        """Bring what trains back to valid values; called after each training step."""


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
