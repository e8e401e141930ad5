"""Summands of what a unit is fitted to: the contracts of distances and of regularizers."""
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mmquant.calibration.context import Visit
from mmquant.reconstruction.problem import Comparison

if TYPE_CHECKING:
    from mmquant.reconstruction.unit_fit import UnitFit

INPUTS = (None, 'quant', 'float')


@dataclass(frozen=True)
class UnitData:
    """What terms may look at beside the visit."""
    targets: dict  # float output of the unit on all images, by (shape of an image, number of the unit's call)
    stream: str  # that the unit's inputs come from; it stands at the unit's entry
    quantizers: list  # those within the unit that are on
    pass_rows: int  # rows of a forward pass without gradients


class Term(ABC):
    """A weighted distance of outputs.

    Args:
        weight (float): Factor, at least 0; 0 takes the term out. Default 1.
        inputs (str | None): The stream that the unit reads for this term: ``'quant'``, ``'float'``. Default None: the
            inputs of the step, mixed if it mixes.

    Raises:
        ValueError: For a negative weight or another stream.
    """

    def __init__(self, weight: float = 1.0, inputs: str | None = None) -> None:
        if weight < 0:
            raise ValueError(f'weight must be at least 0, got {weight}')
        if inputs not in INPUTS:
            raise ValueError(f'inputs must be one of {INPUTS}, got {inputs!r}')
        self.weight, self.inputs = weight, inputs

    @abstractmethod
    def loss(self, prediction: torch.Tensor, target: torch.Tensor, channel_dim: int,
             importance: torch.Tensor | None = None) -> torch.Tensor:
        """Scalar distance of one batch, without the weight; ``importance`` of each element has the target's shape."""

    def look_ahead(self, visit: Visit, pass_rows: int) -> None:  # noqa: B027 (optional)
        """Take in what must be seen before the streams move on to the unit, such as the input of a stage."""

    def comparisons(self, visit: Visit, data: UnitData, importance: Mapping | None = None) -> dict[tuple, Comparison]:
        """What is compared, by (shape of an image, number of the call). Default: the unit's output with the float one,
        each element weighted by ``importance``."""
        return {key: Comparison(self.loss, target, visit.unit.channel_dim, self.weight, (importance or {}).get(key),
                                self.inputs) for key, target in data.targets.items()}


class Regularizer(ABC):
    """A weighted penalty on what trains, within a window of the steps.

    Args:
        weight (float): Factor, at least 0; 0 takes it out.
        begin, end (float): The window, as fractions of the steps, ``0 <= begin < end <= 1``.

    Raises:
        ValueError: For values out of range.
    """

    def __init__(self, weight: float, begin: float = 0.0, end: float = 1.0) -> None:
        if weight < 0 or not 0 <= begin < end <= 1:
            raise ValueError(f'expected weight >= 0 and a window 0 <= begin < end <= 1, got weight={weight}, '
                             f'begin={begin}, end={end}')
        self.weight, self.begin, self.end = weight, begin, end

    def for_unit(self, fit: 'UnitFit') -> 'Regularizer | None':
        """The regularizer of a unit, which may depend on it; None: the unit has nothing for it. Default: itself."""
        return self

    def active(self, step: int, num_iters: int) -> bool:
        """Whether it is on at ``step``."""
        return self.weight > 0 and self.begin * num_iters <= step and (self.end == 1 or step < self.end * num_iters)

    def push(self, step: int, num_iters: int) -> float:
        """The number that :meth:`penalty` gets at ``step``, such as an exponent. Default 1."""
        return 1.0

    def announce(self, fit: 'UnitFit', push) -> None:  # noqa: B027 (optional)
        """Called before the unit runs, for what can compute the penalty on its way."""

    @abstractmethod
    def penalty(self, fit: 'UnitFit', push) -> torch.Tensor:
        """Scalar without the weight; ``push`` is a number, or a scalar tensor on a GPU."""
