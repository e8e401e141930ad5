"""Runs an exported QDQ file as integer kernels do, and says what stayed float.

The file must be the exported one, not what a runtime has optimized. In mode ``'ort'`` codes equal those of ONNX Runtime
on a CPU. In modes ``'single'`` and ``'double'`` no float arithmetic happens between the codes of the input and those of
the output, if there are no islands: the integer-only inference of Jacob et al., arXiv 1712.05877.
"""
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Sequence

import numpy as np
import torch
from torch import Tensor

from mmquant.export.executor.accumulate import CARRIERS
from mmquant.export.executor.arithmetic import Arithmetic
from mmquant.export.executor.graph_view import GraphView
from mmquant.export.executor.moved import MARK
from mmquant.export.executor.one_node import OneNode
from mmquant.export.executor.plan import FLOAT_PRODUCTS, KERNELS, PRODUCTS, Planner, Step
from mmquant.export.executor.pointwise import requantize
from mmquant.export.executor.requantize import MODES
from mmquant.export.executor.values import Quantized, Target, code_range


@dataclass
class Island:
    """A node that runs in float, and why."""
    name: str
    op: str
    reason: str


class GraphExecutor:
    """Args:
        model (str | PathLike | onnx.ModelProto): The exported file.
        requantize (str): ``'ort'`` (default), ``'exact'``, ``'single'`` or ``'double'``, see
            :mod:`~mmquant.export.executor.requantize`.
        carrier (torch.dtype): Type of the sums: float64 (default, fast) or int64, with equal results.

    After a run, ``arithmetic.largest`` has the largest \\|accumulator\\| of each node.

    Raises:
        ValueError: An unknown mode or carrier; a broken file; scales that are no constants.
        ImportError: onnx or onnxruntime is missing.
    """

    def __init__(self, model: Any, requantize: str = 'ort', carrier: torch.dtype = torch.float64) -> None:
        if requantize not in MODES or carrier not in CARRIERS:
            raise ValueError(f'requantize must be one of {MODES} and carrier one of {CARRIERS}, got {requantize!r} '
                             f'and {carrier}')
        self.view = GraphView(model)
        self.arithmetic = Arithmetic(requantize, carrier)
        self.steps = Planner(self.view, requantize).steps()
        self.nodes = {id(step): OneNode(step.node.proto, self.view.opsets) for step in self.steps
                      if step.kind in ('float', 'codes', 'layout', 'table')}
        self.constants = {name: tensor_of(array) for name, array in self.view.constants.items()}

    @property
    def islands(self) -> list[Island]:
        """Nodes that run in float."""
        return [Island(s.node.name, s.node.op, s.reason) for s in self.steps if s.kind == 'float']

    @property
    def integer_ops(self) -> Counter:
        """Operators that run on codes, counted."""
        return Counter(s.node.op for s in self.steps if s.kind in ('kernel', 'table', 'layout', 'codes'))

    @property
    def integer_share(self) -> float:
        """Share of the multiplications of convolutions and matrix products done in integers; of the last run."""
        macs = self.arithmetic.macs
        total = sum(macs.values())
        return sum(macs.get(s.node.name, 0) for s in self.steps if s.kind == 'kernel') / total if total else 1.0

    def tensors(self) -> list[str]:
        """Names of all quantized tensors: outputs of QuantizeLinear, or of the Clip on codes behind it."""
        made = [s.outputs[0] for s in self.steps if s.kind in ('quantize', 'clip') or s.target is not None]
        clipped = {s.inputs[0] for s in self.steps if s.kind == 'clip'}
        return [name for name in dict.fromkeys(made) if name not in clipped and not name.endswith(MARK)]

    @torch.no_grad()
    def run(self, inputs: dict[str, np.ndarray], taps: Sequence[str] = (),
            given: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Outputs of the graph, and the tensors named in ``taps``: codes are integer arrays.

        ``given``: codes that readers get instead of those that were made, which are still returned.

        Raises:
            ValueError: Missing or unknown inputs, a wrong shape, an unknown tap.
            OverflowError: An accumulator does not fit int32.
        """
        check_inputs(self.view.inputs, inputs)
        values: dict[str, Any] = dict(self.constants) | {k: tensor_of(np.asarray(v)) for k, v in inputs.items()}
        wanted, given, made = [*self.view.outputs, *taps], given or {}, {}
        last = {name: i for i, step in enumerate(self.steps) for name in step.inputs}
        missing = [name for name in taps if name not in values and not any(name in s.outputs for s in self.steps)]
        if missing:
            raise ValueError(f'taps {missing} are not made by any step; quantized tensors are {self.tensors()}')
        for i, step in enumerate(self.steps):
            results = self._results(step, [values[name] if name else None for name in step.inputs])
            values.update(zip(step.outputs, results))
            for name in given.keys() & set(step.outputs):
                made[name], codes = array_from(values[name]), tensor_of(given[name])
                values[name] = codes.reshape(values[name].shape)
            for name in step.inputs:
                if last[name] == i and name not in wanted and name not in self.constants:
                    values.pop(name, None)
        return {name: made[name].reshape(given[name].shape) if name in made else array_from(values[name])
                for name in wanted}

    def _results(self, step: Step, values: list[Any]) -> list[Any]:
        if step.kind == 'quantize':
            return [self._quantize(values[0], step.target)]
        if step.kind == 'dequantize':
            return [self._dequantize(step, values)]
        if step.kind == 'clip':
            low, high = [v if v is None else int(v) for v in [*values[1:], None, None][:2]]
            return [values[0].clamp(low, high)]
        if step.kind == 'layout':
            return self._layout(step, values)
        if step.kind == 'table':
            return [self._table(step, values)]
        if step.kind == 'kernel':
            return [KERNELS[step.node.op](step.node, [v for v in values if v is not None], step.target,
                                          self.arithmetic)]
        arrays = [None if v is None else array_from(v) for v in values]
        results = [r if r is None else tensor_of(r) for r in self.nodes[id(step)](arrays)]
        if step.node.op in (*PRODUCTS, *FLOAT_PRODUCTS):
            self.arithmetic.macs[step.node.name] = _macs(step.node.op, arrays, results[0])
        return results

    def _quantize(self, value: Any, target: Target) -> Tensor:
        if isinstance(value, Quantized):
            return requantize(value, target, self.arithmetic)
        return target.quantize(value)

    def _dequantize(self, step: Step, values: list[Any]) -> Quantized:
        codes, scale = values[:2]
        zero = values[2] if len(values) > 2 and values[2] is not None else torch.zeros((), dtype=codes.dtype)
        return Quantized(codes, scale, zero, step.node.attributes.get('axis', 1) % max(codes.dim(), 1))

    def _layout(self, step: Step, values: list[Any]) -> list[Quantized]:
        x, *rest = values
        if x.scale.numel() > 1:
            if step.node.op != 'Transpose':
                raise ValueError(f'{step.node.name}: {step.node.op} on codes with a scale for each channel')
            order = step.node.attributes.get('perm', list(reversed(range(x.codes.dim()))))
            return [Quantized(x.codes.permute(order), x.scale, x.zero, order.index(x.axis))]
        arrays = [None if v is None else array_from(v) for v in rest]
        if step.node.op == 'Pad':
            target = Target(x.scale.reshape(()), x.zero.reshape(()), *code_range(x.codes.dtype))
            fill = torch.tensor(float(arrays[1])) if len(arrays) > 1 and arrays[1] is not None else torch.tensor(0.0)
            if len(step.node.proto.input) < 3 or not step.node.proto.input[2]:
                return [self._pad(step, x, arrays, target.quantize(fill))]
            arrays[1] = target.quantize(fill).numpy()
        return [Quantized(tensor_of(r), x.scale, x.zero, x.axis)
                for r in self.nodes[id(step)]([x.codes.numpy(), *arrays])]

    def _pad(self, step: Step, x: Quantized, arrays: list[np.ndarray | None], fill: Tensor) -> Quantized:
        """A Pad without a value pads with the real 0, that is with the zero point: shift, pad with 0, shift back."""
        shifted = (x.codes.int() - int(fill)).numpy()
        padded, = self.nodes[id(step)]([shifted, *arrays])
        return Quantized((tensor_of(padded) + int(fill)).to(x.codes.dtype), x.scale, x.zero, x.axis)

    def _table(self, step: Step, values: list[Any]) -> Tensor:
        x, *rest = values
        low, high = code_range(x.codes.dtype)
        grid = Quantized(torch.arange(low, high + 1), x.scale, x.zero).dequantize().numpy()
        outputs, = self.nodes[id(step)]([grid, *(None if v is None else array_from(v) for v in rest)])
        return step.target.quantize(tensor_of(outputs))[x.codes.long() - low]


def _macs(op: str, arrays: list[np.ndarray], result: Tensor) -> int:
    if op == 'ConvTranspose':
        return arrays[0].size * prod(arrays[1].shape[1:])
    return result.numel() * (arrays[0].shape[-1] if op in ('Gemm', 'MatMul') else prod(arrays[1].shape[1:]))


def check_inputs(expected: list[Any], inputs: dict[str, np.ndarray]) -> None:
    """Raises:
        ValueError: Names or shapes other than those of the graph's inputs; symbolic sizes fit anything.
    """
    shapes = {i.name: [d.dim_value if d.HasField('dim_value') else d.dim_param or '?'
                       for d in i.type.tensor_type.shape.dim] for i in expected}
    if set(shapes) != set(inputs):
        raise ValueError(f'the model has the inputs {shapes}, got {sorted(inputs)}')
    for name, shape in shapes.items():
        got = np.shape(inputs[name])
        if len(got) != len(shape) or any(isinstance(a, int) and a != b for a, b in zip(shape, got)):
            raise ValueError(f'input {name!r} must have the shape {shape}, got {list(got)}')


def tensor_of(array: np.ndarray) -> Tensor:
    """The same memory as a tensor where that is possible."""
    array = np.asarray(array)
    return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape)) if array.flags.writeable else \
        torch.tensor(array)


def array_from(value: Tensor | Quantized) -> np.ndarray:
    """NumPy array of a tensor; real numbers of codes with a scale."""
    return (value.dequantize() if isinstance(value, Quantized) else value).numpy()
