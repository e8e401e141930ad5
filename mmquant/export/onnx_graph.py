"""An ONNX graph that can be asked and changed: who makes a tensor, who reads it, what an initializer holds."""
from __future__ import annotations

from collections import defaultdict

import numpy as np

from mmquant.export.onnx_api import helper, numpy_helper, onnx


class OnnxGraph:
    """View of ``model.graph``; after changes of nodes call :meth:`refresh`.

    Attributes:
        makers: Tensor -> node that makes it.
        readers: Tensor -> nodes that read it.
        constants: Name -> initializer.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.graph = model, model.graph
        self.refresh()

    def refresh(self) -> None:
        """Look the graph up anew."""
        self.makers = {out: node for node in self.graph.node for out in node.output}
        self.readers: dict[str, list] = defaultdict(list)
        for node in self.graph.node:
            for name in node.input:
                self.readers[name].append(node)
        self.constants = {x.name: x for x in self.graph.initializer}
        self.outputs = {x.name for x in self.graph.output}
        self._names = {*self.makers, *self.constants, *(x.name for x in self.graph.input)}

    def value(self, name: str) -> np.ndarray | None:
        """What an initializer holds, None if the name is none."""
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None

    def maker(self, name: str, *op_types: str) -> onnx.NodeProto | None:
        """The node that makes a tensor, if it is of one of some types."""
        node = self.makers.get(name)
        return node if node is not None and (not op_types or node.op_type in op_types) else None

    def only_reader(self, name: str) -> onnx.NodeProto | None:
        """The one node that reads a tensor which is no output of the graph."""
        readers = self.readers[name]
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def new_name(self, near: str) -> str:
        """An unused name that begins with another one."""
        count, name = 0, near
        while name in self._names:
            count += 1
            name = f'{near}_{count}'
        self._names.add(name)
        return name

    def add_constant(self, near: str, value: np.ndarray) -> str:
        """A new initializer; returns its name."""
        name = self.new_name(near)
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        self.constants[name] = self.graph.initializer[-1]
        return name

    def insert_before(self, node: onnx.NodeProto, *new: onnx.NodeProto) -> None:
        """Put nodes right before another one."""
        at = next(i for i, x in enumerate(self.graph.node) if x is node or x == node)
        for i, x in enumerate(new):
            self.graph.node.insert(at + i, x)

    def rename_readers(self, old: str, new: str) -> None:
        """Let all readers of a tensor, graph outputs excepted, read another one."""
        for node in self.readers[old]:
            for i, name in enumerate(node.input):
                if name == old:
                    node.input[i] = new

    def remove_unused(self) -> None:
        """Take nodes and initializers away that no output depends on."""
        needed, stack = set(), [x.name for x in self.graph.output]
        while stack:
            name = stack.pop()
            if name in needed:
                continue
            needed.add(name)
            node = self.makers.get(name)
            if node is not None:
                stack += [*node.input, *node.output]
        kept = [node for node in self.graph.node if needed & set(node.output)]
        del self.graph.node[:]
        self.graph.node.extend(kept)
        constants = [x for x in self.graph.initializer if x.name in needed]
        del self.graph.initializer[:]
        self.graph.initializer.extend(constants)
        self.refresh()


def attribute(node: onnx.NodeProto, name: str, default=None):
    """Value of a node's attribute."""
    found = next((a for a in node.attribute if a.name == name), None)
    return default if found is None else helper.get_attribute_value(found)


def set_attribute(node: onnx.NodeProto, name: str, value) -> None:
    """Give a node an attribute, in the place of one of this name."""
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])
