import pytest
import torch
from models_for_tests import MLP, calibrated, images, randomize

from mmquant.models.layers import enabled
from mmquant.reconstruction import FisherDiagLoss
from mmquant.reconstruction.fisher import fisher_diagonal, of_likelihood
from mmquant.reconstruction.likelihood import likelihood_gradients
from mmquant.reconstruction.replay import Stream
from mmquant.utils.building import ConfigError


def draws(reference, count: int = 1):
    """Gradients of ``count`` draws, stacked: a list of tensors (count, ...)."""
    generator = torch.Generator().manual_seed(0)
    found = [likelihood_gradients(reference, generator) for _ in range(count)]
    return [torch.stack(x) for x in zip(*found)]


def test_logits_have_the_fisher_information_of_softmax():
    r = images(1, 4, seed=1)
    g = draws(r, 20000)[0][:, 0]
    p = r.softmax(-1)[0]
    torch.testing.assert_close(g.T @ g / len(g), p.diag() - p.outer(p), rtol=0, atol=0.01)
    torch.testing.assert_close(g.mean(0), torch.zeros(4), rtol=0, atol=0.01)


def test_scores_and_boxes_of_anchors():
    """Two anchors, three classes: scores a, classes first, and 4 numbers of a box each."""
    scores, boxes = images(2, 6, 3, 3, seed=1), images(2, 8, 3, 3, seed=2)
    g_scores, g_boxes = draws(([scores], [boxes]), 2)
    p = scores.sigmoid()
    torch.testing.assert_close(g_scores[0].square(), p * (1 - p))
    assert not torch.equal(g_scores[0], g_scores[1]) and (g_scores[0] > 0).float().mean().item() == pytest.approx(.5, abs=.15)
    best = torch.stack([p[:, :3].amax(1), p[:, 3:].amax(1)], 1)  # (2, anchors, 3, 3)
    expected = best.square().repeat_interleave(4, 1) / (4 * boxes.var(correction=0))
    torch.testing.assert_close(g_boxes[0].square(), expected)


def test_background_boxes_count_as_nothing():
    scores, boxes = torch.full((1, 2, 1, 2), -20.), images(1, 4, 1, 2)
    scores[0, 1, 0, 1] = 20
    g = draws(([scores], [boxes]))[1][0]
    assert g[..., 0].abs().max() < 1e-6 and g[..., 1].abs().min() > 0.1


def test_objectness_gates_the_scores():
    """By automatic differentiation of log(s) and log(1 - s), s the product, weighted by how often each happens."""
    scores, boxes, gate = images(1, 3, 2, 2, seed=1), images(1, 4, 2, 2, seed=2), images(1, 1, 2, 2, seed=3)
    g_scores, g_boxes, g_gate = draws(([scores], [boxes], [gate]), 4000)
    c, t = (x.double().requires_grad_() for x in (scores, gate))
    s = c.sigmoid() * t.sigmoid()
    up = torch.autograd.grad(s.log().sum(), c, retain_graph=True)[0]
    down = torch.autograd.grad((1 - s).log().sum(), c, retain_graph=True)[0]
    torch.testing.assert_close(g_scores[0].square().double(), s * up.square() + (1 - s) * down.square(), rtol=1e-4,
                               atol=1e-6)
    root = (s / (1 - s)).sqrt() * (1 - t.sigmoid())
    torch.testing.assert_close(g_gate.double().square().mean(0), root.square().sum(1, keepdim=True), rtol=0.1, atol=0.01)
    best = s.float().amax(1, keepdim=True).square()
    torch.testing.assert_close(g_boxes[0].square(), (best / (4 * boxes.var(correction=0))).expand(1, 4, 2, 2))


def test_regions_have_boxes_of_each_class():
    logits, boxes = images(5, 5, seed=1), images(5, 16, seed=2)
    p = logits.softmax(-1)
    g = draws((logits, boxes))[1][0]
    torch.testing.assert_close(g.square(), p[:, :4].repeat_interleave(4, 1).square() / (4 * boxes.var(correction=0)))
    one = boxes[:, :4]
    expected = p[:, :4].amax(1, keepdim=True).square() / (4 * one.var(correction=0))
    g = draws((logits, one))[1][0]
    torch.testing.assert_close(g.square(), expected.expand(5, 4))


def test_values_without_scores():
    x = images(2, 3, 4, 4)
    torch.testing.assert_close(draws(x)[0][0].abs(), torch.full_like(x, 1 / x.var(correction=0).sqrt().item()))


def test_weights_of_a_unit_do_not_depend_on_its_quantization_and_repeat():
    """Squared gradients through the float second layer, at the output of the quantized first."""
    context = calibrated(randomize(MLP()), x := images(10, 8), chunk=4, w_bits=2, overrides=())
    model = context.model
    unit = next(u for u in model.units('layer') if u.name == 'fc1')

    def weights(seed, quantizers):
        stream = Stream(model, context.chunks)
        with torch.no_grad(), model.quantization(False, False):
            stream.advance(unit)
            references = [model.run(c) for c in context.chunks]
        with model.quantization(False, False):
            found = fisher_diagonal(stream, unit, quantizers, of_likelihood(references, seed))
        return torch.cat([calls[0] for calls in found]), references

    found, references = weights(3, [])
    generators = [torch.Generator().manual_seed(3 * 1_000_003 + k) for k in range(len(references))]
    g = torch.cat([likelihood_gradients(r, d)[0] for r, d in zip(references, generators)])
    a = model.architecture
    with torch.no_grad(), model.quantization(False, False), enabled(list(model.weight_quantizers().values()), False):
        squared = ((g @ a.fc2.weight) * (a.fc1(x) > 0 if unit.activation is None else 1)).square()
    torch.testing.assert_close(found, squared / squared.mean(), rtol=1e-4, atol=1e-5)
    assert torch.equal(found, weights(3, [])[0]) and not torch.equal(found, weights(4, [])[0])


def test_one_source_of_gradients():
    with pytest.raises(ConfigError, match='give objective or drawn=True, not both'):
        FisherDiagLoss(objective=dict(type='mmquant.CrossEntropy'), drawn=True)
