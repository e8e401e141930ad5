"""Which nodes of a QDQ graph run in integers: the same decisions as ONNX Runtime takes when it fuses.

An operator between DequantizeLinear on every input and one QuantizeLinear becomes an integer kernel. Relu and Clip in
front of the QuantizeLinear vanish where its codes cannot leave their range; in the modes without floats they become
narrower code ranges anyway. Layout operators move codes. What is left is a float island, with the reason.
"""
from dataclasses import dataclass, field

import numpy as np
import torch

from mmquant.export.executor.graph_view import GraphView, Node
from mmquant.export.executor.linear import conv, gemm
from mmquant.export.executor.pointwise import add, concat, mul
from mmquant.export.executor.pooling import average_pool, global_average_pool, pools_plainly
from mmquant.export.executor.values import Target, code_range

KERNELS = dict(Conv=conv, Gemm=gemm, MatMul=gemm, Add=add, Mul=mul, Concat=concat, AveragePool=average_pool,
               GlobalAveragePool=global_average_pool)
PRODUCTS = ('Conv', 'Gemm', 'MatMul')
FLOAT_PRODUCTS = ('ConvTranspose', 'DeformConv')
# ONNX Runtime has tables for the first two; other functions of one tensor it computes in float
TABLES = {'Sigmoid', 'LeakyRelu'}
MORE_TABLES = {'Relu', 'Clip', 'Tanh', 'HardSigmoid', 'HardSwish', 'Gelu', 'Elu', 'Erf', 'Exp', 'Softplus', 'Mish',
               'Swish', 'Neg', 'Abs', 'Sqrt', 'Reciprocal', 'Log'}
LAYOUT = {'Reshape', 'Transpose', 'Squeeze', 'Unsqueeze', 'Slice', 'Pad', 'MaxPool', 'Identity', 'Expand', 'Dropout'}
# ONNX Runtime moves codes through these only if a QuantizeLinear of the same scale is behind
LAYOUT_BEFORE_Q = {'Flatten', 'Split', 'Gather', 'Resize', 'Tile', 'DepthToSpace', 'SpaceToDepth'}


@dataclass
class Step:
    """A node, or several that became one kernel.

    Attributes:
        kind (str): quantize, dequantize, clip, codes (a layout operator on them), layout (the same behind a
            DequantizeLinear), kernel, table or float.
        target (Target | None): What the codes that it makes stand for.
        reason (str): Why it is float.
    """
    kind: str
    node: Node
    inputs: list[str]
    outputs: list[str]
    target: Target | None = None
    reason: str = ''


