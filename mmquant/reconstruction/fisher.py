"""Squared gradients of the task loss at a unit's output."""
from collections.abc import Callable

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from mmquant.calibration.stream import Stream
from mmquant.calibration.unit_inputs import output_of
from mmquant.losses.divergence import divergence_gradients, float_tensors
from mmquant.models.layers import enabled
from mmquant.reconstruction.rest_of_net import last_call
from mmquant.structures.unit import Unit
from mmquant.utils.distributed import mean_over_ranks


class _Cut:
    """Makes the outputs of a unit, behind its own quantizer, the leaves of the gradients; the net behind is float."""

    def __init__(self, quantizers: list) -> None:
        self.quantizers, self.reached, self.leaves = quantizers, False, []

    def answer(self, forward, args, kwargs):  # the unit's last calls
        self.reached = True
        with torch.no_grad():
            return self.begin(forward, args, kwargs)

    def begin(self, forward, args, kwargs):  # the unit where an activation follows
        self._switch(True)
        return forward(*args, **kwargs)

    def _switch(self, state: bool) -> None:
        for quantizer in self.quantizers:
            quantizer.enabled = state

    def hook(self, module, args, output):  # of the module that makes the unit's output
        if not self.reached:  # another call of a shared module
            return output
        self.reached = False
        self._switch(False)
        output = tree_map_only(torch.Tensor, lambda x: x.detach().requires_grad_(x.is_floating_point()), output)
        self.leaves.append(output_of(output))
        return output


def of_divergence(references: list) -> Callable:
    """Gradients of the divergence from the float outputs of each chunk, for :func:`fisher_diagonal`."""
    return lambda output, chunk: list(zip(float_tensors(output), divergence_gradients(output, references[chunk])))


def of_loss(loss: Callable) -> Callable:
    """Gradients of ``loss(output, chunk)``, a scalar, for :func:`fisher_diagonal`."""
    def gradients(output, chunk: int) -> list[tuple]:
        found = [x for x in float_tensors(output) if x.requires_grad]
        return list(zip(found, torch.autograd.grad(loss(output, chunk), found, materialize_grads=True,
                                                   retain_graph=True))) if found else []

    return gradients


def fisher_diagonal(stream: Stream, unit: Unit, quantizers: list, gradients: Callable) -> list[list]:
    """Squared gradients of a loss of the net's outputs at the output of ``unit``, scaled to mean 1 over all.

    For each chunk and call a tensor of the output's shape (a tuple for several); all ones if every gradient is zero.

    Args:
        stream (Stream): Stands at the entry of ``unit`` with the quantized prefix's activations.
        unit (Unit): The activation behind it, if it has one, counts as part of it.
        quantizers (list): Quantizers inside the unit to switch on; behind it the net is float.
        gradients (Callable): ``gradients(output, chunk)`` -> pairs of an output tensor and the loss's gradient there.
    """
    made = last_call(stream.flow, unit).outputs
    found, module = [], stream.model.architecture.get_submodule(unit.activation or unit.name)
    for index in range(len(stream.chunks)):
        cut = _Cut(quantizers)
        handle = module.register_forward_hook(cut.hook)
        try:
            with torch.enable_grad(), enabled(quantizers, False):
                output = stream.run_behind(unit, index, cut.answer, cut.begin)
        finally:
            handle.remove()
        leaves = tree_leaves(cut.leaves)
        pairs = [(q, g) for q, g in gradients(output, index) if q.requires_grad]
        if pairs:
            grads = torch.autograd.grad([q for q, _ in pairs], leaves, [g for _, g in pairs], materialize_grads=True)
        elif any(stream.flow.depends_on(v, *made) for v in stream.flow.calls[0].outputs):
            raise ValueError(f'behind unit {unit.name} the net runs without gradients (torch.no_grad or inference_mode '
                             "in a forward), so there is no Fisher information: take it out of the model's code, or "
                             'use another term than FisherLoss')
        else:  # the unit does not influence the outputs
            grads = [torch.zeros_like(x) for x in leaves]
        squared = iter([g.square() for g in grads])
        found.append(tree_map_only(torch.Tensor, lambda x, squared=squared: next(squared), cut.leaves))
    flat = tree_leaves(found)
    mean = mean_over_ranks((sum(x.double().sum() for x in flat) / sum(x.numel() for x in flat)).item())
    return tree_map_only(torch.Tensor, lambda x: (x / mean if mean > 0 else torch.ones_like(x)).to(x.dtype), found)
