"""Cached activations that advance unit by unit: each prefix is computed once, so cost grows linearly with depth.

A stream stands at a frontier (the entry of a unit). To move on, the model runs again with every module call that is
complete replaced by a stub: it returns its cached output where that is still needed, a placeholder of the right shape
where it is not. Only the modules between the old and the new frontier really run, whatever the graph looks like.
"""
import contextlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from mmquant.calibration import frontier
from mmquant.calibration.cache import Cache, CachedTensor, load
from mmquant.calibration.frontier import Key, completed_calls, live_values
from mmquant.calibration.items import Items, find_items, tell_of_groups
from mmquant.calibration.unit_inputs import UnitInput, UnitInputBuilder, UnitRun
from mmquant.models.dataflow import Call, wrapped_forwards
from mmquant.models.detection import Decisions
from mmquant.models.layers import PerCall
from mmquant.models.quantized_model import QuantizedModel
from mmquant.structures.unit import Unit


class _Reached(Exception):
    """The run arrived at its last target."""


@dataclass(frozen=True)
class Placeholder:
    """Shape of an output nobody reads any more."""
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class Stream:
    """Activations of all calibration chunks in one quantization mode, which the stream switches to where it advances.

    Outside of that the model is as it was: streams of different modes can be walked in turns.

    Args:
        model (QuantizedModel): Model whose data flow has been recorded.
        chunks, samples, decisions, cache: As of a :class:`CalibrationContext`.
        mode (tuple[bool, bool] | Callable | None): Whether (weights, activations) are quantized, or a function that
            returns a context manager. Default None: as the model stands.
    """

    def __init__(self, model: QuantizedModel, chunks: list, samples: list | None = None,
                 decisions: Decisions | None = None, cache: Cache | None = None,
                 mode: tuple[bool, bool] | Callable | None = None) -> None:
        self.model, self.flow, self.chunks = model, model.flow, chunks
        self.samples, self.decisions, self.cache = samples, decisions or Decisions(), cache or Cache()
        self.mode = mode if callable(mode) else partial(model.quantization, *mode) if mode else contextlib.nullcontext
        self.leaking = frontier.leaking_calls(self.flow)
        self._front = -1.0  # where it stands on the data flow's clock
        self.stores: list[dict] = [{} for _ in chunks]
        self.shapes: list[dict] = [{} for _ in chunks]  # outputs of calls that may be passed over
        self.buried: list[set] = [set() for _ in chunks]  # kept calls of which only shapes are left
        self.modules = dict(model.architecture.named_modules())
        self.chains = {n for n, m in self.modules.items() if type(m).forward is nn.Sequential.forward}
        self.per_call = {n for n, m in self.modules.items()
                         if isinstance(getattr(m, 'input_quantizer', None), PerCall)}
        self.mutated = {c.key for c in self.flow.calls if self.flow.mutated & set(c.outputs)}
        self._inner: dict[Key, dict[str, int]] = {}

    def gather(self, unit: Unit, pending: frozenset[str], known: dict[tuple, Items] | None = None,
               images: Mapping[tuple, float] | None = None) -> dict[tuple, UnitInput]:
        """Move to ``unit``, see :meth:`walk`; its inputs on all images, by (shape of an image, number of the call).

        ``known`` :class:`Items` by the same keys are what its items are; those that are missing are found, with as many
        ``images`` an item as these say, and noted there.
        """
        known, parts = {} if known is None else known, {}
        for index, call, arguments in self.walk(unit, pending):
            key, count = (tuple(self.chunks[index].shape[1:]), call), len(self.chunks[index])
            if key not in parts:
                find = partial(self._items, unit, key, known, (images or {}).get(key))
                parts[key] = UnitInputBuilder(find, self.cache)
            try:
                parts[key].add(arguments, count)
            except ValueError as error:
                raise ValueError(f'unit {unit.name or "net"}: {error}') from error
        return {key: part.build() for key, part in parts.items()}

    def _items(self, unit: Unit, key: tuple, known: dict[tuple, Items], images: float | None, parts: list) -> Items:
        """Items of one call of a unit, from the arguments of one or two chunks; with the float unit."""
        if key not in known:
            call = self._calls(unit)[key[1]]
            with self.model.quantization(weights=False, activations=False):
                known[key] = find_items(UnitRun(self.model, unit, key[1]).on, parts, call.leaves,
                                        self._axes(call, parts[0]), images)
            tell_of_groups(unit.name, known[key])
        return known[key]

    def _axes(self, call: Call, part: tuple) -> dict[int, int]:
        """The axis of a call's inputs that has grown as the images have since the data flow was recorded."""
        (arguments, now), before = part, self.flow.shapes[self.flow.network_inputs[0]][0]
        leaves, found = tree_leaves(arguments), {}
        if len(call.leaves) == len(call.inputs):
            for place, value in zip(call.leaves, call.inputs):
                shape, old = leaves[place].shape, self.flow.shapes[value]
                grown = [a for a, (n, m) in enumerate(zip(shape, old)) if n != m and n * before == m * now]
                found |= {place: grown[0]} if len(shape) == len(old) and grown else {}
        return found

    def _calls(self, unit: Unit) -> list[Call]:
        begins = {enter for enter, _ in unit.spans}
        return [call for call in self.flow.calls_of[unit.name] if call.enter in begins]

    @torch.no_grad()
    def walk(self, unit: Unit, pending: frozenset[str]):
        """Move the frontier to the entry of ``unit``; yields (chunk, number of the unit's call, its (args, kwargs)).

        ``pending`` are the layers of this unit and of all that the stream is still to reach; what was computed from
        them behind the frontier (between the first and the last call of a unit with several) is not kept, so that
        their inputs are. Empty where no layer is to be fitted any more.
        """
        targets = self._calls(unit)
        self._move(targets[0].enter, unit.name or 'the net')
        completed = completed_calls(self.flow, targets[0].enter, self.leaking)
        skipped: dict[Key, Call] = {}
        if len(targets) > 1:
            loose = frontier.pending_values(self.flow, pending)
            completed |= frontier.outermost(self.flow, targets, lambda c: c.index not in self.leaking and not any(
                loose & set(op.outputs) for op in self.flow.ops_within(c)))
            needed = frontier.ancestor_values(self.flow, targets)
            skipped = frontier.outermost(self.flow, targets, lambda c: c.key not in completed and not needed & {
                *c.outputs, *(v for op in self.flow.ops_within(c) for v in op.outputs)})
            skipped |= {t.key: t for t in targets[:-1]}
        live = live_values(self.flow, completed, targets[0].enter)
        for index, found in self._carry(completed, live,
                                        lambda index, captures: self._reach(index, unit, targets, captures, skipped)):
            while found:
                yield index, len(targets) - len(found), found.pop(0)

    @torch.no_grad()
    def advance_to(self, tick: float) -> None:
        """Move the frontier to a time on the data flow's clock: calls that end before it will be stubs.

        A hook of such a call, its output quantizer for example, still runs on what the stub answers.
        """
        target = next((c for c in self.flow.calls if c.enter > tick), None)
        self._move(tick, f'time {tick}')
        completed = completed_calls(self.flow, tick, self.leaking)

        def run(index, captures):
            with contextlib.suppress(_Reached):
                self._run(index, captures, {target.key: _stop} if target else {})

        for _ in self._carry(completed, live_values(self.flow, completed, tick), run):
            pass

    def _carry(self, completed: dict[Key, Call], live: set[int], run: Callable):
        """Let ``run(index, captures)`` take each chunk further; yields the chunk's number and what it returned."""
        for index, store in enumerate(self.stores):
            fresh: dict[Key, object] = {}
            with self.mode():
                found = run(index, self._capture(index, completed, live, fresh))
            store.update(fresh)
            for key in [k for k in store if k not in completed]:  # inside of completed calls
                del store[key]
            for key, call in completed.items():
                if key in store and key not in self.buried[index] and not live & set(call.outputs):
                    store[key] = tree_map(bury, store[key])  # nobody reads it any more
                    self.buried[index].add(key)
            yield index, found

    def reaching(self, unit: Unit) -> 'Stream':
        """This stream, or one like it at the beginning if this one has passed the entry of ``unit``."""
        if self._front <= unit.enter:
            return self
        return Stream(self.model, self.chunks, self.samples, self.decisions, self.cache, self.mode)

    def _move(self, tick: float, where: str) -> None:
        if tick < self._front:
            raise RuntimeError(f'a stream was asked to go to {where}, which it has passed; streams only move forward, '
                               'since what is not needed further on is forgotten')
        self._front = tick

    def run_rest(self, index: int):
        """Outputs of the net for chunk ``index`` in the mode that is active, with gradients if enabled."""
        return self._run(index, {}, {})

    def _reach(self, index: int, unit: Unit, targets: list[Call], captures: dict, skipped: dict) -> list:
        """Run a chunk up to the last target; returns the arguments of each."""
        found = []

        def collect(forward, args, kwargs):
            call = targets[len(found)]
            found.append(tree_map(lambda x: _copy(x, bool(self.flow.mutated & set(call.inputs))), (args, kwargs)))
            if len(found) == len(targets):
                raise _Reached
            if call.key not in self.shapes[index]:
                self.shapes[index][call.key] = tree_map(bury, forward(*args, **kwargs))
            return tree_map(revive, self.shapes[index][call.key])

        try:
            self._run(index, captures, {t.key: collect for t in targets}, skipped)
        except _Reached:
            return found
        raise RuntimeError(f'the model did not call {unit.name or "itself"} for this input, though it did when its '
                           'data flow was recorded; units need the same control flow for every image')

    def run_behind(self, unit: Unit, index: int, replace, begin=None):
        """As :meth:`run_rest`, with another answer at the end of the unit: ``replace(forward, args, kwargs)``.

        That is the activation behind the unit, if it has one, else the unit itself, in each of its calls.
        ``begin(forward, args, kwargs)`` answers the unit itself where an activation follows.
        """
        answers = {}
        for enter, leave in unit.spans:
            own = next(c for c in self.flow.calls_of[unit.name] if c.enter == enter)
            if unit.activation:
                if begin:
                    answers[own.key] = begin
                own = next(c for c in self.flow.calls_of[unit.activation] if c.enter > leave)
            answers[own.key] = replace
        return self._run(index, {}, answers)

    def _capture(self, index: int, completed: dict[Key, Call], live: set[int], fresh: dict[Key, object]) -> dict:
        """For each completed call that is not kept yet, ``put(output)``, which keeps it in ``fresh``."""
        memo: dict[int, object] = {}  # outputs that several calls return are kept once

        def keep(x, clone):
            if not isinstance(x, torch.Tensor):
                return x
            if clone:
                return self.cache.put(x.detach().clone())
            if id(x) not in memo:
                memo[id(x)] = self.cache.put(x), x
            return memo[id(x)][0]

        def put(call, out):
            alive, clone = bool(live & set(call.outputs)), bool(self.flow.mutated & set(call.outputs))
            fresh[call.key] = tree_map((lambda x: keep(x, clone)) if alive else bury, out)

        return {key: partial(put, call) for key, call in completed.items() if key not in self.stores[index]}

    def _run(self, index: int, captures: dict, answers: dict, skipped: dict | None = None):
        """Run a chunk: kept calls are stubs, ``captures[key](output)`` sees outputs, ``answers[key]`` replaces calls,
        and ``skipped`` calls are passed over once the shape of their output is known."""
        store, shapes, skipped = self.stores[index], self.shapes[index], skipped or {}
        counts: dict[str, int] = defaultdict(int)
        names = {name for name, _ in (*store, *captures, *answers, *skipped)} | self.per_call
        names |= self.chains & {name.rpartition('.')[0] for name in names}
        per_call, mutated = self.per_call, self.mutated

        def wrap(name, module, forward):

            def replayed(*args, **kwargs):
                key = name, counts[name]
                counts[name] += 1
                if name in per_call:
                    module.input_quantizer.position = key[1]
                if key in answers:
                    return answers[key](forward, args, kwargs)
                if key in store or (key in skipped and key in shapes):
                    for inner_name, n in self._inner_counts(key).items():
                        counts[inner_name] += n
                    return tree_map(lambda x: revive(x, key in mutated), store[key] if key in store else shapes[key])
                if name in self.chains and (passed := self._to_pass(index, name, module)):
                    out = args[0]
                    for child in list(module)[passed:]:
                        out = child(out)
                else:
                    out = forward(*args, **kwargs)
                if key in captures:
                    captures[key](out)
                if key in skipped:
                    shapes[key] = tree_map(bury, out)
                return out

            return replayed

        with wrapped_forwards(self.model.architecture, wrap, {name: self.modules[name] for name in names}), \
                self.decisions.pinned(self.model.architecture, index):
            return self.model.run(self.chunks[index], self.samples and self.samples[index])

    def _inner_counts(self, key: Key) -> dict[str, int]:
        """How often the modules inside a call are called, but for those that are called nowhere else."""
        if key not in self._inner:
            found = Counter(c.name for c in self.flow.calls_within(self.flow.calls_of[key[0]][key[1]]))
            self._inner[key] = {n: k for n, k in found.items() if k < len(self.flow.calls_of[n])}
        return self._inner[key]

    def _to_pass(self, index: int, name: str, module: nn.Sequential) -> int:
        """How many of the first modules of a sequence nobody needs to see run, not even as stubs: the others begin with
        a stub, and what the first ones answer is read by nobody."""
        buried, calls_of, count = self.buried[index], self.flow.calls_of, 0
        for child in module._modules:
            key = f'{name}.{child}' if name else child, 0
            if key not in buried or len(calls_of[key[0]]) > 1 or self._inner_counts(key):
                break
            count += 1
        begins = [f'{name}.{child}' if name else child for child in list(module._modules)[count:count + 1]]
        return count if begins and (begins[0], 0) in self.stores[index] else max(0, count - 1)


def _stop(forward, args, kwargs):
    raise _Reached


def _copy(x, clone: bool):
    return x.detach().clone() if clone and isinstance(x, torch.Tensor) else x


@lru_cache(maxsize=None)
def _zero(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.zeros((), dtype=dtype, device=device)


def bury(x):
    """A placeholder for a tensor."""
    return Placeholder(tuple(x.shape), x.dtype, x.device) if isinstance(x, (torch.Tensor, CachedTensor)) else x


def revive(x, overwritten: bool = False):
    """The kept tensor, or zeros in place of one that nobody reads; its own if it will be overwritten."""
    if isinstance(x, Placeholder):
        one = _zero(x.dtype, x.device)
        return one.expand(x.shape).clone() if overwritten else one.expand(x.shape)
    return _copy(load(x), overwritten)
