import contextlib

import pytest
import torch
from detectors_for_tests import context_of, detector, needs_detectors
from models_for_tests import Chain, ResNet, ViT, advance, calibrated, images, randomize
from torch.utils._pytree import tree_leaves

from mmquant.calibration.stream import Stream

MODES = dict(float=(False, False), weights=(True, False), quantized=(True, True))


def tensors(arguments):
    return [x for x in tree_leaves(arguments) if isinstance(x, torch.Tensor)]


def enabled_quantizers(model):
    return [q.enabled for q in (*model.weight_quantizers().values(), *model.activation_quantizers().values())]


@pytest.mark.parametrize('make, shape', [(ResNet, (3, 8, 8)), (ViT, (3, 8, 8)), (Chain, (3, 8, 8))])
@pytest.mark.parametrize('kind', ['layer', 'block'])
def test_streams_in_lock_step_equal_separate_runs(make, shape, kind):
    """Three modes, chunk by chunk in turns, against a stream each, moved alone while the model is in its mode."""
    context = calibrated(randomize(make()), images(6, *shape), chunk=2, w_bits=3, a_bits=3)
    model, separate = context.model, {}
    for name, mode in MODES.items():
        stream = Stream(model, context.chunks)
        with model.quantization(*mode):
            separate[name] = [[a for _, _, a in stream.walk(u, frozenset())] for u in model.units(kind)]
    different = 0
    for number, visit in enumerate(context.visits(kind, streams=tuple(MODES), name='test')):
        walks = [visit.calls(name) for name in MODES]
        for k, items in enumerate(zip(*walks, strict=True)):
            assert len({(chunk, call) for chunk, call, _ in items}) == 1
            for name, (_, _, arguments) in zip(MODES, items):
                expected = separate[name][number][k]
                assert all(torch.equal(a, b) for a, b in zip(tensors(arguments), tensors(expected), strict=True))
            different += not torch.equal(*(tensors(items[i][2])[0] for i in (0, 2)))
    assert number + 1 == len(model.units(kind)) and different >= 3


def test_no_mode_leaks():
    """What is switched on outside stays so while streams of other modes move, also where their walk is broken off."""
    context = calibrated(randomize(ResNet()), images(6, 3, 8, 8), chunk=2)
    model = context.model
    for outside in MODES.values():
        with model.quantization(*outside):
            before = enabled_quantizers(model)
            for visit in context.visits('block', streams=tuple(MODES), name='test'):
                for name in MODES:
                    next(visit.calls(name))
                    assert enabled_quantizers(model) == before
                    for _ in visit.outputs(name):
                        assert enabled_quantizers(model) == before
                    with visit.mode(name):
                        assert enabled_quantizers(model) != before or outside == MODES[name]
                assert enabled_quantizers(model) == before


def test_outputs_are_those_of_the_net_in_that_mode():
    context = calibrated(randomize(ResNet()), images(6, 3, 8, 8), chunk=2, w_bits=3, a_bits=3)
    for name, mode in MODES.items():
        with torch.no_grad(), context.model.quantization(*mode):
            expected = [context.run(k) for k in range(3)]
        *_, last = context.visits('net', streams=(name,), name='test')
        for (_, call, y), truth in zip(last.outputs(name), expected, strict=True):
            assert call == 0 and torch.equal(y, truth)


def test_a_stream_may_have_any_context_manager_for_a_mode():
    """Scales doubled while it moves: another input than that of the quantized stream, and nothing stays."""
    context = calibrated(randomize(ResNet()), images(4, 3, 8, 8), chunk=2, w_bits=3, a_bits=3)
    model, entered = context.model, []

    @contextlib.contextmanager
    def doubled():
        entered.append(True)
        scales = [q.scale for q in model.activation_quantizers().values()]
        before = [s.clone() for s in scales]
        with model.quantization(True, True):
            for s in scales:
                s.mul_(2)
            yield
        for s, old in zip(scales, before):
            s.copy_(old)

    state = {k: x.clone() for k, x in model.architecture.state_dict().items()}
    for visit in context.visits('block', streams=dict(quantized='quantized', doubled=doubled), name='test'):
        a, b = (visit.gather(name) for name in ('quantized', 'doubled'))
    (a,), (b,) = a.values(), b.values()
    assert not torch.equal(a.data, b.data) and len(entered) == 2 * len(model.units('block'))
    assert all(torch.equal(x, state[k]) for k, x in model.architecture.state_dict().items())


def test_a_quantized_stream_meets_the_final_state_of_the_units_before():
    """Whether it was asked for at every unit or only at the last one."""
    found = []
    for ask in (True, False):
        context = calibrated(randomize(Chain(depth=4)), images(4, 3, 8, 8), chunk=2, w_bits=2, overrides=())
        units = context.model.units('layer')
        for visit in context.visits('layer', streams=('weights',), name='test'):
            if ask or visit.unit == units[-1]:
                (data,) = visit.gather('weights').values()
            layer = context.model.quantized_layers()[visit.unit.layers[0]]
            layer.weight_quantizer.scale.mul_(1.5)
        found.append(data.data)
    assert torch.equal(*found)


