"""Codes of one layer's weight from the moments of its input, without back-propagation: the contract."""
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from mmquant.calibration.moments import Moments
from mmquant.quantizers.columns import Columns


class Solver(ABC):
    """Finds codes that change a layer's output little."""
    cross = False  # whether it needs the float network's rows beside those the layer meets
    max_columns: int | None = None  # wider weight matrices come to it in blocks of columns, as groups of their own

    @abstractmethod
    def solve(self, weight: Tensor, moments: Moments, columns: Columns) -> Tensor:
        """Codes (g, R, C) for a weight matrix (g, R, C), R output channels a group, by the moments of the rows that it
        multiplies, on a grid whose ranges are set."""


def better_rows(weight: Tensor, moments: Moments, columns: Columns, codes: Tensor, others: Tensor) -> Tensor:
    """For each output channel, which the error tells apart, those of two codes with the smaller error."""
    errors = [moments.error(weight, columns.decode(c)) for c in (codes, others)]
    return torch.where((errors[0] <= errors[1])[..., None], codes, others)
