"""Records what one real forward pass does.

No symbolic tracing: the float model runs once, in eval mode, on real inputs. Forward wrappers keep the stack of module
calls and a ``TorchDispatchMode`` records each ATen call with its scope and its input and output tensors by identity.
"""
import contextlib
import itertools
from collections import defaultdict

import torch
import torch.nn.functional as F
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import TensorWeakRef

from mmquant.models.dataflow import Call, DataFlow, Op, wrapped_forwards
from mmquant.models.functional_layers import fits, linear_arguments
from mmquant.models.layers import is_layer
from mmquant.models.weight_reads import ForeignReads

# Products of two tensors, by the place of their operands.
MATMULS = {torch.matmul: 'matmul', torch.Tensor.matmul: 'matmul', torch.Tensor.__matmul__: 'matmul',
           torch.bmm: 'matmul', torch.Tensor.bmm: 'matmul', F.scaled_dot_product_attention: 'attention'}


def operands(args: tuple, kwargs: dict) -> tuple:
    """The two operands of a call of one of :data:`MATMULS`, given by place or by name."""
    named = [kwargs[k] for k in ('input', 'query', 'other', 'mat2', 'tensor2', 'key') if k in kwargs]
    return (*args, *named)[:2]


class _Recorder(TorchDispatchMode):

    def __init__(self, flow: DataFlow, model: nn.Module) -> None:
        super().__init__()
        # by identity: parameters of two or more axes and what is computed from them alone, and their names
        self.weights = {id(p): (TensorWeakRef(p), (name, )) for name, p in model.named_parameters() if p.dim() > 1}
        self.flow, self.tick, self.stack = flow, itertools.count(1).__next__, []
        self.reads = ForeignReads(model)
        flow.foreign = self.reads.found
        self.values: dict[int, tuple[TensorWeakRef, int]] = {}  # by identity of the tensor
        # by identity of the storage: what keeps the identity from being reused, but no content; what was seen in it
        self.memories: dict[int, tuple[object, list[tuple[TensorWeakRef, int]]]] = {}
        self.counts: dict[str, int] = defaultdict(int)

    def new_value(self, tensor: torch.Tensor) -> int:
        seen = self.values[id(tensor)] = TensorWeakRef(tensor), len(self.flow.shapes)
        self.flow.shapes[seen[1]] = tuple(tensor.shape)
        self.seen_with(tensor).append(seen)
        return seen[1]

    def known(self, tensor: torch.Tensor) -> int | None:
        """The latest value of a tensor seen before; a dead tensor's identity may belong to another one."""
        ref, value = self.values.get(id(tensor), (None, None))
        return value if ref is not None and ref() is tensor else None

    def seen_with(self, tensor: torch.Tensor) -> list[tuple[TensorWeakRef, int]]:
        """Tensors, and their values, seen so far in the memory that a tensor shares with its views."""
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):  # a layout without storage, such as sparse
            return self.memories.setdefault(-id(tensor), (tensor, []))[1]
        if storage._cdata not in self.memories:
            self.memories[storage._cdata] = StorageWeakRef(storage), []
        return self.memories[storage._cdata][1]

    def lookup(self, tree) -> tuple[int, ...]:
        values = (self.value_of(x) for x in tree_leaves(tree) if isinstance(x, torch.Tensor))
        return tuple(dict.fromkeys(v for v in values if v is not None))

    def value_of(self, tensor: torch.Tensor) -> int | None:
        """Value of a tensor; one that was a constant becomes a value when data were written into a part of it."""
        value = self.known(tensor)
        if value is None and (before := self.seen_with(tensor)):
            self.add_op('storage', (before[-1][1],), [tensor])
            value = self.known(tensor)
        return value

    def weights_in(self, leaves: list) -> tuple[str, ...]:
        found = (self.weights.get(id(x)) for x in leaves if isinstance(x, torch.Tensor))
        alive = [names for ref, names in filter(None, found) if ref() is not None]
        return tuple(dict.fromkeys(name for names in alive for name in names))

    def add_op(self, name: str, inputs: tuple[int, ...], outputs: list[torch.Tensor], args: tuple = (),
               weights: tuple[str, ...] = ()) -> None:
        call = self.stack[-1] if self.stack else 0
        self.flow.ops.append(Op(self.tick(), name, call, inputs, tuple(map(self.new_value, outputs)), args, weights))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        leaves = tree_leaves((args, kwargs or {}))
        self.reads.note(func, leaves, [self.flow.calls[i].name for i in self.stack])
        inputs, weights = self.lookup(leaves), self.weights_in(leaves)
        out = func(*args, **(kwargs or {}))
        outputs = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        if weights and not inputs:
            self.weights |= {id(x): (TensorWeakRef(x), weights) for x in outputs}
        if inputs:
            for x in [x for x in outputs if self.known(x) is not None]:  # written in place: every view of it changes
                seen = self.seen_with(x)
                self.flow.mutated |= {value for _, value in seen}
                outputs += {id(y): y for ref, _ in seen if (y := ref()) is not None and y is not x}.values()
            constants = tuple(x for x in leaves if not isinstance(x, torch.Tensor))
            self.add_op(func._schema.name.split('::')[-1].removesuffix('_'), inputs, outputs, constants, weights)
        return out

    def enter(self, name: str, args, kwargs) -> Call:
        call = Call(len(self.flow.calls), name, self.counts[name], self.stack[-1] if self.stack else -1, self.tick(),
                    inputs=self.lookup((args, kwargs)))
        call.leaves = tuple(i for i, x in enumerate(tree_leaves((args, kwargs)))
                            if isinstance(x, torch.Tensor) and self.known(x) is not None)
        self.counts[name] += 1
        self.flow.calls.append(call)
        if call.parent >= 0:
            self.flow.calls[call.parent].children.append(call.index)
        self.stack.append(call.index)
        return call


