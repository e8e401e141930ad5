from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from detectors_for_tests import context_of, detector, needs_detectors
from models_for_tests import BasicBlock, Chain, ResNet, ViT, advance, calibrated, images, inserted, randomize
from torch import nn

from mmquant.calibration.stream import Stream
from mmquant.models.dataflow import wrapped_forwards


class Net(nn.Module):
    """A model whose forward is a function of its children."""

    def __init__(self, function, **children) -> None:
        super().__init__()
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x):
        return self.function(self, x)


def convs(*names, **more):
    return {**{n: nn.Conv2d(3, 3, 3, padding=1) for n in names}, **more}


def skip_over_several(self, x):
    """A long shortcut around two blocks, another around three layers."""
    first = self.stem(x)
    y = self.c(self.b2(self.b1(first)))
    return self.d(torch.cat([y, first], 1)) + self.a(x)


def pyramid(self, x):
    """Three levels, a top-down path, outputs from all of them."""
    c1 = self.a(x)
    c2 = self.b(F.avg_pool2d(c1, 2))
    c3 = self.c(F.avg_pool2d(c2, 2))
    p2 = self.l2(c2) + F.interpolate(c3, scale_factor=2.0)
    p1 = self.l1(c1) + F.interpolate(p2, scale_factor=2.0)
    return [self.out(p) for p in (p1, p2, c3)]


def shared_modules(self, x):
    """One convolution three times, one ReLU in between."""
    y = self.relu(self.a(x))
    y = self.relu(self.shared(y))
    z = self.shared(self.relu(self.b(y)))
    return self.c(self.shared(z)) + y


