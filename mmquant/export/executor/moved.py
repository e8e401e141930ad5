"""QuantizeLinear in front of layout operators: rounding commutes with moving and with taking the largest.

ONNX Runtime does the same (qdq_propagation.cc): x -> MaxPool -> Q becomes x -> Q -> DQ -> MaxPool -> Q, and only so the
operator in front of MaxPool has a QuantizeLinear behind it.
"""
from typing import Any

from mmquant.export._extras import need

MOVES = {'MaxPool', 'Reshape', 'Transpose', 'Squeeze', 'Unsqueeze', 'Slice'}
MARK = '_in_front'


def quantize_in_front(model: Any) -> Any:
    """A copy with Q -> DQ in front of each chain of layout operators that ends in a QuantizeLinear, with ``MARK``."""
    copy, helper = type(model)(), need('onnx.helper')
    copy.CopyFrom(model)
    makers = {o: n for n in copy.graph.node for o in n.output}
    uses: dict[str, int] = {o.name: 1 for o in copy.graph.output}
    for node in copy.graph.node:
        for name in node.input:
            uses[name] = uses.get(name, 0) + 1
    added: dict[int, list[Any]] = {}
    for node in copy.graph.node:
        first = _first_move(node, makers, uses) if node.op_type == 'QuantizeLinear' else None
        if first is None:
            continue
        source, names = first.input[0], [f'{node.output[0]}{MARK}', f'{node.output[0]}{MARK}_values']
        added[id(first)] = [helper.make_node('QuantizeLinear', [source, *node.input[1:]], names[:1], name=names[0]),
                            helper.make_node('DequantizeLinear', [names[0], *node.input[1:]], names[1:],
                                             name=names[1])]
        first.input[0] = names[1]
    nodes = [new for node in copy.graph.node for new in (*added.get(id(node), ()), node)]
    order = type(copy.graph)()
    order.node.extend(nodes)
    del copy.graph.node[:]
    copy.graph.node.extend(order.node)
    return copy


def _first_move(node: Any, makers: dict[str, Any], uses: dict[str, int]) -> Any:
    """The first of the layout operators that lead from a float operator straight to this node."""
    first, name = None, node.input[0]
    while name in makers and makers[name].op_type in MOVES and uses[name] == 1:
        first, name = makers[name], makers[name].input[0]
    known = name not in makers or makers[name].op_type == 'DequantizeLinear' or uses.get(name) != 1
    return None if first is None or known else first