def test_resume_seeds_pending_records_and_progress():
    """Begins where it is told to; numbers, seeds and what is still to come are those of the whole walk."""
    shown, done = [], []

    class Bar:
        def __init__(self, description, total):
            shown.append((description, total))

        def __enter__(self):
            return self

        def __exit__(self, *exc):
            shown.append('closed')

        def update(self, ticks, text=''):
            shown.append((ticks, text))

    context = calibrated(randomize(ResNet()), images(2, 3, 8, 8))
    context.step_index, context.progress, context.unit_done = 4, Bar, done.append
    units = context.model.units('block')
    whole = {v.index: (v.seed, v.pending) for v in context.visits('block', lambda u: 'layer' in u.name, name='a')}
    assert list(whole) == [i for i, u in enumerate(units) if 'layer' in u.name] == done
    assert whole[1][1] == {n for u in units if 'layer' in u.name for n in u.layers}
    assert len({seed for seed, _ in whole.values()}) == 4
    shown.clear()
    done.clear()
    context.records.clear()
    context.first_unit = 3
    for visit in context.visits('block', lambda u: 'layer' in u.name, name='a', ticks=10):
        assert (visit.seed, visit.pending) == whole[visit.index]
        visit.tick(5, 'loss 1')
        visit.record(loss=1.0)
        assert visit.index not in done
    assert done == [3, 4]
    first = shown[2][0]  # of 20, by the operations of the unit
    assert shown == [('a (2 units)', 20), (first / 2, 'layer2.0 loss 1'), (first, 'layer2.0'),
                     (pytest.approx(10 + first / 2), 'layer2.1 loss 1'), (20, 'layer2.1'), 'closed'] and 5 < first < 10
    assert context.records == [dict(kind='unit', step='a', unit=f'layer2.{k}', loss=1.0) for k in (0, 1)]
    context.first_unit = 9
    assert not list(context.visits('block', name='a'))


def test_a_unit_that_fails_is_not_done():
    context, done = calibrated(randomize(ResNet()), images(2, 3, 8, 8)), []
    context.unit_done = done.append
    with pytest.raises(KeyError):
        for visit in context.visits('block', name='a'):
            if visit.index == 1:
                raise KeyError
    assert done == [0]


def test_streams_do_not_go_back():
    context = calibrated(randomize(ResNet()), images(2, 3, 8, 8))
    first, second = context.model.units('block')[1:3]
    stream = context.stream('float')
    advance(stream, second)
    advance(stream, second)
    with pytest.raises(RuntimeError, match='asked to go to layer1.0, which it has passed; streams only move forward'):
        advance(stream, first)
    assert stream.reaching(second) is stream
    (again,), (expected,) = (s.gather(first, frozenset()).values() for s in (stream.reaching(first),
                                                                              context.stream('float')))
    assert torch.equal(again.data, expected.data)


def test_unknown_names():
    context = calibrated(randomize(ResNet()), images(2, 3, 8, 8))
    with pytest.raises(ValueError, match="unknown stream 'quant'; did you mean 'quantized'"):
        context.stream('quant')
    with pytest.raises(ValueError, match="unknown unit granularity 'blocks'"):
        list(context.visits('blocks', name='a'))


@needs_detectors
@pytest.mark.parametrize('name', ['retinanet', 'faster-rcnn'])
def test_detectors_in_lock_step(name):
    """Heads on pyramid levels; a second stage gets the proposals of the float net in every mode."""
    context = context_of(detector(name), images(4, 3, 64, 64).split(2))
    model, separate = context.model, {}
    for mode in ('float', 'weights'):
        stream, units = context.stream(mode), model.units('block')
        separate[mode] = [[a for _, _, a in stream.walk(u, frozenset(n for v in units[i:] for n in v.layers))]
                          for i, u in enumerate(units)]
    for number, visit in enumerate(context.visits('block', streams=('float', 'weights'), name='test')):
        for k, items in enumerate(zip(visit.calls('float'), visit.calls('weights'), strict=True)):
            assert items[0][:2] == items[1][:2]
            for mode, (_, _, arguments) in zip(separate, items):
                for a, b in zip(tensors(arguments), tensors(separate[mode][number][k]), strict=True):
                    assert torch.equal(a, b), visit.unit.name


def test_progress_counts_operations():
    """The time left is told by what units cost, not by their number."""
    context, seen = calibrated(randomize(ResNet()), images(4, 3, 8, 8), chunk=4), []

    @contextlib.contextmanager
    def progress(description, total):
        seen.append(total)
        yield type('Bar', (), dict(update=lambda self, done, text='': seen.append(done)))()

    context.progress = progress
    for visit in context.visits('block', streams=('float', ), ticks=10):
        visit.tick(5)
    total, *done = seen
    assert done == sorted(done) and done[-1] == total == 10 * len(context.model.units('block'))
    steps = [b - a for a, b in zip([0, *done[1::2]], done[1::2])]
    assert max(steps) > 3 * min(steps)  # the head is cheap
