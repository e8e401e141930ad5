"""How an executor computes, and what it notes down on the way."""
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmquant.export.executor.requantize import rescale


@dataclass
class Arithmetic:
    """Args:
        mode (str): Requantization: ``'ort'``, ``'exact'``, ``'single'`` or ``'double'``.
        carrier (torch.dtype): Type of the sums, float64 or int64; the results are the same.
        largest (dict[str, int]): Largest |accumulator| of each node, over all runs.
        macs (dict[str, int]): Multiplications of each node's last run.
    """
    mode: str = 'ort'
    carrier: torch.dtype = torch.float64
    largest: dict[str, int] = field(default_factory=dict)
    macs: dict[str, int] = field(default_factory=dict)

    def record(self, name: str, acc: Tensor, macs: int = 0) -> None:
        """Raises:
            OverflowError: An accumulator does not fit int32.
        """
        low, high = (int(v) for v in acc.aminmax()) if acc.numel() else (0, 0)
        if low < -2**31 or high >= 2**31:
            raise OverflowError(f'{name}: accumulators in {low}..{high} do not fit int32')
        self.largest[name] = max(self.largest.get(name, 0), -low, high)
        self.macs[name] = macs

    def rescale(self, acc: Tensor, up: list[Tensor], down: list[Tensor]) -> Tensor:
        """See :func:`~mmquant.export.executor.requantize.rescale`."""
        return rescale(acc, up, down, self.mode)
