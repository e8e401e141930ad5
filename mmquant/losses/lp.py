"""Distances between a unit's quantized and float output."""
import torch

from mmquant.ops import power_distance


class LpLoss:
    """Mean over samples and positions of the sum over channels of ``|prediction - target|**p`` (BRECQ's code).

    Args:
        p (float): Exponent, at least 1. Default 2.
        reduction (str): ``'channel_sum'`` (default; the rounding regularizer's weight is tuned for it) or ``'mean'``.

    Raises:
        ValueError: If ``p`` is below 1 or the reduction is unknown.
    """

    def __init__(self, p: float = 2.0, reduction: str = 'channel_sum') -> None:
        if p < 1:
            raise ValueError(f'p must be at least 1, got {p}')
        if reduction not in ('channel_sum', 'mean'):
            raise ValueError(f'reduction must be "channel_sum" or "mean", got {reduction!r}')
        self.p, self.reduction = p, reduction

    def __call__(self, prediction: torch.Tensor, target: torch.Tensor, channel_dim: int,
                 weight: torch.Tensor | None = None) -> torch.Tensor:
        """Loss of one batch; ``weight`` (importance of each element) has the shape of the others, samples first."""
        per_position = 1 if self.reduction == 'mean' else prediction.shape[channel_dim]
        positions = prediction.numel() // per_position
        if weight is None:
            return power_distance(prediction, target, self.p, positions)
        return ((prediction - target).float().abs().pow(self.p) * weight).sum() / positions
