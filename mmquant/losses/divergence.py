"""Distance between the raw outputs of the float and the quantized net: an objective without labels.

    logits:        KL(softmax(r) || softmax(q))                     one class is right
    class scores:  KL(sigmoid(r) || sigmoid(q)), a class at a time  each place may hold any class
    other outputs: (q - r)^2 / (2 var(r))                           box offsets, centerness, embeddings

r is float, q quantized. A model that returns only matrices of one shape returns logits. A detector's first output, or
list of outputs over levels, holds class scores: logits if they are matrices (a region each), else one score a class.
"""
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_leaves

FLOOR = 1e-12


def float_tensors(tree) -> list[torch.Tensor]:
    """The floating-point tensors in nested outputs."""
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor) and x.is_floating_point()]


def output_kinds(outputs) -> list[str]:
    """For each tensor of :func:`float_tensors` what it holds: ``'logits'``, ``'scores'`` or ``'values'``."""
    tensors = float_tensors(outputs)
    if len({x.shape for x in tensors}) <= 1 and all(x.dim() <= 3 for x in tensors):
        return ['logits'] * len(tensors)
    while isinstance(outputs, (list, tuple)) and len(outputs) == 1:
        outputs = outputs[0]
    if not isinstance(outputs, (list, tuple)):
        return ['values'] * len(tensors)
    first = ['logits' if x.dim() == 2 else 'scores' for x in float_tensors(outputs[0])]
    return first + ['values'] * (len(tensors) - len(first))


def divergence(quantized, reference) -> torch.Tensor:
    """Mean over images of the summed divergence of all outputs, a scalar; differentiable in ``quantized``.

    Outputs are tensors (N, ...) or nested lists, tuples and dicts of them, of the same shapes; ValueError if not, or if
    there is none. Scores and values count by their mean over elements, logits summed over classes, mean over rows.
    """
    total = 0
    for kind, q, r in _pairs(quantized, reference):
        q, r = q.float(), r.float()
        if kind == 'logits':
            each = F.kl_div(q.log_softmax(-1), r.log_softmax(-1), reduction='none', log_target=True)
            total = total + each.sum(-1).mean()
        elif kind == 'scores':
            p = r.sigmoid()
            total = total + (p * (F.logsigmoid(r) - F.logsigmoid(q))
                             + (1 - p) * (F.logsigmoid(-r) - F.logsigmoid(-q))).mean()
        else:
            total = total + ((q - r).square() / (2 * _variance(r))).mean()
    return total


@torch.no_grad()
def divergence_gradients(quantized, reference) -> list[torch.Tensor]:
    """Gradient of the divergence at each output tensor, up to a factor: summed over elements, not averaged.

    In closed form, ``softmax(q) - softmax(r)``, ``sigmoid(q) - sigmoid(r)`` or ``(q - r) / var(r)``: exactly zero for
    equal tensors, which automatic differentiation of the divergence is not.
    """
    gradients = []
    for kind, q, r in _pairs(quantized, reference):
        a, b = q.float(), r.float()
        if kind == 'logits':
            g = a.softmax(-1) - b.softmax(-1)
        else:
            g = a.sigmoid() - b.sigmoid() if kind == 'scores' else (a - b) / _variance(b)
        gradients.append(g.to(q.dtype))
    return gradients


def _variance(x: torch.Tensor) -> torch.Tensor:
    return x.var(correction=0).clamp_min(FLOOR)


def _pairs(quantized, reference) -> list[tuple]:
    q, r = float_tensors(quantized), float_tensors(reference)
    if not r:
        raise ValueError('the model returns no floating-point tensor in tensor mode, so float and quantized outputs '
                         'cannot be compared; use a loss that needs no outputs, such as mmquant.LpLoss')
    if [x.shape for x in q] != [x.shape for x in r]:
        shapes = [tuple(x.shape) for x in q], [tuple(x.shape) for x in r]
        raise ValueError(f'the quantized net returned tensors of shapes {shapes[0]}, the float net {shapes[1]}; fix '
                         'what the model selects (see Decisions), or compare fewer outputs')
    return list(zip(output_kinds(reference), q, r))
