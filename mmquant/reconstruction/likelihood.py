"""Answers that the float net finds likely: output gradients whose mean square is its Fisher information.

    class logits r    y ~ softmax(r)                g = softmax(r) - onehot(y)
    class scores r    y ~ Bernoulli(s)              g = +-sqrt(s (1 - s)), s = sigmoid(r)
    boxes r           y ~ N(r, 4 var(r) / c^2)      g = +-c / sqrt(4 var(r)), c the score of the box
    others            y ~ N(r, var(r))              g = +-1 / sqrt(var(r))

Where +- stands, only the sign is drawn: the mean square of ``g`` is that of the likelihood's gradient, without its
rare large values.

A map of one channel behind the class scores of its level holds the logit t of objectness or centerness, which
detectors multiply with them: s = sigmoid(r) sigmoid(t). The score of a box is the largest of its anchor or, for regions
with boxes of each class, that of its class; so the many boxes of background count as little as they do in a detection.
The gradient of the divergence from the float net (BRECQ, eq. 10) weighs by the error that quantization happens to make
instead; these weights do not depend on it.
"""
from __future__ import annotations

import torch
from torch import Tensor

from mmquant.reconstruction.divergence import FLOOR, float_tensors, output_kinds

BOX = 4  # numbers of a box


def likelihood_gradients(reference, generator: torch.Generator) -> list[Tensor]:
    """One draw of the gradients at each tensor of :func:`float_tensors`.

    Args:
        reference: Outputs of the float net.
        generator (torch.Generator): On the CPU, so that all devices draw alike.
    """
    tensors = [x.float() for x in float_tensors(reference)]
    kinds = output_kinds(reference)
    number = sum(kind != 'values' for kind in kinds)  # of tensors of classes; those behind belong to them in turn
    partner = [_score_of(i, tensors, kinds, number) for i in range(len(tensors))]
    gate = {j: i for i, j in enumerate(partner) if j is not None and tensors[i].dim() == 4 and tensors[i].shape[1] == 1}
    gates = set(gate.values())
    found: list[Tensor | None] = [None] * len(tensors)
    for i, (x, kind) in enumerate(zip(tensors, kinds)):
        if kind == 'logits':
            found[i] = _of_logits(x, generator)
        elif kind == 'scores' and i not in gate:
            s = x.sigmoid()
            found[i] = _signs(x, generator) * (s * (1 - s)).sqrt()
        elif kind == 'scores':
            c, t = x.sigmoid(), tensors[gate[i]].sigmoid()
            root = _signs(x, generator) * (c * t / (1 - c * t).clamp_min(FLOOR)).sqrt()  # d log p / d s, times s
            found[i] = root * (1 - c)
            found[gate[i]] = (root * (1 - t)).sum(1, keepdim=True)
        elif i not in gates:
            deviation = x.var(correction=0).clamp_min(FLOOR).sqrt()
            share = 1 if partner[i] is None else _confidence(x, partner[i], tensors, kinds, gate) / BOX**0.5
            found[i] = _signs(x, generator) * share / deviation
    return found


def _signs(x: Tensor, generator: torch.Generator) -> Tensor:
    return (torch.randint(0, 2, x.shape, generator=generator) * 2 - 1).to(x)


def _of_logits(x: Tensor, generator: torch.Generator) -> Tensor:
    p = x.softmax(-1)
    rows = p.reshape(-1, p.shape[-1])
    drawn = torch.multinomial(rows.cpu(), 1, generator=generator).to(x.device)
    return (rows - torch.zeros_like(rows).scatter_(1, drawn, 1)).reshape(p.shape)


def _score_of(index: int, tensors: list[Tensor], kinds: list[str], number: int) -> int | None:
    """Number of the class tensor at the same places as a tensor of values, if there is one."""
    if kinds[index] != 'values' or not number:
        return None
    other = (index - number) % number
    x, score = tensors[index], tensors[other]
    same = x.dim() == score.dim() and x.dim() in (2, 4) and len(x) == len(score) and x.shape[2:] == score.shape[2:]
    return other if same else None


def _confidence(x: Tensor, other: int, tensors: list[Tensor], kinds: list[str], gate: dict[int, int]) -> Tensor:
    """Score of the box that each element of ``x`` belongs to, of the shape of ``x`` or broadcast to it."""
    scores = tensors[other]
    if kinds[other] == 'logits':
        scores = scores.softmax(-1)[:, :-1]  # the last class is background
        by_class = x.shape[1] == BOX * scores.shape[1]
        return scores.repeat_interleave(BOX, 1) if by_class else scores.amax(1, keepdim=True)
    scores = scores.sigmoid() * (tensors[gate[other]].sigmoid() if other in gate else 1)
    anchors = x.shape[1] // BOX
    if x.shape[1] % BOX or not anchors or scores.shape[1] % anchors:
        anchors = 1
    return scores.unflatten(1, (anchors, -1)).amax(2).repeat_interleave(x.shape[1] // anchors, 1)
