"""An ONNX graph to look things up in: nodes with their attributes, constants, who makes and who reads a tensor."""
from collections import defaultdict
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import numpy as np

from mmquant.export._extras import need
from mmquant.export.executor.moved import quantize_in_front
from mmquant.export.executor.one_node import OneNode


@dataclass
class Node:
    """A node of the graph; inputs that are left out are ''."""
    name: str
    op: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]
    proto: Any = field(repr=False)


class GraphView:
    """Args:
        model (str | PathLike | onnx.ModelProto): The file or the model.

    ``nodes`` in order of execution without those of constants alone, whose values are in ``constants`` (NumPy):
    packed weights thus appear as int8. QuantizeLinear nodes stand in front of layout operators, too.

    Raises:
        ValueError: Not an ONNX model, or one that was cut off or altered so that its graph no longer holds together.
        ImportError: onnx or onnxruntime is missing.
    """

    def __init__(self, model: Any) -> None:
        self.model = load(model)
        graph = quantize_in_front(self.model).graph
        helper = need('onnx.helper')
        self.shapes = shapes_of(self.model)
        self.opsets = {o.domain: o.version for o in self.model.opset_import}
        self.constants = {i.name: array_of(i) for i in graph.initializer}
        self.inputs = [i for i in graph.input if i.name not in self.constants]
        self.input_types = {i.name: str(helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type))
                            for i in self.inputs}
        self.outputs = [o.name for o in graph.output]
        self.nodes: list[Node] = []
        for index, proto in enumerate(graph.node):
            attributes = {a.name: helper.get_attribute_value(a) for a in proto.attribute}
            node = Node(proto.name or f'{proto.op_type}_{index}', proto.op_type, list(proto.input), list(proto.output),
                        attributes, proto)
            if not self._fold(node):
                self.nodes.append(node)
        self.maker = {o: n for n in self.nodes for o in n.outputs if o}
        self.readers: dict[str, list[Node]] = defaultdict(list)
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                self.readers[name].append(node)

    def _fold(self, node: Node) -> bool:
        """Compute a node of constants; a DequantizeLinear stays, for its codes are what counts."""
        if node.op == 'Constant' and 'value' in node.attributes:
            self.constants[node.outputs[0]] = array_of(node.attributes['value'])
            return True
        if node.op in ('DequantizeLinear', 'QuantizeLinear') or not all(i in self.constants for i in node.inputs if i):
            return False
        values = [self.constants[i] if i else None for i in node.inputs]
        if node.op == 'Cast' and values[0].dtype.kind in 'iu':  # 4-bit and 2-bit codes have been widened above
            results = [values[0].astype(need('onnx.helper').tensor_dtype_to_np_dtype(node.attributes['to']))]
        else:
            results = OneNode(node.proto, self.opsets)(values)
        self.constants |= dict(zip(node.outputs, results))
        return True

    def only_reader(self, name: str) -> Node | None:
        """The node that reads this tensor, if it is the only one and the tensor is no output of the graph."""
        return self.readers[name][0] if len(self.readers[name]) == 1 and name not in self.outputs else None


def load(model: Any) -> Any:
    """A model from a file, checked; a model that is loaded already comes back as it is."""
    if not isinstance(model, (str, PathLike)):
        return model
    onnx = need('onnx')
    try:
        loaded = onnx.load(model)
        onnx.checker.check_model(loaded)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f'{model} is not a whole ONNX model; it may be cut off or altered: {error}') from error
    return loaded


def shapes_of(model: Any) -> dict[str, list[int | str]]:
    """Shapes as far as ONNX can infer them; sizes that are not fixed are text."""
    graph = need('onnx.shape_inference').infer_shapes(model).graph
    return {i.name: [d.dim_value if d.HasField('dim_value') else d.dim_param for d in i.type.tensor_type.shape.dim]
            for i in [*graph.input, *graph.value_info, *graph.output] if i.type.tensor_type.HasField('shape')}


def array_of(tensor: Any) -> np.ndarray:
    """A constant as NumPy array; types of 2 and 4 bits as int8 or uint8."""
    array = need('onnx.numpy_helper').to_array(tensor)
    name = str(array.dtype)
    if name in ('int4', 'uint4', 'int2', 'uint2'):
        array = array.astype(np.uint8 if name[0] == 'u' else np.int8)
    return array
