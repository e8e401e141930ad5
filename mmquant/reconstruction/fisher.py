"""Squared gradients of the task loss at a unit's output."""
from __future__ import annotations

import torch
from torch.utils._pytree import tree_map_only

from mmquant.models.layers import enabled
from mmquant.reconstruction.divergence import divergence_gradients, float_tensors
from mmquant.reconstruction.replay import Stream
from mmquant.structures.unit import Unit


class _Cut:
    """Makes a unit's output, behind its own quantizer, the leaf of the gradients; the net behind it is float."""

    def __init__(self, quantizers: list) -> None:
        self.quantizers, self.reached, self.leaves = quantizers, False, []

    def answer(self, forward, args, kwargs):
        """Answers the unit's last call."""
        self.reached = True
        with torch.no_grad():
            return forward(*args, **kwargs)

    def hook(self, module, args, output):
        """Forward hook of the module that makes the unit's output."""
        if not self.reached:  # another call of a shared module
            return output
        self.reached = False
        for quantizer in self.quantizers:
            quantizer.enabled = False
        output = tree_map_only(torch.Tensor, lambda x: x.detach().requires_grad_(), output)
        self.leaves = float_tensors(output)
        return output


def fisher_diagonal(stream: Stream, unit: Unit, quantizers: list, references: list) -> torch.Tensor:
    """Squared gradients of the divergence of the net's outputs (KL for logits) at the output of ``unit``, one tensor an image, scaled to mean 1.

    Args:
        stream (Stream): Stands at the entry of ``unit`` with the quantized prefix's activations.
        unit (Unit): The unit; the activation behind it, if it has one, counts as part of it.
        quantizers (list): Quantizers inside the unit to switch on; behind it the net is float.
        references (list): Float outputs of the net for each chunk.

    Returns:
        Tensor: Shape of the unit's output over all samples. All ones if every gradient is zero.
    """
    parts = []
    module = stream.model.architecture.get_submodule(unit.activation or unit.name)
    for index, reference in enumerate(references):
        cut = _Cut(quantizers)
        handle = module.register_forward_hook(cut.hook)
        try:
            with torch.enable_grad(), enabled(quantizers, True):
                output = stream.run_behind(unit, index, cut.answer)
        finally:
            handle.remove()
        pairs = [(q, g) for q, g in zip(float_tensors(output), divergence_gradients(output, reference)) if q.requires_grad]
        if pairs:
            grads = torch.autograd.grad([q for q, _ in pairs], cut.leaves[:1], [g for _, g in pairs],
                                        materialize_grads=True)
            parts.append(grads[0].square())
        else:  # the unit does not influence the outputs
            parts.append(torch.zeros_like(cut.leaves[0]))
    squared = torch.cat(parts)
    mean = squared.mean()
    return squared / mean if mean > 0 else torch.ones_like(squared)
