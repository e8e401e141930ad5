import pytest
import torch
import torch.nn.functional as F
from models_for_tests import ResNet, advance, calibrated, images, joined, randomize
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmquant.calibration.stream import Stream
from mmquant.losses import LpLoss
from mmquant.reconstruction.fit import fit
from mmquant.reconstruction.optimizers import ParamGroup, Training
from mmquant.reconstruction.problem import Comparison, Problem
from mmquant.reconstruction.rest_of_net import Tail, Tails, end_of


class Cut(nn.Module):
    """A block around which a shortcut leads: what follows reads what was made in front."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(width, width, 3, padding=1) for _ in range(3))

    def forward(self, x):
        first = self.a(x)
        return self.c(F.relu(self.b(F.relu(first)))) * first.mean((2, 3), keepdim=True) + x


class Crossed(nn.Module):
    """Two such blocks, pooling, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stage, self.head = nn.Sequential(Cut(4), Cut(4)), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.stage(x).mean((2, 3)))


def tails_of(net, end, granularity='block', channels=3):
    """(context, unit, tail term, outputs of the unit in float) of each unit that has a tail."""
    context = calibrated(randomize(net), images(12, channels, 8, 8), chunk=5)
    model = context.model
    stream = Stream(model, context.chunks)
    tails = Tails(model, stream, end, 5)
    found = []
    for unit in model.units(granularity):
        term = next(iter(tails.of(unit, frozenset()).values()), None)
        with torch.no_grad(), model.quantization(False, False):
            data = joined(advance(stream, unit))
            args, kwargs = data.arguments(data.data)
            out = model.architecture.get_submodule(unit.name)(*args, **kwargs)
            out = model.architecture.get_submodule(unit.activation)(out) if unit.activation else out
        found.append((context, unit, term, out))
    return found


CASES = [(ResNet, 'stage', 'block', ['layer1.0', 'layer2.0'], 3),
         (ResNet, 'net', 'block', ['conv1', 'layer1.0', 'layer1.1', 'layer2.0', 'layer2.1'], 3),
         (ResNet, 'net', 'layer', None, 3), (Crossed, 'net', 'layer', None, 4), (Crossed, 'net', 'block', None, 4)]


