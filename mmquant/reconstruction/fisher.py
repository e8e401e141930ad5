"""Squared gradients of the task loss at a unit's output."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_leaves, tree_map

from mmquant.models.layers import enabled
from mmquant.reconstruction.replay import Stream
from mmquant.structures.unit import Unit


def divergence(quantized, reference) -> torch.Tensor:
    """Sum over samples of KL(reference || quantized) over the last axis (logits); all tensors of the output count."""
    total = 0
    for q, r in zip(_tensors(quantized), _tensors(reference)):
        total = total + F.kl_div(q.float().log_softmax(-1), r.float().log_softmax(-1), reduction='sum', log_target=True)
    return total


def _tensors(tree) -> list[torch.Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor) and x.is_floating_point()]


def fisher_diagonal(stream: Stream, unit: Unit, quantizers: list, references: list) -> torch.Tensor:
    """Squared gradients of KL(float || quantized) at the output of ``unit``, one tensor an image, scaled to mean 1.

    Args:
        stream (Stream): Stands at the entry of ``unit`` with the quantized prefix's activations.
        unit (Unit): The unit.
        quantizers (list): Quantizers inside the unit to switch on; behind it the net is float.
        references (list): Float outputs of the net for each chunk.

    Returns:
        Tensor: Shape of the unit's output over all samples. All ones if every gradient is zero.
    """
    parts = [_squared_gradient(stream, unit, quantizers, i, r) for i, r in enumerate(references)]
    squared = torch.cat(parts)
    mean = squared.mean()
    return squared / mean if mean > 0 else torch.ones_like(squared)


def _squared_gradient(stream: Stream, unit: Unit, quantizers: list, index: int, reference) -> torch.Tensor:
    """Squared gradient of the divergence at the unit's output, for one chunk."""
    leaves = []

    def answer(forward, args, kwargs):
        with torch.no_grad(), enabled(quantizers, True):
            out = forward(*args, **kwargs)
        out = tree_map(lambda x: x.detach().requires_grad_() if isinstance(x, torch.Tensor) else x, out)
        leaves.extend(_tensors(out))
        return out

    with torch.enable_grad():
        output = stream.run_behind(unit, index, answer)
        return torch.autograd.grad(divergence(output, reference), leaves)[0].square()
