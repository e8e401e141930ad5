"""The data-flow record of one forward pass: what made a tensor, who reads it, what lies between two calls."""
import contextlib
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import inf

from torch import nn

from mmquant.models.weight_reads import SHAPE_ONLY

# Operations that move elements without changing them (zero padding included: zero is always representable).
MOVEMENT = frozenset(
    'view _unsafe_view reshape _reshape_alias permute transpose t squeeze unsqueeze expand clone contiguous alias '
    'detach slice select split split_with_sizes chunk unbind flatten roll constant_pad_nd _to_copy lift_fresh '
    'channel_shuffle native_channel_shuffle as_strided'.split())
POOLING = frozenset('mean _adaptive_avg_pool2d adaptive_avg_pool2d avg_pool2d max_pool2d_with_indices max_pool2d '
                    'amax'.split())
# Operations between elements and a parameter, or side by side with it: normalisation, offsets, class tokens.
ELEMENTWISE = frozenset(
    'add sub rsub mul div pow maximum minimum where copy addcmul addcdiv lerp cat stack index_put scatter batch_norm '
    'native_batch_norm _native_batch_norm_legit_no_training cudnn_batch_norm native_layer_norm native_group_norm '
    '_prelu_kernel'.split())


@dataclass(frozen=True)
class Op:
    """One ATen call."""
    tick: int
    name: str  # without namespace and overload, in-place mark removed: 'add', 'convolution', ...
    call: int
    inputs: tuple[int, ...]  # value numbers of tensors that depend on the network's input
    outputs: tuple[int, ...]
    args: tuple = ()  # arguments that are no tensors, in order
    weights: tuple[str, ...] = ()  # parameters of two or more axes that it reads, or what is computed from them alone


@dataclass
class Call:
    """One call of one module; ``enter`` and ``exit`` are ticks on the same clock as :attr:`Op.tick`."""
    index: int
    name: str
    occurrence: int
    parent: int
    enter: int
    exit: int = -1
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    leaves: tuple[int, ...] = ()  # places of its inputs among the leaves of its (args, kwargs)
    bare: bool = False  # whether it returned one tensor itself, not a container
    children: list[int] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, int]:
        return self.name, self.occurrence


def _table(pairs: Iterable[tuple[object, Iterable]]) -> dict[Hashable, list]:
    """Each key -> the items that have it, in order."""
    table = defaultdict(list)
    for item, keys in pairs:
        for key in dict.fromkeys(keys):
            table[key].append(item)
    return dict(table)