class _FunctionRecorder(TorchFunctionMode):
    """Counts each module's own matrix products, and notes layers below a module whose weight it gives ``F.linear``."""

    def __init__(self, recorder: _Recorder, model: nn.Module) -> None:
        super().__init__()
        self.recorder, self.flow, self.positions = recorder, recorder.flow, defaultdict(int)
        self.linear = {id(m.weight): (n, m) for n, m in model.named_modules() if type(m) is nn.Linear}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, kind = kwargs or {}, MATMULS.get(func)
        if self.recorder.stack and (kind is not None or func is F.linear):
            call = self.flow.calls[self.recorder.stack[-1]]
            if func is F.linear:
                _, weight, bias = linear_arguments(*args, **kwargs)
                name, layer = self.linear.get(id(weight), ('', None))
                below = name != call.name and name.startswith(f'{call.name}.' if call.name else '')
                if layer is not None and below and fits(layer, bias):
                    names = self.flow.functional.setdefault(call.name, [])
                    names += [name] * (name not in names)
            else:
                position = self.positions[call.index]
                self.positions[call.index] += 1
                if all(self.recorder.lookup(x) for x in operands(args, kwargs)):
                    self.flow.matmuls[call.name][position] = kind
        return func(*args, **kwargs)


def make_out_of_place(model: nn.Module) -> None:
    """Turn in-place activations off, so that recorded and cached tensors are never overwritten."""
    for module in model.modules():
        if getattr(module, 'inplace', None) is True:
            module.inplace = False


@torch.no_grad()
def record(model: nn.Module, run, inputs, decoders=()) -> DataFlow:
    """Run the model once, in eval mode, and record its data flow; in-place activations are switched off for good.

    ``run(inputs)`` runs the whole model on tensors in nested containers; a batch of one or two is enough. ``decoders``:
    (module, name of a method) whose arguments are noted in :attr:`DataFlow.decoded`.
    """
    make_out_of_place(model)
    flow = DataFlow()
    flow.layers = frozenset(name for name, module in model.named_modules() if is_layer(module))
    recorder = _Recorder(flow, model)
    flow.network_inputs = tuple(recorder.new_value(x) for x in tree_leaves(inputs) if isinstance(x, torch.Tensor))

    def wrap(name, module, forward):
        def recorded(*args, **kwargs):
            call = recorder.enter(name, args, kwargs)
            output = forward(*args, **kwargs)
            call.outputs, call.exit = recorder.lookup(output), recorder.tick()
            call.bare = isinstance(output, torch.Tensor)
            recorder.stack.pop()
            return output
        return recorded

    def noting(method):
        def noted(*args, **kwargs):
            flow.decoded |= set(recorder.lookup((args, kwargs)))
            return method(*args, **kwargs)
        return noted

    with wrapped_forwards(model, wrap), contextlib.ExitStack() as stack, recorder, _FunctionRecorder(recorder, model):
        for module, name in decoders:
            stack.callback(module.__dict__.pop, name)
            module.__dict__[name] = noting(getattr(module, name))
        run(inputs)
    return flow
