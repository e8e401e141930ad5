"""Cached activations that advance unit by unit: each prefix is computed once, so cost grows linearly with depth.

A stream stands at a frontier (the entry of a unit). To move on, the model runs again with every module call that is
complete replaced by a stub: it returns its cached output where that is still needed, a placeholder of the right shape
where it is not. Only the modules between the old and the new frontier really run, whatever the graph looks like.
"""
from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch.utils._pytree import tree_map

from mmquant.models.dataflow import Call, DataFlow, wrapped_forwards
from mmquant.models.quantized_model import QuantizedModel
from mmquant.structures.unit import Unit

Key = tuple[str, int]


class _Reached(Exception):
    """The run arrived at its target; carries the call's arguments."""

    def __init__(self, args, kwargs) -> None:
        super().__init__('reached the target call')
        self.arguments = (args, kwargs)


@dataclass(frozen=True)
class _Dead:
    """Shape of an output nobody reads any more."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def _leaking(flow: DataFlow) -> set[int]:
    """Calls that a stub cannot stand for: a tensor made inside is read outside, but is not among their outputs."""
    reads = [(op.tick, v) for op in flow.ops for v in op.inputs]
    reads += [(flow.calls[0].exit - 0.5, v) for v in flow.calls[0].outputs]
    found = set()
    for tick, value in reads:
        made = flow.producer.get(value)
        for call in flow.ancestors(made.call) if made else ():
            if call.enter < tick < call.exit:
                break
            if value not in call.outputs:
                found.add(call.index)
    return found


def _completed(flow: DataFlow, tick: int, leaking: set[int]) -> dict[Key, Call]:
    """Outermost calls that ended before ``tick`` and do not leak."""
    found, inside = {}, set()
    for call in flow.calls:  # callers before what they call
        if call.parent in inside:
            inside.add(call.index)
        elif 0 <= call.exit < tick and call.index not in leaking:
            inside.add(call.index)
            found[call.key] = call
    return found


def _live_values(flow: DataFlow, completed: dict[Key, Call], tick: int) -> set[int]:
    """Values made before ``tick`` that are needed behind it, by later operations or through re-executed glue."""
    needed = {v for op in flow.ops if op.tick > tick for v in op.inputs} | set(flow.calls[0].outputs)
    spans = [(c.enter, c.exit) for c in completed.values()]
    for op in reversed([op for op in flow.ops if op.tick < tick]):
        if needed & set(op.outputs) and not any(a < op.tick < b for a, b in spans):
            needed |= set(op.inputs)
    return needed


class Stream:
    """Activations of all calibration chunks, in the quantization mode that is active while it advances.

    Args:
        model (QuantizedModel): Model whose data flow has been recorded.
        chunks (list[Tensor]): Preprocessed inputs, one entry a forward pass.
    """

    def __init__(self, model: QuantizedModel, chunks: list) -> None:
        self.model, self.flow, self.chunks = model, model.flow, chunks
        self.leaking = _leaking(self.flow)
        self.stores: list[dict] = [{} for _ in chunks]
        self._inner: dict[Key, dict[str, int]] = {}

    @torch.no_grad()
    def advance(self, unit: Unit) -> list[tuple[tuple, dict]]:
        """Move the frontier to the entry of ``unit``; returns its (args, kwargs) for each chunk."""
        target = next(c for c in self.flow.calls if c.name == unit.name and c.enter == unit.enter)
        return self._move(target.enter, target)

    @torch.no_grad()
    def advance_to(self, tick: float) -> None:
        """Move the frontier to a time on the data flow's clock: calls that end before it will be stubs.

        A hook of such a call still runs on what its stub answers.
        """
        self._move(tick, next((c for c in self.flow.calls if c.enter > tick), None))

    def _move(self, tick: float, target: Call | None) -> list[tuple[tuple, dict]]:
        completed = _completed(self.flow, tick, self.leaking)
        live = _live_values(self.flow, completed, tick)
        arguments = []
        for chunk, store in zip(self.chunks, self.stores):
            fresh = {}
            answers = {target.key: _raise_reached} if target else {}
            try:
                self._run(chunk, store, self._capture(completed, store, live, fresh), answers)
            except _Reached as reached:
                arguments.append(reached.arguments)
            else:
                if target:
                    raise RuntimeError(
                        f'the model did not call {target.name or "itself"} for this input, though it did when its data '
                        'flow was recorded; units need the same control flow for every image')
            store.update(fresh)
            for key in [k for k in store if k not in completed]:
                del store[key]
            for key, call in completed.items():
                if not live & set(call.outputs):
                    store[key] = tree_map(_bury, store[key])
        return arguments

    def run_behind(self, unit: Unit, index: int, replace):
        """Run chunk ``index`` through the net; ``replace(forward, args, kwargs)`` answers the unit's last call.

        That is the call of the activation behind the unit, if it has one, else of the unit itself. Calls before the
        frontier are stubs. Gradients flow if enabled outside.
        """
        name, tick = (unit.activation, unit.exit) if unit.activation else (unit.name, unit.enter - 1)
        last = next(c for c in self.flow.calls if c.name == name and c.enter > tick)
        return self._run(self.chunks[index], self.stores[index], {}, {last.key: replace})

    def run_rest(self, index: int):
        """Outputs of the net for chunk ``index``; calls before the frontier are stubs."""
        return self._run(self.chunks[index], self.stores[index], {}, {})

    def _capture(self, completed, store, live, fresh):
        wanted = {key: call for key, call in completed.items() if key not in store}
        mutated = self.flow.mutated

        def keep(call):
            alive, clone = bool(live & set(call.outputs)), bool(mutated & set(call.outputs))

            def put(out):
                fresh[call.key] = tree_map((lambda x: _copy(x, clone)) if alive else _bury, out)

            return put

        return {key: keep(call) for key, call in wanted.items()}

    def _run(self, chunk, store, captures, answers):
        counts: dict[str, int] = defaultdict(int)
        names = {k[0] for k in (*store, *captures, *answers)}
        inner = {key: self._inner_counts(key) for key in store}

        def wrap(name, module, forward):

            def replayed(*args, **kwargs):
                key = (name, counts[name])
                counts[name] += 1
                if key in answers:
                    return answers[key](forward, args, kwargs)
                if key in store:
                    for inner_name, n in inner[key].items():
                        counts[inner_name] += n
                    return tree_map(lambda x: _revive(x, key in mutated), store[key])
                out = forward(*args, **kwargs)
                if key in captures:
                    captures[key](out)
                return out

            return replayed

        mutated = {c.key for c in self.flow.calls if self.flow.mutated & set(c.outputs)}
        shared = {n for counts_ in inner.values() for n in counts_} & names
        with wrapped_forwards(self.model.architecture, wrap, names | shared):
            return self.model.run(chunk)

    def _inner_counts(self, key: Key) -> dict[str, int]:
        """How often the modules inside a call are called."""
        if key in self._inner:
            return self._inner[key]
        call = self.flow.calls_of[key[0]][key[1]]
        counts: dict[str, int] = defaultdict(int)
        for other in self.flow.calls:
            if call.enter < other.enter < call.exit:
                counts[other.name] += 1
        self._inner[key] = counts
        return counts


def _raise_reached(forward, args, kwargs):
    raise _Reached(args, kwargs)


def _copy(x, clone: bool):
    return x.detach().clone() if clone and isinstance(x, torch.Tensor) else x


def _bury(x):
    return _Dead(tuple(x.shape), x.dtype, x.device) if isinstance(x, torch.Tensor) else x


def _revive(x, overwritten: bool):
    if isinstance(x, _Dead):
        one = torch.zeros((), dtype=x.dtype, device=x.device)
        return one.expand(x.shape).clone() if overwritten else one.expand(x.shape)
    return _copy(x, overwritten)
