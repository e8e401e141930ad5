"""Work on the data flow grows linearly with depth: counted in executed lines, which no load of the machine changes."""
import sys
from functools import partial

import pytest
import torch
from models_for_tests import BasicBlock, images, quantizer_cfg, randomize
from torch import nn

from mmquant.calibration.frontier import completed_calls, leaking_calls, live_values
from mmquant.models import QuantizedModel
from mmquant.models.dataflow import DataFlow
from mmquant.structures.unit import GRANULARITIES

PACKAGE = 'mmquant/models', 'mmquant/calibration'


def lines(function) -> int:
    """Lines of the package that a call executes, each pass of a loop or comprehension counted."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        if event == 'call':
            return trace if any(part in frame.f_code.co_filename for part in PACKAGE) else None
        count += event == 'line'
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


def deep(blocks: int, x: torch.Tensor) -> QuantizedModel:
    """Folded and observed: four stages of equally many blocks."""
    stages = [nn.Sequential(*(BasicBlock(4, 4) for _ in range(blocks // 4))) for _ in range(4)]
    net = nn.Sequential(nn.Conv2d(3, 4, 1), *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    model = QuantizedModel(randomize(net), quantizer_cfg(), 'random')
    model.fold_batch_norm(x)
    model.observe(x)
    return model


def units(model, x):
    for kind in GRANULARITIES:
        assert model.units(kind)


def frontier(flow, tick):
    live_values(flow, completed_calls(flow, tick, leaking_calls(flow)), tick)


def plan(model, x):
    assert model.make_plan(x).layers


@pytest.mark.parametrize('work', [plan, units])
def test_work_grows_linearly_with_depth(work):
    x, counted = images(1, 3, 4, 4), []
    for blocks in (8, 16, 32):
        model = deep(blocks, x)
        counted.append(lines(partial(work, model, x)))
    assert counted[2] - counted[1] < 2.3 * (counted[1] - counted[0])


def test_a_frontier_asks_for_nothing_behind_it():
    counted = []
    for blocks in (8, 32):
        model = deep(blocks, images(1, 3, 4, 4))
        ask = partial(frontier, model.flow, model.units()[2].enter)
        ask()  # makes the tables of the record
        counted.append(lines(ask))
    assert counted[0] == counted[1] > 20


def test_units_are_found_once_per_record(monkeypatch):
    """Not once per ask, and each call is looked into once for all kinds of units."""
    model = deep(8, images(1, 3, 4, 4))
    looked, own = [], DataFlow._keeps_to_itself
    monkeypatch.setattr(DataFlow, '_keeps_to_itself', lambda flow, call: looked.append(call.index) or own(flow, call))
    first = {kind: model.units(kind) for kind in GRANULARITIES}
    assert len(looked) == len(set(looked)) <= len(model.flow.calls)
    looked.clear()
    assert {kind: model.units(kind) for kind in GRANULARITIES} == first and not looked
    first['block'].clear()  # what was handed out is the caller's
    assert len(model.units('block')) == 1 + 8 + 1


def test_a_new_record_is_looked_into_again():
    model = deep(4, images(1, 3, 4, 4))
    before = model.units('net')[0]
    model.architecture[0] = nn.Sequential(model.architecture[0], nn.Conv2d(4, 4, 1))
    model.observe(images(1, 3, 4, 4))
    assert model.units('net')[0].layers == ('0.0', '0.1', *before.layers[1:])
