import pytest
import torch
import torch.nn.functional as F
from models_for_tests import MLP, ResNet, advance, calibrated, images, randomize

from mmquant.calibration.stream import Stream
from mmquant.losses.divergence import divergence_gradients
from mmquant.models.layers import enabled
from mmquant.reconstruction.fisher import fisher_diagonal, of_divergence, of_loss


def at_unit(context, name, granularity='block', mode=(True, False)):
    """A stream at the entry of a unit, and the float outputs."""
    model = context.model
    unit = next(u for u in model.units(granularity) if u.name == name)
    stream = Stream(model, context.chunks)
    with torch.no_grad(), model.quantization(*mode):
        advance(stream, unit)
    with torch.no_grad(), model.quantization(weights=False, activations=False):
        references = [model.run(c) for c in context.chunks]
    return stream, unit, references


def weight_quantizers(context, unit):
    return [context.model.weight_quantizers()[n] for n in unit.layers]


def fisher(context, name, quantizers=None, **more):
    stream, unit, references = at_unit(context, name, **more)
    quantizers = weight_quantizers(context, unit) if quantizers is None else quantizers
    with context.model.quantization(weights=False, activations=False):
        return torch.cat([calls[0] for calls in fisher_diagonal(stream, unit, quantizers, of_divergence(references))])


def divergence(q, r):
    return F.kl_div(q.log_softmax(-1), r.log_softmax(-1), reduction='sum', log_target=True)


def test_gradients_of_the_divergence_of_float_to_quantized():
    q, r = images(3, 5, seed=1).requires_grad_(), images(3, 5, seed=2)
    expected, = torch.autograd.grad(divergence(q, r), q)
    found, twice = divergence_gradients((q, [q]), (r, [r]))
    torch.testing.assert_close(found, expected)
    assert torch.equal(found, twice) and not divergence_gradients(r, r)[0].any()


@pytest.mark.parametrize('make, shape, name', [(ResNet, (3, 8, 8), 'layer1.1'), (MLP, (8,), 'fc1'), (MLP, (8,), 'fc2')])
def test_an_unquantized_net_has_no_gradient(make, shape, name):
    """KL is at its minimum: the gradient is exactly zero, so every element counts the same."""
    context = calibrated(randomize(make()), images(8, *shape), chunk=4)
    weights = fisher(context, name, quantizers=[], mode=(False, False))
    assert torch.equal(weights, torch.ones_like(weights))


def test_equals_brute_force_on_two_layers():
    """Layer 1 and its ReLU quantized, layer 2 float: by hand, and by autograd over the whole net."""
    context = calibrated(randomize(MLP()), x := images(10, 8), chunk=4, w_bits=2, overrides=())
    model = context.model.architecture
    found = fisher(context, 'fc1')
    with torch.no_grad(), context.model.quantization(weights=False, activations=False):
        reference = model(x)
        with enabled([model.fc1.weight_quantizer], True):
            z = model.act(model.fc1(x))
    z.requires_grad_()
    with context.model.quantization(weights=False, activations=False):
        q = model.fc2(z)
    squared = torch.autograd.grad(divergence(q, reference), z)[0].square()
    torch.testing.assert_close(found, squared / squared.mean(), rtol=1e-4, atol=1e-6)
    by_hand = ((q.softmax(-1) - reference.softmax(-1)) @ model.fc2._parameters['weight']).square()
    torch.testing.assert_close(found, by_hand / by_hand.mean(), rtol=1e-4, atol=1e-6)
    assert found.shape == z.shape and found.mean().item() == pytest.approx(1, rel=1e-5)


def test_of_another_loss_of_the_outputs():
    """Squared gradients of the cross-entropy with labels, by hand: those of the logits through the last layer."""
    context = calibrated(randomize(MLP()), x := images(10, 8), chunk=5, w_bits=2, overrides=())
    labels = torch.arange(10) % 3
    stream, unit, _ = at_unit(context, 'fc1')

    def loss(output, chunk):
        return F.cross_entropy(output, labels[5 * chunk:5 * chunk + 5], reduction='sum')

    model = context.model.architecture
    with context.model.quantization(weights=False, activations=False):
        found = fisher_diagonal(stream, unit, weight_quantizers(context, unit), of_loss(loss))
        with torch.no_grad(), enabled([model.fc1.weight_quantizer], True):
            z = model.act(model.fc1(x))
        by_hand = ((model.fc2(z).softmax(-1) - F.one_hot(labels, model.fc2.out_features))
                   @ model.fc2._parameters['weight']).square()
    found = torch.cat([calls[0] for calls in found])
    torch.testing.assert_close(found, by_hand / by_hand.mean(), rtol=1e-4, atol=1e-6)


def test_one_tensor_an_image_whatever_the_chunks():
    x = images(7, 3, 8, 8).double()
    model = randomize(ResNet()).double()
    found = [fisher(calibrated(model, x, chunk=n, w_bits=8), 'layer2.0') for n in (7, 3, 1)]
    assert found[0].shape == (7, 8, 2, 2)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-6)


def test_scaling_all_gradients_changes_nothing(monkeypatch):
    context = calibrated(randomize(MLP()), images(8, 8), w_bits=2, overrides=())
    plain = fisher(context, 'fc1')
    original = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, 'grad', lambda *a, **k: tuple(g * 37 for g in original(*a, **k)))
    torch.testing.assert_close(fisher(context, 'fc1'), plain)


def test_quantizers_behind_the_unit_are_off():
    """Only the prefix and the unit are quantized."""
    context = calibrated(randomize(MLP()), images(8, 8), w_bits=2, overrides=())
    before = fisher(context, 'fc1')
    behind = context.model.architecture.fc2.weight_quantizer
    behind.set_range(behind.scale.flatten() * 0 - 9, behind.scale.flatten() * 0 + 9)
    assert torch.equal(fisher(context, 'fc1'), before)
    inside = context.model.architecture.fc1.weight_quantizer
    inside.set_range(inside.scale.flatten() * 0 - 1, inside.scale.flatten() * 0 + 1)
    assert not torch.equal(fisher(context, 'fc1'), before)


def test_the_output_quantizer_of_the_unit_counts():
    """When activations are learned, the unit's own output quantizer is part of the unit."""
    context = calibrated(randomize(ResNet()), x := images(6, 3, 8, 8), chunk=6, a_bits=2, overrides=())
    model = context.model
    block = model.architecture.layer1[1]
    quantizers = [block.output_quantizer, block.conv2.input_quantizer, *(
        model.weight_quantizers()[n] for n in ('layer1.1.conv1', 'layer1.1.conv2'))]
    found = fisher(context, 'layer1.1', quantizers=quantizers, mode=(False, False))
    with torch.no_grad(), model.quantization(weights=False, activations=False):
        reference = model.run(x)
        a = model.architecture
        stem = a.layer1[0](a.maxpool(a.relu(a.bn1(a.conv1(x)))))
        with enabled(quantizers, True):
            z = block(stem)
    z.requires_grad_()
    with model.quantization(weights=False, activations=False):
        q = a.fc(a.avgpool(a.layer2(z)).flatten(1))
    squared = torch.autograd.grad(divergence(q, reference), z)[0].square()
    torch.testing.assert_close(found, squared / squared.mean(), rtol=1e-3, atol=1e-4)