class DataFlow:
    """Record of one forward pass."""

    def __init__(self) -> None:
        self.ops: list[Op] = []  # what read or made data, in execution order
        self.calls: list[Call] = []  # of modules, in order of entry; calls[0] is the model itself
        self.shapes: dict[int, tuple[int, ...]] = {}  # by value
        self.network_inputs: tuple[int, ...] = ()  # values
        self.mutated: set[int] = set()  # values that a later in-place operation overwrote
        self.decoded: set[int] = set()  # values that a detector's float post-processing takes between its parts
        # module -> position among its own products of two tensors that both depend on the input -> kind
        self.matmuls: dict[str, dict[int, str]] = defaultdict(dict)
        self.functional: dict[str, list[str]] = {}  # module -> linear layers below it whose weight it gives F.linear
        # module -> modules that read its parameters outside of its own calls, by the order of reading
        self.foreign: dict[str, list[str]] = {}
        self.layers: frozenset[str] = frozenset()  # names of convolution and linear layers
        self._answers: dict[Hashable, object] = {}

    def once(self, key: Hashable, find: Callable[[], object]):
        """What ``find()`` returned when ``key`` was asked for first: a finished record does not change any more."""
        if key not in self._answers:
            self._answers[key] = find()
        return self._answers[key]

    @cached_property
    def producer(self) -> dict[int, Op]:
        """Value -> the operation that made it."""
        return {v: op for op in self.ops for v in op.outputs}

    @cached_property
    def calls_of(self) -> dict[str, list[Call]]:
        """Module name -> its calls."""
        return _table((call, (call.name, )) for call in self.calls)

    @cached_property
    def returned_by(self) -> dict[int, list[Call]]:
        """Value -> calls that returned it, in order of entry."""
        return _table((call, call.outputs) for call in self.calls)

    @cached_property
    def taken_by(self) -> dict[int, list[Call]]:
        """Value -> calls that were given it, in order of entry."""
        return _table((call, call.inputs) for call in self.calls)

    @cached_property
    def last_read(self) -> dict[int, float]:
        """Value -> tick of the last operation that reads it; infinite where the network returns it."""
        return {v: op.tick for op in self.ops for v in op.inputs} | dict.fromkeys(self.calls[0].outputs, inf)

    @cached_property
    def readers(self) -> dict[int, list[Op]]:
        """Value -> operations that read it directly."""
        return _table((op, op.inputs) for op in self.ops)

    def root(self, value: int) -> int:
        """The value this one is a view or a rearrangement of."""
        while (op := self.producer.get(value)) is not None and op.name in MOVEMENT and len(op.inputs) == 1:
            value = op.inputs[0]
        return value

    def final_readers(self, value: int, through: frozenset[str] = MOVEMENT) -> list[Op]:
        """Operations that read ``value``, looking through the operations named in ``through``."""
        found = []
        for op in self.readers.get(value, ()):
            passed = op.name in through and len(op.inputs) == 1
            found += [x for out in op.outputs for x in self.final_readers(out, through)] if passed else [op]
        return found

    def maker(self, value: int) -> Call | None:
        """The innermost call that made a value itself and returned it; None for what is passed on inside a call."""
        made = self.producer.get(value)
        return next((c for c in self.ancestors(made.call) if value in c.outputs), None) if made else None

    def layer_around(self, op: Op) -> Call | None:
        """The innermost call of a layer that an operation belongs to."""
        return next((c for c in self.ancestors(op.call) if c.name in self.layers), None)

    def is_weighted(self, op: Op) -> bool:
        """Whether an operation belongs to a layer, or multiplies by a weight that is none's."""
        return self.layer_around(op) is not None or bool(op.weights) and op.name not in ELEMENTWISE

    @cached_property
    def weightless(self) -> set[int]:
        """The network's inputs, and what is computed from them alone without weights: images that were normalised,
        sliced, resized, cast; not what takes their shape only."""
        found, weighted = set(self.network_inputs), set()
        for op in self.ops:
            if op.name in SHAPE_ONLY:
                continue
            if self.is_weighted(op) or not weighted.isdisjoint(op.inputs):
                weighted.update(op.outputs)
            elif not found.isdisjoint(op.inputs):
                found.update(op.outputs)
        return found

    def layers_reading(self, value: int, through: frozenset[str] = MOVEMENT) -> tuple[list[Call], bool]:
        """Calls of layers that read a value, looking through operations as :meth:`final_readers` does, in order; and
        whether anything else reads it, or the network returns it."""
        around = [self.layer_around(op) for op in self.final_readers(value, through)]
        calls = {c.index: c for c in around if c is not None}
        return list(calls.values()), None in around or value in self.calls[0].outputs

    def layers_before(self, values: Iterable[int]) -> set[str]:
        """The nearest layers that some values were computed from."""
        names, stack, seen = set(), list(values), set()
        while stack:
            op = self.producer.get(stack.pop())
            if op is not None and op.tick not in seen:
                seen.add(op.tick)
                layer = self.layer_around(op)
                names |= {layer.name} if layer else set()
                stack += () if self.is_weighted(op) else op.inputs
        return names

    def path(self, first: Call, last: Call) -> list[Op] | None:
        """Operations that lead from what one call returned to what a later one was given, in order; None where that
        was not computed from it, and empty where it is the same tensor."""
        reached, needed = self._computed_from(first.outputs, first.exit, last.enter), set(last.inputs)
        if reached.isdisjoint(needed):
            return None
        path = []
        for op in reversed(self.ops_between(first.exit, last.enter)):
            if not needed.isdisjoint(op.outputs) and not reached.isdisjoint(op.inputs):
                needed.update(op.inputs)
                path.append(op)
        return path[::-1]

    def _computed_from(self, values: Iterable[int], begin: float, end: float) -> set[int]:
        """What is computed from some values between two ticks, and the values."""
        reached = set(values)
        for op in self.ops_between(begin, end):
            if not reached.isdisjoint(op.inputs):
                reached.update(op.outputs)
        return reached

    def computed_inside(self, call: Call) -> set[int]:
        """Values that a closed call computes from its input, the input included."""
        return self.once(('computed inside', call.index),
                         lambda: self._computed_from(call.inputs[:1], call.enter, call.exit))

    def adds(self) -> list[Op]:
        """Additions of two different tensors of one shape, such as a shortcut and a branch."""
        return [op for op in self.ops if op.name == 'add' and len({self.shapes[v] for v in op.inputs}) == 1
                and len({self.root(v) for v in op.inputs}) == 2]

    def concats(self) -> list[Op]:
        """Operations that join several tensors along an axis."""
        return [op for op in self.ops if op.name in ('cat', 'stack') and len(op.inputs) > 1]

    def depends_on(self, value: int, *sources: int) -> bool:
        """Whether ``value`` is one of some values or was computed from one; later values have greater numbers."""
        first, stack, seen = min(sources), [value], set()
        while stack:
            v = stack.pop()
            if v in sources:
                return True
            if v > first and v not in seen and v in self.producer:
                seen.add(v)
                stack.extend(self.producer[v].inputs)
        return False

    def ancestors(self, call: int) -> list[Call]:
        """The call and all calls around it, innermost first."""
        chain = []
        while call >= 0:
            chain.append(self.calls[call])
            call = self.calls[call].parent
        return chain

    def ops_between(self, begin: float, end: float) -> list[Op]:
        ticks = self.once('ticks', lambda: [op.tick for op in self.ops])
        return self.ops[bisect_left(ticks, begin):bisect_left(ticks, end)]

    def calls_within(self, call: Call) -> list[Call]:
        """Calls made inside a call, at any depth, in order of entry."""
        entries = self.once('entries', lambda: [c.enter for c in self.calls])
        return self.calls[call.index + 1:bisect_left(entries, call.exit)]

    def ops_within(self, call: Call) -> list[Op]:
        """Operations run between entry and exit of a call, by it or its children."""
        return self.ops_between(call.enter, call.exit)

    def is_closed(self, call: Call, single: bool = True) -> bool:
        """One tensor in, one out (several if not ``single``), no other one read, and none inside read outside."""
        fits = bool(call.inputs and call.outputs) and (not single or len(call.inputs) + len(call.outputs) == 2)
        return fits and self.once(('closed', call.index), lambda: self._keeps_to_itself(call))

    def _keeps_to_itself(self, call: Call) -> bool:
        ops = self.ops_within(call)
        made, passed = {v for op in ops for v in op.outputs}, {*call.inputs, *call.outputs}
        leaks = any(self.last_read.get(v, 0) > call.exit for v in made.difference(call.outputs))
        return not leaks and all(v in made or v in passed for op in ops for v in op.inputs)


@contextlib.contextmanager
def wrapped_forwards(model: nn.Module, wrap, names=None):
    """Replace ``module.forward`` by ``wrap(name, module, module.forward)`` for each submodule once, then restore.

    ``names``: those of some submodules, or a dict from names to modules. Default: all.
    """
    if isinstance(names, Mapping):
        chosen = names.items()
    else:
        chosen = model.named_modules() if names is None else ((n, model.get_submodule(n)) for n in names)
    changed = []
    try:
        for name, module in chosen:
            previous = module.__dict__.get('forward')
            module.__dict__['forward'] = wrap(name, module, module.forward)
            changed.append((module, previous))
        yield
    finally:
        for module, previous in changed:
            del module.__dict__['forward']
            if previous is not None:
                module.__dict__['forward'] = previous