@dataclass
class Planner:
    """Args:
        view (GraphView): The graph.
        mode (str): Requantization; ``'ort'`` keeps float what ONNX Runtime keeps float.
    """
    view: GraphView
    mode: str
    quantized: set[str] = field(default_factory=set)  # tensors that are codes with a scale
    codes: dict[str, Target] = field(default_factory=dict)  # integer tensors, as a QuantizeLinear gives them
    absorbed: set[int] = field(default_factory=set)

    def steps(self) -> list[Step]:
        """All steps in order.

        Raises:
            ValueError: Scales that are no constants.
        """
        def late(node: Node) -> bool:
            return node.op != 'DequantizeLinear' or node.inputs[0] not in self.view.constants

        return [self._step(node) for node in sorted(self.view.nodes, key=late) if id(node) not in self.absorbed]

    def _step(self, node: Node) -> Step:
        if node.op == 'QuantizeLinear' and self._per_tensor(node):
            self.codes[node.outputs[0]] = target = self.target(node)
            return Step('quantize', node, node.inputs[:1], node.outputs, target)
        if node.op == 'DequantizeLinear' and not node.attributes.get('block_size', 0):
            self.quantized.add(node.outputs[0])
            return Step('dequantize', node, node.inputs, node.outputs)
        if node.op == 'Clip' and node.inputs[0] in self.codes:
            self.codes[node.outputs[0]] = self.codes[node.inputs[0]]
            return Step('clip', node, node.inputs, node.outputs)
        if node.op in LAYOUT | LAYOUT_BEFORE_Q and node.inputs[0] in self.codes:
            self.codes |= {name: self.codes[node.inputs[0]] for name in node.outputs}
            return Step('codes', node, node.inputs, node.outputs)
        if node.op in LAYOUT | LAYOUT_BEFORE_Q and not self._float_layout(node):
            self.quantized |= set(node.outputs)
            return Step('layout', node, node.inputs, node.outputs)
        reason = self._reason(node)
        if reason:
            return Step('float', node, node.inputs, node.outputs, reason=reason)
        return self._kernel(node)

    def _per_tensor(self, node: Node) -> bool:
        scale = self.view.constants.get(node.inputs[1])
        if scale is None:
            raise ValueError(f'{node.name}: the scale {node.inputs[1]!r} is no constant')
        return scale.size == 1

    def target(self, node: Node) -> Target:
        """What a QuantizeLinear does."""
        zero = self.view.constants[node.inputs[2]] if len(node.inputs) > 2 and node.inputs[2] else np.uint8(0)
        zero = torch.as_tensor(np.array(zero).reshape(()))
        return Target(torch.tensor(self.view.constants[node.inputs[1]].item()), zero, *code_range(zero.dtype))

    def _float_layout(self, node: Node) -> str:
        """Why a layout operator does not move codes; '' if it does."""
        if node.inputs[0] not in self.quantized:
            return f'its input {node.inputs[0]!r} is float'
        if any(name not in self.view.constants for name in node.inputs[1:] if name):
            return 'its other inputs are no constants'
        if node.op == 'Resize' and node.attributes.get('mode', b'nearest') != b'nearest':
            return 'it interpolates'
        readers = [self.view.only_reader(name) for name in node.outputs]
        if self.mode == 'ort' and node.op in LAYOUT_BEFORE_Q and not all(
                reader is not None and reader.op == 'QuantizeLinear' for reader in readers):
            return f'no QuantizeLinear behind {node.op}, where ONNX Runtime needs one'
        return ''

    def _reason(self, node: Node) -> str:
        """Why a node cannot run in integers; '' if it can."""
        if node.op in LAYOUT | LAYOUT_BEFORE_Q:
            return self._float_layout(node)
        table = node.op in TABLES or (self.mode != 'ort' and node.op in MORE_TABLES)
        if node.op not in KERNELS and not table:
            return f'{node.op} has no integer kernel'
        operands = [node.inputs[0]] if table or node.op in ('GlobalAveragePool', 'AveragePool') else node.inputs[:2]
        operands = node.inputs if node.op == 'Concat' else operands
        for name in operands:
            if name not in self.quantized:
                return f'its input {name!r} is float'
            if self.mode == 'ort' and self._type(name) not in ('uint8', 'constant'):
                return f'its input {name!r} has {self._type(name)} codes; ONNX Runtime wants uint8'
        if node.op == 'AveragePool' and not pools_plainly(node):
            return 'an average pool with ceil_mode, dilations or auto_pad'
        plain = dict(alpha=1, beta=1, transA=0)
        if node.op == 'Gemm' and any(node.attributes.get(key, value) != value for key, value in plain.items()):
            return 'a Gemm with alpha, beta or transA'
        bias = self._bias(node)
        end = self._end(node)
        if isinstance(end, str) and (node.op not in PRODUCTS or (self.mode == 'ort' and node.op == 'Conv')):
            return end
        if isinstance(end, str) and self.mode == 'ort' and bias and bias in self.view.constants:
            return 'its bias is float, and no QuantizeLinear is behind it'
        return ''

    def _bias(self, node: Node) -> str:
        """The bias of a product, also that of an Add behind it; '' without one."""
        addition = self._bias_of(node)
        if addition:
            return next(i for i in addition.inputs if i != node.outputs[0])
        return node.inputs[2] if node.op in PRODUCTS and len(node.inputs) > 2 else ''

    def _type(self, name: str) -> str:
        """Type of the codes of an activation; 'constant' of weights."""
        while name in self.view.maker and name not in self.codes:
            name = self.view.maker[name].inputs[0]
        if name in self.codes:
            return str(self.codes[name].zero.numpy().dtype)
        return 'constant' if name in self.view.constants else self.view.input_types.get(name, 'unknown')

    def _kernel(self, node: Node) -> Step:
        inputs, last = list(node.inputs), node
        addition = self._bias_of(node)
        if addition:
            inputs.append(self._bias(node))
            self.absorbed.add(id(addition))
            last = addition
        end = self._end(node)
        kind = 'kernel' if node.op in KERNELS else 'table'
        if isinstance(end, str):
            return Step(kind, node, inputs, last.outputs)
        self.absorbed |= {id(n) for n in end[1]}
        output = end[1][-1].outputs
        self.codes[output[0]] = end[0]
        return Step(kind, node, inputs, output, end[0])

    def _bias_of(self, node: Node) -> Node | None:
        """The Add of a constant vector behind a MatMul with constant weights, where the two become one kernel.

        In ONNX Runtime they do for matrices, and for more axes if all sizes are fixed.
        """
        after = self.view.only_reader(node.outputs[0])
        if node.op != 'MatMul' or after is None or after.op != 'Add':
            return None
        other = next((i for i in after.inputs if i != node.outputs[0]), '')
        vector, weight = self._constant(other), self._constant(node.inputs[1])
        shape = self.view.shapes.get(node.inputs[0], [''])
        fixed = len(shape) == 2 or all(isinstance(size, int) for size in shape) or self.mode != 'ort'
        fits = weight is not None and weight.ndim == 2 and vector is not None and vector.shape == weight.shape[1:]
        return after if fits and fixed else None

    def _constant(self, name: str) -> np.ndarray | None:
        """A constant, or the codes of one."""
        maker = self.view.maker.get(name)
        name = maker.inputs[0] if maker is not None and maker.op == 'DequantizeLinear' else name
        return self.view.constants.get(name)

    def _end(self, node: Node) -> tuple[Target, list[Node]] | str:
        """(what the QuantizeLinear behind an operator does, the nodes up to it), or why there is none."""
        passed, addition = [], self._bias_of(node)
        after = addition or node
        limits = [-np.inf, np.inf]
        while True:
            if addition is None or after is not addition:
                passed = passed if after is node else [*passed, after]
            reader = self.view.only_reader(after.outputs[0])
            if reader is None:
                return f'{after.outputs[0]!r} is an output of the graph, or several nodes read it'
            if reader.op == 'QuantizeLinear' and self._per_tensor(reader):
                target = self.target(reader)
                return self._narrowed(target, limits, passed) or (target, [*passed, reader])
            if reader.op not in ('Relu', 'Clip'):
                return f'no QuantizeLinear between it and {reader.op} {reader.name!r}'
            if reader.op == 'Relu':
                limits = [max(limits[0], 0.0), limits[1]]
            else:
                low, high = [float(self.view.constants[i]) if i else default for i, default in zip(
                    [*reader.inputs[1:], '', ''][:2], (-np.inf, np.inf))]
                limits = [max(limits[0], low), min(limits[1], high)]
            after = reader

    def _narrowed(self, target: Target, limits: list[float], passed: list[Node]) -> str | None:
        """Limit the codes to those of the real ``limits``; in mode 'ort', say that this is not done."""
        scale, zero = float(target.scale), int(target.zero)
        low, high = [np.clip(np.rint(v / scale) + zero, target.low, target.high) for v in limits]
        if self.mode == 'ort' and any((limits[0] > (target.low - zero) * scale + 1e-7 * scale,
                                       limits[1] < (target.high - zero) * scale * (1 - 1e-7))):
            return f'{passed[-1].op} cuts off codes of the QuantizeLinear behind it'
        target.low, target.high = int(low), int(high)
        return None
