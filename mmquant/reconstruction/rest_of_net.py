"""The float net after a unit, up to the end of its stage or of the net, as a function of the unit's output.

The module around, the stage or the whole model, is run with the unit's last call answered by a given tensor. Calls in
front of it are answered by placeholders; where the rest needs their values (a shortcut around the unit), they are
computed anew, in float and without gradient.
"""
import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from mmengine.logging import print_log
from torch.utils._pytree import tree_map

from mmquant.calibration.frontier import completed_calls, leaking_calls, ops_outside
from mmquant.calibration.stream import Placeholder, Stream, bury, revive
from mmquant.calibration.unit_inputs import UnitInput, output_of, pick, run_in_chunks
from mmquant.calibration.unit_run import UnitRun
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


def last_call(flow: DataFlow, unit: Unit) -> Call:
    """The call that returns a unit's output: of the activation behind it, if it has one, else of the unit itself."""
    name, tick = (unit.activation, unit.exit) if unit.activation else (unit.name, unit.enter - 1)
    return next(c for c in flow.calls_of[name] if c.enter > tick)


def end_of(model: QuantizedModel, unit: Unit, end: str) -> Unit | None:
    """The stage or the net around a unit; None where there is none, or the unit returns the same.

    Units that are called several times, and outputs of several tensors, have none.
    """
    around = model.units('net') if end == 'net' else [u for u in model.units('stage') if u.kind == 'stage']
    for outer in around:
        if outer.enter < unit.enter and unit.exit < outer.exit and not outer.more and not unit.more:
            call = next(c for c in model.flow.calls_of[outer.name] if c.enter == outer.enter)
            last = last_call(model.flow, unit)
            one_tensor = len(call.outputs) == len(last.outputs) == 1
            return outer if one_tensor and last.outputs != call.outputs else None
    return None


class Tail:
    """The float net from a unit's output to the output of the module around it.

    Args:
        model (QuantizedModel): Its quantizers are off inside the tail, whatever they are outside.
        unit (Unit): Where the tail begins.
        end (Unit): A unit around it, see :func:`end_of`.
        data (UnitInput): Float input of ``end`` for all calibration rows.
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
        self.stubs = {} if _is_needed(flow, ready, self.last, around) else {c.index: None for c in ready.values()}
        # The calls that a run really makes, by module: those within skipped ones are not made.
        self.made: dict[str, list[Call]] = defaultdict(list)
        self.names, passed = set(), around.enter  # calls are ordered by entry, and skipped ones do not nest
        for call in flow.calls_within(around):
            if call.enter > passed:
                self.made[call.name].append(call)
                if call.index in self.stubs or call is self.last:
                    self.names.add(call.name)
                    passed = call.exit
        if self.stubs:
            self._learn_shapes()

    @torch.no_grad()
    def _learn_shapes(self) -> None:
        """See what the calls in front return, on up to two rows; only their shapes are kept."""
        self.seen, shapes = min(2, len(self.data)), {}

        def answer(call, forward, args, kwargs):
            output = forward(*args, **kwargs)
            if call.index in self.stubs:
                shapes[call.index] = tree_map(bury, output)
            return output

        self._run(pick(self.data.data, torch.arange(self.seen)), answer)
        self.stubs = shapes

    def __call__(self, output: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Output of the module around for the unit's ``output`` on some calibration rows; gradients flow to it."""
        def answer(call, forward, args, kwargs):
            if call is self.last:
                return output
            if call.index in self.stubs:
                return tree_map(lambda x: _of_rows(x, len(output), self.seen), self.stubs[call.index])
            return forward(*args, **kwargs)

        return self._run(pick(self.data.data, rows), answer)

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


def _of_rows(x, rows: int, seen: int):
    """Stands for what a call returned on ``seen`` rows of data, now on ``rows``."""
    if isinstance(x, Placeholder) and x.shape:
        x = replace(x, shape=(x.shape[0] * rows // seen, *x.shape[1:]))
    return revive(x)


def _is_needed(flow: DataFlow, ready: dict, last: Call, around: Call) -> bool:
    """Whether what follows ``last`` reads a tensor that a call in front of it made."""
    needed = {v for op in flow.ops_between(last.exit, around.exit) for v in op.inputs} | set(around.outputs)
    needed -= set(last.outputs)
    for op in reversed(ops_outside(flow, sorted((c.enter, c.exit) for c in ready.values()), around.enter, last.enter)):
        if not needed.isdisjoint(op.outputs):
            needed |= set(op.inputs)
    return any(not needed.isdisjoint(c.outputs) for c in ready.values())


class Tails:
    """The tails of a model's units; float input and output of a stage are computed once, when it begins.

    Args:
        stream (Stream): Of the float net; a unit's tail is asked for before the stream advances to it.
        end (str): ``'stage'`` or ``'net'``.
        chunk (int): Rows a forward pass.
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
                self.targets = {key: self._run(x) for key, x in self.data.items()}
            tails = {key: Tail(self.model, unit, end, x) for key, x in self.data.items()}
        return {key: TailEnd(tail, self.targets[key], end.channel_dim) for key, tail in tails.items()}

    def _run(self, data: UnitInput):
        return run_in_chunks(UnitRun(self.model, self.end, data=data, activation=False), data.data, self.chunk,
                             self.stream.cache)
