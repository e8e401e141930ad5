"""The float net after a unit, up to the end of its stage or of the net, as a function of the unit's output.

The module around, the stage or the whole model, is run with the unit's last call answered by a given tensor. Calls in
front of it are answered by placeholders; where the rest needs their values (a shortcut around the unit), they are
computed anew, in float and without gradient.
"""
import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from mmengine.logging import print_log
from torch.utils._pytree import tree_map

from mmquant.calibration.frontier import completed_calls, leaking_calls, ops_outside
from mmquant.calibration.stream import Stream, bury, revive
from mmquant.calibration.unit_inputs import UnitInput, UnitRun, output_of, pick, run_in_chunks
from mmquant.models.dataflow import Call, DataFlow, wrapped_forwards
from mmquant.models.layers import enabled
from mmquant.models.quantized_model import QuantizedModel
from mmquant.quantizers import Quantizer
from mmquant.structures.unit import Unit


@dataclass(frozen=True)
class TailEnd:
    """What a unit's output is compared with further on."""
    tail: Callable  # tail(output, rows) -> output at the end, with gradients; see Tail
    targets: torch.Tensor  # float output at the end for all calibration rows
    channel_dim: int  # channel axis of the targets
    images: float  # in one of its rows


def last_call(flow: DataFlow, unit: Unit) -> Call:
    """The call that returns a unit's output: of the activation behind it, if it has one, else of the unit itself."""
    name, tick = (unit.activation, unit.exit) if unit.activation else (unit.name, unit.enter - 1)
    return next(c for c in flow.calls_of[name] if c.enter > tick)


def end_of(model: QuantizedModel, unit: Unit, end: str) -> Unit | None:
    """The stage or the net around a unit; None where there is none, or the unit returns the same.

    Units that are called several times, and outputs of several tensors, have none.
    """
    for outer in model.units('net') if end == 'net' else [u for u in model.units('stage') if u.kind == 'stage']:
        if outer.enter < unit.enter and unit.exit < outer.exit and not outer.more and not unit.more:
            call = next(c for c in model.flow.calls_of[outer.name] if c.enter == outer.enter)
            last = last_call(model.flow, unit)
            return outer if len(call.outputs) == len(last.outputs) == 1 and last.outputs != call.outputs else None
    return None


class Tail:
    """The float net from the output of ``unit`` to that of ``end``, a unit around it, see :func:`end_of`.

    Quantizers are off inside, whatever they are outside; ``data`` is the float input of ``end`` for all rows.
    """

    def __init__(self, model: QuantizedModel, unit: Unit, end: Unit, data: UnitInput) -> None:
        self.model, self.data = model, data
        self.module = model.architecture.get_submodule(end.name)
        self.quantizers = [m for m in self.module.modules() if isinstance(m, Quantizer)]
        flow = model.flow
        self.last = last_call(flow, unit)
        around = next(c for c in flow.calls_of[end.name] if c.enter == end.enter)
        ready = {k: c for k, c in completed_calls(flow, self.last.enter, leaking_calls(flow)).items()
                 if around.enter < c.enter < around.exit}
        self.stubs = set() if _is_needed(flow, ready, self.last, around) else {c.index for c in ready.values()}
        # The calls that a run really makes, by module: those within skipped ones are not made.
        self.made: dict[str, list[Call]] = defaultdict(list)
        self.names, passed = set(), around.enter  # calls are ordered by entry, and skipped ones do not nest
        for call in flow.calls_within(around):
            if call.enter > passed:
                self.made[call.name].append(call)
                if call.index in self.stubs or call is self.last:
                    self.names.add(call.name)
                    passed = call.exit
        self.shapes: dict[int, dict] = {}  # number of rows -> what the skipped calls return for so many, by call

    @torch.no_grad()
    def _learn_shapes(self, data) -> dict:
        found = {}

        def learn(call, forward, args, kwargs):
            output = forward(*args, **kwargs)
            if call.index in self.stubs:
                found[call.index] = tree_map(bury, output)
            return output

        self._run(data, learn)
        return found

    def __call__(self, output: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Output of the module around for the unit's ``output`` on some calibration rows; gradients flow to it."""
        data = pick(self.data.data, rows)
        if self.stubs and len(rows) not in self.shapes:
            self.shapes[len(rows)] = self._learn_shapes(data)

        def answer(call, forward, args, kwargs):
            if call is self.last:
                return output
            if call.index in self.stubs:
                return tree_map(revive, self.shapes[len(rows)][call.index])
            return forward(*args, **kwargs)

        return self._run(data, answer)

    def _run(self, data, answer):
        counts: dict[str, int] = defaultdict(int)

        def wrap(name, module, forward):
            def replayed(*args, **kwargs):
                calls = self.made[name]
                call = calls[min(counts[name], len(calls) - 1)]
                counts[name] += 1
                return answer(call, forward, args, kwargs)

            return replayed

        args, kwargs = self.data.arguments(data)
        with enabled(self.quantizers, False), wrapped_forwards(self.model.architecture, wrap, self.names):
            return output_of(self.module(*args, **kwargs))


def _is_needed(flow: DataFlow, ready: dict, last: Call, around: Call) -> bool:
    """Whether what follows ``last`` reads a tensor that a call in front of it made."""
    needed = {v for op in flow.ops_between(last.exit, around.exit) for v in op.inputs} | set(around.outputs)
    needed -= set(last.outputs)
    for op in reversed(ops_outside(flow, sorted((c.enter, c.exit) for c in ready.values()), around.enter, last.enter)):
        if not needed.isdisjoint(op.outputs):
            needed |= set(op.inputs)
    return any(not needed.isdisjoint(c.outputs) for c in ready.values())


class Tails:
    """The tails of a model's units, up to the ``end`` of their ``'stage'`` or of the ``'net'``.

    Float input and output of a stage are computed once, when it begins, in passes of ``chunk`` rows. ``stream`` is of
    the float net; a unit's tail is asked for before it advances to the unit.
    """

    def __init__(self, model: QuantizedModel, stream: Stream, end: str, chunk: int) -> None:
        self.model, self.stream, self.where, self.chunk = model, stream, end, chunk
        self.end, self.data, self.targets = None, {}, {}
        if not any(end_of(model, unit, end) for unit in model.units()):
            print_log(f'no block has a {end} after it, so the tail loss does nothing: declare block classes in '
                      "quantizer.block_types, or use end='net'", 'current', logging.WARNING)

    @torch.no_grad()
    def of(self, unit: Unit, pending: frozenset[str]) -> dict[tuple, TailEnd]:
        """The unit's tails by (size of the images, number of the call); ``pending`` as in :meth:`Stream.walk`.

        Empty for the last unit of a stage, whose output is the stage's, and outside of stages.
        """
        end = end_of(self.model, unit, self.where)
        if end is None:
            return {}
        with self.model.quantization(weights=False, activations=False):
            if end != self.end:
                self.end, self.data = end, self.stream.reaching(end).gather(end, pending)
                self.targets = {key: run_in_chunks(UnitRun(self.model, end, data=x, activation=False), x.data,
                                                   x.items.rows(self.chunk), self.stream.cache, x.items.outputs)
                                for key, x in self.data.items()}
            return {key: TailEnd(Tail(self.model, unit, end, x), self.targets[key], end.channel_dim, x.items.images)
                    for key, x in self.data.items()}