@pytest.mark.parametrize('make, end, granularity, names, channels', CASES)
def test_float_output_of_the_unit_gives_the_float_output_of_the_end(make, end, granularity, names, channels):
    """For any rows in any order, while the quantizers around are on."""
    found = tails_of(make(), end, granularity, channels)
    with_tail = [(c, u, t, o) for c, u, t, o in found if t is not None]
    if names:
        assert [u.name for _, u, _, _ in with_tail] == names
    assert len(with_tail) >= 1 and found[-1][2] is None
    for context, _, term, out in with_tail:
        rows = torch.tensor([11, 0, 6])
        with torch.no_grad(), context.model.quantization(True, True):
            got = term.tail(out[rows], rows)
        torch.testing.assert_close(got, term.targets[rows], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('make, end, channels', [(ResNet, 'stage', 3), (ResNet, 'net', 3), (Crossed, 'net', 4)])
def test_gradient_is_that_of_the_float_net(make, end, channels):
    """Directional derivative of the tail by finite differences."""
    context, _, term, out = next(f for f in tails_of(make(), end, channels=channels) if f[2] is not None)
    rows = torch.arange(4)
    leaf = (out[rows] + images(*out[rows].shape, seed=4).abs()).requires_grad_()  # no ties in max pooling
    value = term.tail(leaf, rows).square().sum()
    value.backward()
    direction = images(*leaf.shape, seed=3)
    with torch.no_grad():
        step = 1e-3
        ahead, behind = (term.tail(leaf + s * direction, rows).square().sum() for s in (step, -step))
    assert ((ahead - behind) / (2 * step)).item() == pytest.approx((leaf.grad * direction).sum().item(), rel=0.05)
    assert all(p.grad is None for p in context.model.architecture.parameters())


class Convolutions(TorchDispatchMode):
    """Counts convolutions."""
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.convolution.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('make, granularity, channels, runs', [(ResNet, 'block', 3, 7), (Crossed, 'layer', 4, 5)])
def test_calls_in_front_are_not_run(make, granularity, channels, runs):
    """Placeholders stand for them, of shapes seen at the first so many rows; where what follows needs their values
    (Crossed: one layer) they run."""
    _, unit, term, out = [f for f in tails_of(make(), 'net', granularity, channels) if f[2] is not None][1]
    term.tail(out[:3], torch.arange(3))
    with Convolutions() as counted:
        term.tail(out[:3], torch.arange(3))
    assert counted.count == runs, unit.name


def problem(tail, unit_weight=1.0, weight=1.0, p=1):
    """The output is the guess itself, so that gradients are known."""
    guess, target = images(6, 3, 2, 2, seed=1).requires_grad_(), images(6, 3, 2, 2, seed=2)
    rows = torch.arange(6)
    terms = [Comparison(LpLoss(p), target, 1, unit_weight)] if unit_weight else []
    terms += [Comparison(LpLoss(p), target, 1, weight, tail=tail)] if tail else []
    return Problem(lambda x: guess[x[:, 0].long()], dict(quant=torch.arange(6.)[:, None]), tuple(terms), rows, rows,
                   torch.device('cpu')), guess, target


def test_with_an_identity_behind_the_losses_add_up():
    plain = problem(None)[0].held_loss()
    for unit_weight, weight in ((1, 1), (1, 0.3), (0, 2), (0.5, 4)):
        both = problem(lambda x, rows: x, unit_weight, weight)[0].held_loss()
        assert both == pytest.approx((unit_weight + weight) * plain, rel=1e-6)


def test_gradient_of_the_absolute_error():
    """sign(e) / (batch x positions); zero where the error is."""
    task, guess, target = problem(None)
    with torch.no_grad():
        guess[0] = target[0]
    task.loss_on(torch.arange(6)).backward()
    assert torch.equal(guess.grad, torch.sign(guess.detach() - target) / (6 * 2 * 2))
    assert (guess.grad[0] == 0).all()


def test_fitting_leaves_the_tail_alone():
    found = [f for f in tails_of(ResNet(), 'net') if f[2] is not None]
    context, _, term, out = found[1]
    before = {n: p.clone() for n, p in context.model.architecture.state_dict().items()}
    shift, rows = torch.zeros(1, requires_grad=True), torch.arange(12)
    terms = Comparison(LpLoss(1), out, 1), Comparison(LpLoss(1), term.targets, term.channel_dim, tail=term.tail)
    task = Problem(lambda x: x + 0.5 + shift, dict(quant=out), terms, rows, rows, torch.device('cpu'))
    first = task.held_loss()
    fit(task, [ParamGroup([shift], Training(0.05))], 30, 8, seed=0)
    assert task.held_loss() < 0.5 * first and shift.item() < -0.3
    after = context.model.architecture.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert all(p.grad is None for p in context.model.architecture.parameters())
    assert all(q.enabled for q in context.model.weight_quantizers().values())


def test_ends():
    model = calibrated(randomize(ResNet()), images(4, 3, 8, 8)).model
    units = {u.name: u for u in model.units()}
    stages = {n: end_of(model, u, 'stage') for n, u in units.items()}
    assert {n: s and s.name for n, s in stages.items()} == {
        'conv1': None, 'layer1.0': 'layer1', 'layer1.1': None, 'layer2.0': 'layer2', 'layer2.1': None, 'fc': None}
    assert end_of(model, units['fc'], 'net') is None and end_of(model, units['conv1'], 'net').name == ''


def test_tail_of_a_shared_module():
    """A module called in front of the unit and behind it: each call is told apart."""
    shared = nn.ReLU()
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), shared, nn.Conv2d(4, 4, 3, padding=1), shared,
                        nn.Conv2d(4, 4, 3, padding=1), shared, nn.Flatten(), nn.Linear(256, 2))
    for *_, term, out in tails_of(net, 'net', 'layer')[:-1]:
        rows = torch.tensor([3, 9])
        with torch.no_grad():
            torch.testing.assert_close(term.tail(out[rows], rows), term.targets[rows], rtol=1e-5, atol=1e-5)


def test_tail_needs_no_particular_batch():
    *_, term, out = next(f for f in tails_of(ResNet(), 'stage') if f[2] is not None)
    assert isinstance(term.tail, Tail)
    for n in (1, 2, 7):
        rows = torch.arange(n)
        with torch.no_grad():
            torch.testing.assert_close(term.tail(out[rows], rows), term.targets[rows], rtol=1e-5, atol=1e-5)


def test_tails_to_several_ends_share_a_stream():
    """The net begins before a stage that the stream has moved to already."""
    context = calibrated(randomize(ResNet()), images(12, 3, 8, 8), chunk=5)
    unit = next(u for u in context.model.units('block') if u.name == 'layer1.0')
    shared = context.stream('float')
    for end in ('stage', 'net'):
        for stream in (shared, context.stream('float')):
            found = Tails(context.model, stream, end, 5).of(unit, frozenset(unit.layers))
            (tail,) = found.values()
            if stream is shared:
                targets = tail.targets
        assert torch.equal(tail.targets, targets)
