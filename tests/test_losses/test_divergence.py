import math

import pytest
import torch
import torch.nn.functional as F
from models_for_tests import images

from mmquant.losses.divergence import divergence, divergence_gradients, output_kinds


def test_what_outputs_hold():
    maps = [torch.zeros(2, 6, 4, 4), torch.zeros(2, 6, 2, 2)]
    boxes = [torch.zeros(2, 4, 4, 4), torch.zeros(2, 4, 2, 2)]
    assert output_kinds(torch.zeros(2, 10)) == ['logits']
    assert output_kinds([torch.zeros(2, 10), torch.zeros(2, 10)]) == ['logits'] * 2  # two classifiers
    assert output_kinds((maps, boxes)) == ['scores', 'scores', 'values', 'values']
    assert output_kinds((torch.zeros(9, 11), torch.zeros(9, 40))) == ['logits', 'values']  # second stage
    assert output_kinds(((torch.zeros(9, 11), torch.zeros(9, 40)), )) == ['logits', 'values']
    assert output_kinds(torch.zeros(2, 3, 8, 8)) == ['values']


def test_known_values():
    q, r = torch.tensor([[0.0, math.log(3)]]), torch.zeros(1, 2)
    assert divergence(q, r).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    scores, boxes = torch.zeros(1, 1, 1, 2), torch.tensor([[[[1.0, 3.0]]], ])
    changed = torch.full((1, 1, 1, 2), math.log(3))  # probabilities 0.75 instead of 0.5
    expected = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    assert divergence((changed, boxes), (scores, boxes)).item() == pytest.approx(expected)
    assert divergence((scores, boxes + 1), (scores, boxes)).item() == pytest.approx(0.5)  # variance 1


@pytest.mark.parametrize('make', [lambda s: images(3, 5, seed=s),
                                  lambda s: ([images(2, 3, 4, 4, seed=s)], [images(2, 4, 4, 4, seed=s + 10)])])
def test_gradients_are_those_of_the_divergence(make):
    q, r = make(1), make(2)
    leaves = [x.requires_grad_() for x in ([q] if isinstance(q, torch.Tensor) else [q[0][0], q[1][0]])]
    counts = [x.shape[0] if isinstance(q, torch.Tensor) else x.numel() for x in leaves]
    expected = torch.autograd.grad(divergence(q, r), leaves)
    for found, e, n in zip(divergence_gradients(q, r), expected, counts):
        torch.testing.assert_close(found, e * n, rtol=1e-4, atol=1e-6)
    assert not any(g.any() for g in divergence_gradients(r, r))
    assert divergence(r, r).abs().item() < 1e-6 and divergence(q, r).item() > 0


def test_bad_outputs():
    with pytest.raises(ValueError, match='returns no floating-point tensor in tensor mode'):
        divergence([None, 'boxes'], [None, 'boxes'])
    with pytest.raises(ValueError, match=r'\(100, 11\).*\(90, 11\)'):
        divergence((torch.zeros(100, 11), ), (F.pad(torch.zeros(90, 11), (0, 0)), ))