class Sharing(nn.Module):
    """A block with a layer of its own and one that others call too."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.own, self.shared = nn.Conv2d(3, 3, 1), shared

    def forward(self, x):
        return x + self.shared(F.relu(self.own(x)))


def sharing_blocks() -> nn.Module:

    def forward(self, x):
        x = self.shared(self.one(self.stem(x)))
        return self.last(self.shared(self.mid(self.two(x))))

    shared = nn.Conv2d(3, 3, 3, padding=1)
    return Net(forward, **convs('stem', 'mid', 'last', one=Sharing(shared), two=Sharing(shared), shared=shared))


def inplace_glue(self, x):
    """Values that a later statement overwrites, also through views."""
    y = self.a(x)
    y += self.b(x)
    y.relu_()
    z = self.c(y)
    z *= 2
    z[:, :1] += self.d(y)[:, 1:2]
    keep = z.clone()
    z.clamp_(min=-1)
    out = torch.zeros_like(z)
    out[:, :2] = self.e(z)[:, :2]
    return self.f(out) + keep


def inplace_on_the_input(self, x):
    """Normalisation inside the model."""
    x -= 0.5
    return self.c(self.b(self.a(x.div_(2))))


def leaking(self, x):
    """A module leaves a tensor behind that another one picks up later."""
    y = self.leaver(x)
    return self.c(self.b(y) + self.leaver.kept)


class Leaver(nn.Module):

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        self.kept = self.conv(x)
        return self.kept * 2


def branches(self, x):
    """Branches of different length that are only read at the end."""
    a, b = self.a(x), self.b(x)
    for layer in (self.c, self.d, self.e):
        a = F.relu(layer(a))
    return self.f(a * b.sigmoid())


def two_outputs(self, x):
    """A module that returns a tuple of which one part is needed late."""
    y, late = self.two(x)
    return self.c(self.b(y)) + late


class Two(nn.Module):

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 1)

    def forward(self, x):
        return self.conv(x).chunk(2, 1)


GRAPHS = dict(
    chain=(Chain, (3, 8, 8)), residual=(lambda: randomize(ResNet()), (3, 16, 16)), vit=(ViT, (3, 16, 16)),
    skips=(lambda: Net(skip_over_several, **convs('stem', 'a', 'c', b1=BasicBlock(3, 3), b2=BasicBlock(3, 3),
                                                  d=nn.Conv2d(6, 3, 1))), (3, 8, 8)),
    pyramid=(lambda: Net(pyramid, **convs('a', 'b', 'c', 'l1', 'l2', 'out')), (3, 8, 8)),
    shared=(lambda: Net(shared_modules, **convs('a', 'b', 'c', 'shared', relu=nn.ReLU(inplace=True))), (3, 6, 6)),
    shared_inside=(sharing_blocks, (3, 6, 6)),
    inplace=(lambda: Net(inplace_glue, **convs(*'abcdef')), (3, 6, 6)),
    inplace_input=(lambda: Net(inplace_on_the_input, **convs(*'abc')), (3, 6, 6)),
    leaking=(lambda: Net(leaking, **convs('b', 'c', leaver=Leaver())), (3, 6, 6)),
    branches=(lambda: Net(branches, **convs(*'abcdef')), (3, 6, 6)),
    two_outputs=(lambda: Net(two_outputs, **convs('b', 'c', two=Two())), (3, 6, 6)),
)
GRANULARITIES = ('layer', 'block', 'stage')


@torch.no_grad()
def hooked_inputs(model, chunks) -> list[dict]:
    """Inputs of every call of every module in ordinary full forward passes: the truth."""
    found = []
    for chunk in chunks:
        seen, counts = {}, Counter()

        def wrap(name, module, forward, seen=seen, counts=counts):
            def f(*args, **kwargs):
                seen[name, counts[name]] = [a.clone() for a in args if isinstance(a, torch.Tensor)]
                counts[name] += 1
                return forward(*args, **kwargs)
            return f

        with wrapped_forwards(model.architecture, wrap):
            model.run(chunk)
        found.append(seen)
    return found


def keys_of(flow, unit):
    return [c.key for c in flow.calls if c.name == unit.name and c.enter in {enter for enter, _ in unit.spans}]


def gathered(stream, model, units, mode):
    """Unit input over all chunks for all calls of all units, advancing from one to the next."""
    found = {}
    with model.quantization(*mode):
        for unit in units:
            for (_, call), part in stream.gather(unit, frozenset()).items():
                found[unit.name, call] = part.data.clone()
    return found


@pytest.mark.parametrize('graph', GRAPHS)
@pytest.mark.parametrize('granularity', GRANULARITIES)
@pytest.mark.parametrize('mode', [(False, False), (True, False), (True, True)], ids=['float', 'weights', 'both'])
def test_inputs_equal_those_of_full_forward_passes(graph, granularity, mode):
    make, shape = GRAPHS[graph]
    torch.manual_seed(0)
    context = calibrated(make(), images(6, *shape), chunk=4, w_bits=3, a_bits=3)
    model, chunks = context.model, context.chunks
    pristine = [c.clone() for c in chunks]
    with model.quantization(*mode):
        truth = hooked_inputs(model, chunks)
    units = model.units(granularity)
    assert len(units) >= 3 - (granularity == 'stage')
    stream = Stream(model, chunks)
    with model.quantization(*mode):
        for unit in units:
            expected = [seen[key] for seen in truth for key in keys_of(model.flow, unit)]
            for arguments, tensors in zip(advance(stream, unit), expected, strict=True):
                args = [a for a in (*arguments[0], *arguments[1].values()) if isinstance(a, torch.Tensor)]
                assert all(torch.equal(a, b) for a, b in zip(args, tensors, strict=True)), unit.name
    assert all(torch.equal(a, b) for a, b in zip(chunks, pristine))


@pytest.mark.parametrize('graph', GRAPHS)
def test_units_may_be_skipped(graph):
    """Straight to the last unit, or only every second one, as resumed runs do."""
    make, shape = GRAPHS[graph]
    context = calibrated(make(), images(6, *shape), chunk=4, w_bits=3, a_bits=3)
    model = context.model
    units = model.units('layer')
    full = gathered(Stream(model, context.chunks), model, units, (True, True))
    for some in (units[-1:], units[::2], units[1:]):
        found = gathered(Stream(model, context.chunks), model, some, (True, True))
        assert all(torch.equal(x, full[name]) for name, x in found.items())


def count_runs(model, names) -> Counter:
    """Counts real executions of modules, not answers of stubs."""
    counted = Counter()

    def counting(name, module):
        def forward(*args, **kwargs):
            counted[name] += 1
            return type(module).forward(module, *args, **kwargs)
        return forward

    for name in names:
        module = model.get_submodule(name)
        module.__dict__['forward'] = counting(name, module)
    return counted


@pytest.mark.parametrize('graph', GRAPHS)
def test_every_layer_runs_once_per_chunk(graph):
    """Cost linear in depth: over the whole walk each call in front of the last unit runs exactly once a chunk.

    The calls of a unit with several run on too, but for the last one: only then their output's shape is known.
    """
    make, shape = GRAPHS[graph]
    context = inserted(make(), images(6, *shape), chunk=2)
    model, units = context.model, context.model.units('layer')
    counted = count_runs(model.architecture, model.quantized_layers())
    stream = Stream(model, context.chunks)
    with model.quantization(weights=False, activations=False):
        for unit in units:
            advance(stream, unit)
    end = units[-1].spans[-1][0]
    calls = {n: sum(c.exit < end for c in model.flow.calls_of[n]) for n in model.quantized_layers()}
    assert dict(counted) == {n: 3 * k for n, k in calls.items() if k}


def test_blocks_run_once_per_chunk_however_many_units():
    """Eight blocks: eight runs a chunk, not 1 + 2 + ... + 8."""
    model = nn.Sequential(nn.Conv2d(3, 3, 1), *(BasicBlock(3, 3) for _ in range(8)), nn.Conv2d(3, 3, 1))
    context = inserted(randomize(model), images(6, 3, 4, 4), chunk=2)
    counted = count_runs(context.model.architecture, [str(i) for i in range(1, 9)])
    stream = Stream(context.model, context.chunks)
    with context.model.quantization(weights=False, activations=False):
        for unit in context.model.units('block'):
            advance(stream, unit)
    assert dict(counted) == {str(i): 3 for i in range(1, 9)}


@pytest.mark.parametrize('graph', ['residual', 'vit', 'inplace', 'branches'])
def test_chunk_size_changes_nothing(graph):
    make, shape = GRAPHS[graph]
    torch.manual_seed(0)
    model, x = make().double(), images(7, *shape).double()
    found = []
    for chunk in (7, 3, 1):
        context = calibrated(model, x, chunk=chunk, w_bits=8, a_bits=8)
        wrapped = context.model
        found.append(gathered(Stream(wrapped, context.chunks), wrapped, wrapped.units('layer'), (True, False)))
    assert found[0].keys() == found[1].keys() == found[2].keys()
    for name, data in found[0].items():
        for other in found[1:]:
            torch.testing.assert_close(other[name], data, rtol=1e-9, atol=1e-9)


def test_quantized_stream_sees_the_quantized_prefix():
    """Weights that change in front of the frontier are seen; what was passed stays as it was."""
    context = calibrated(Chain(depth=4), images(4, 3, 8, 8), w_bits=2, a_bits=None, overrides=())
    model = context.model
    units = model.units('layer')
    streams = [Stream(model, context.chunks) for _ in range(2)]
    with model.quantization(weights=False, activations=False):
        exact = [advance(streams[0], u)[0][0][0].clone() for u in units[:3]]
    with model.quantization(weights=True, activations=False):
        rough = [advance(streams[1], u)[0][0][0].clone() for u in units[:2]]
        layer = model.architecture.convs[1]
        layer.weight_quantizer.set_codes(torch.zeros_like(layer.weight_quantizer.encode(layer._parameters['weight'])))
        rough.append(advance(streams[1], units[2])[0][0][0])
        expected = F.relu(layer(rough[1]))
    assert torch.equal(rough[0], exact[0]) and not torch.equal(rough[1], exact[1])
    assert torch.equal(rough[2], expected)


def test_memory_holds_what_is_still_needed_only():
    """Behind each block of a chain one tensor a chunk stays."""
    model = nn.Sequential(nn.Conv2d(3, 3, 1), *(BasicBlock(3, 3) for _ in range(5)), nn.Conv2d(3, 3, 1))
    context = inserted(randomize(model), images(4, 3, 4, 4), chunk=2, a_bits=None, overrides=())
    stream = Stream(context.model, context.chunks)
    with context.model.quantization(weights=False, activations=False):
        for unit in context.model.units('block')[1:]:
            advance(stream, unit)
            for store in stream.stores:
                kept = [v for v in store.values() if isinstance(v, torch.Tensor)]
                assert len({v.data_ptr() for v in kept}) == 1


@torch.no_grad()
def test_run_behind_continues_from_the_unit():
    """The rest of the net on the unit's real output gives the net's real output."""
    for graph in ('residual', 'inplace', 'pyramid', 'shared'):
        make, shape = GRAPHS[graph]
        context = calibrated(make(), images(4, *shape), chunk=2)
        model = context.model
        with model.quantization(weights=False, activations=False):
            expected = [model.run(c) for c in context.chunks]
            stream = Stream(model, context.chunks)
            for unit in model.units('block'):
                advance(stream, unit)
                for i, e in enumerate(expected):
                    out = stream.run_behind(unit, i, lambda forward, args, kwargs: forward(*args, **kwargs))
                    assert all(torch.equal(a, b) for a, b in zip(out, e, strict=True)), (graph, unit.name)
                changed = stream.run_behind(unit, 0, lambda forward, args, kwargs: forward(*args, **kwargs) + 1)
                assert not all(torch.equal(a, b) for a, b in zip(changed, expected[0])), (graph, unit.name)


def test_another_control_flow_is_an_error():
    """A layer that only some images reach."""

    def sometimes(self, x):
        y = self.a(x)
        return self.c(self.b(y) if x.mean() < 5 else y)

    context = inserted(Net(sometimes, **convs('a', 'b', 'c')), images(4, 3, 4, 4), chunk=2)
    context.chunks[1].add_(10)
    stream = Stream(context.model, context.chunks)
    with context.model.quantization(weights=False, activations=False):
        with pytest.raises(RuntimeError, match='did not call b for this input, though it did when'):
            for unit in context.model.units('layer'):
                advance(stream, unit)


def test_model_is_left_as_it_was():
    context = inserted(randomize(ResNet()), x := images(4, 3, 16, 16), chunk=2)
    model = context.model
    with torch.no_grad(), model.quantization(weights=False, activations=False):
        before = model(x)
        stream = Stream(model, context.chunks)
        for unit in model.units('block'):
            advance(stream, unit)
        assert torch.equal(model(x), before)
    assert not any('forward' in m.__dict__ for m in model.modules())


def inputs_of(context, units) -> dict:
    """Name of each unit -> its first argument in each call on all chunks."""
    seen, handles = {}, []
    for unit in units:
        module = context.model.architecture.get_submodule(unit.name)
        handles.append(module.register_forward_pre_hook(
            lambda module, args, name=unit.name: seen.setdefault(name, []).append(args[0].clone())))
    for index in range(len(context.chunks)):
        context.run(index)
    for handle in handles:
        handle.remove()
    return seen


@needs_detectors
@pytest.mark.parametrize('name', ['retinanet', 'faster-rcnn'])
def test_inputs_of_shared_heads_are_those_of_full_forward_passes(name):
    """Each call of each unit, of a head on its pyramid levels too, in float and behind quantized layers."""
    context = context_of(detector(name), images(4, 3, 64, 64).split(2))
    model = context.model
    units = model.units('block')
    for weights in (False, True):
        stream = context.stream((weights, False))
        with torch.no_grad(), model.quantization(weights=weights, activations=False):
            seen = inputs_of(context, units)
            for i, unit in enumerate(units):
                pending = frozenset(n for u in units[i:] for n in u.layers)
                found = [args[0] for _, _, (args, _) in stream.walk(unit, pending)]
                assert len(found) == len(seen[unit.name]) and any(x.any() for x in found)
                for a, b in zip(found, seen[unit.name]):
                    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_blocks_that_nobody_reads_any_more_are_passed_over():
    """The cost of moving on does not grow with what lies behind: not even stubs of it run."""
    net = torch.nn.Sequential(*(torch.nn.Conv2d(3, 3, 3, padding=1) for _ in range(12))).eval()
    context = inserted(net, images(4, 3, 6, 6), chunk=2)
    model, calls, inputs = context.model, [], []
    for name, module in model.architecture.named_children():
        module.register_forward_hook(lambda m, args, out, name=name: calls.append(int(name)))
    stream = Stream(model, context.chunks, mode=(False, False))
    for number, unit in enumerate(model.units('layer')):
        calls.clear()
        inputs += advance(stream, unit)
        assert not calls or min(calls) >= number - 2
    for number in range(12):
        expected = context.chunks[0]
        with torch.no_grad(), model.quantization(False, False):
            for module in list(model.architecture)[:number]:
                expected = module(expected)
        assert torch.equal(inputs[2 * number][0][0], expected)
