"""What an exported graph needs so that a runtime finds its integer kernels: passes by data flow, on the ONNX file.

Each pass takes an :class:`OnnxGraph`, changes it, and leaves what it computes as it is (``integer_biases`` up to half a
step of the sums' grid).
"""
from __future__ import annotations

import numpy as np

from mmquant.export.onnx_api import helper
from mmquant.export.onnx_graph import OnnxGraph, attribute

INT32 = 2**31
MOVES = ('Reshape', 'Transpose', 'Squeeze', 'Unsqueeze', 'Flatten')


def merge_equal(graph: OnnxGraph) -> None:
    """One node for all of one operation on the same tensors; one initializer for equal small ones."""
    values, instead = {}, {}
    for x in graph.graph.initializer:
        if len(x.raw_data) <= 8:
            key = x.data_type, tuple(x.dims), x.raw_data
            instead[x.name] = values.setdefault(key, x.name)
    nodes = {}
    for node in graph.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = instead.get(name, name)
        key = node.op_type, node.domain, tuple(node.input), b''.join(sorted(a.SerializeToString()
                                                                           for a in node.attribute))
        same = nodes.setdefault(key, node)
        if same is not node and not graph.outputs & set(node.output):
            instead.update(zip(node.output, same.output))
    graph.refresh()
    graph.remove_unused()


def drop_identities(graph: OnnxGraph) -> None:
    """Take Identity nodes out."""
    for node in list(graph.graph.node):
        if node.op_type == 'Identity' and node.output[0] not in graph.outputs:
            graph.rename_readers(node.output[0], node.input[0])
            graph.refresh()
    graph.remove_unused()


def transpose_weights(graph: OnnxGraph) -> None:
    """DequantizeLinear -> Transpose becomes a DequantizeLinear of transposed codes."""
    for node in list(graph.graph.node):
        dq = graph.maker(node.input[0], 'DequantizeLinear') if node.op_type == 'Transpose' else None
        codes = graph.value(dq.input[0]) if dq is not None else None
        if codes is None:
            continue
        order = attribute(node, 'perm', list(range(codes.ndim))[::-1])
        axis = order.index(attribute(dq, 'axis', 1) % codes.ndim)
        name = graph.add_constant(f'{dq.input[0]}_transposed', codes.transpose(order))
        new = helper.make_node('DequantizeLinear', [name, *dq.input[1:]], [graph.new_name(node.output[0])], axis=axis)
        graph.insert_before(node, new)
        graph.rename_readers(node.output[0], new.output[0])
        graph.refresh()
    graph.remove_unused()


def pool_globally(graph: OnnxGraph) -> None:
    """ReduceMean over the two last axes of images becomes GlobalAveragePool, which has an integer kernel."""
    for node in list(graph.graph.node):
        axes = graph.value(node.input[1]) if node.op_type == 'ReduceMean' and len(node.input) > 1 else None
        if axes is None or {int(a) for a in axes.flatten()} not in ({2, 3}, {-1, -2}):
            continue
        pooled = graph.new_name(f'{node.output[0]}_pooled')
        new = [helper.make_node('GlobalAveragePool', [node.input[0]], [pooled])]
        if attribute(node, 'keepdims', 1):
            new[0].output[0] = node.output[0]
        else:
            shape = graph.add_constant('pooled_shape', np.array([0, -1], np.int64))
            new.append(helper.make_node('Reshape', [pooled, shape], [node.output[0]]))
        graph.insert_before(node, *new)
        graph.graph.node.remove(node)
        graph.refresh()
    graph.remove_unused()


def clips_to_relus(graph: OnnxGraph) -> None:
    """Clip(0, high) before a quantizer that reaches no higher becomes Relu, which a convolution absorbs."""
    for node in graph.graph.node:
        if node.op_type != 'Clip' or len(node.input) < 3 or not all(node.input):
            continue
        low, high = graph.value(node.input[1]), graph.value(node.input[2])
        readers = graph.readers[node.output[0]]
        if low is None or high is None or low != 0 or not np.issubdtype(high.dtype, np.floating) or not readers:
            continue
        if node.output[0] not in graph.outputs and all(_reaches(graph, q) <= float(high) for q in readers):
            del node.input[1:]
            node.op_type = 'Relu'
            del node.attribute[:]
    graph.refresh()
    graph.remove_unused()


def _reaches(graph: OnnxGraph, quantize) -> float:
    """Smallest input that is rounded to the largest code of a QuantizeLinear with zero point 0, else infinite."""
    if quantize.op_type != 'QuantizeLinear':
        return np.inf
    scale, zero = graph.value(quantize.input[1]), graph.value(quantize.input[2])
    clip = graph.only_reader(quantize.output[0])
    top = 255 if clip is None or clip.op_type != 'Clip' else int(graph.value(clip.input[2]))
    return (top - 0.5) * float(scale) if scale.size == 1 and int(zero) == 0 else np.inf



def integer_biases(graph: OnnxGraph) -> None:
    """Float biases of layers that read codes become 32-bit codes on the grid of the sums.

    Raises:
        ValueError: A bias that does not fit 32 bits, where a runtime would compute with 0.
    """
    for node in list(graph.graph.node):
        found = _bias_of(graph, node)
        if found is None:
            continue
        x_scale, w_scale, at, place, bias = found
        step = (np.float32(x_scale) * w_scale.astype(np.float32)).astype(np.float64)
        codes = np.rint(bias.astype(np.float64) / step)
        if np.abs(codes).max(initial=0) >= INT32:
            raise ValueError(f'{at.input[place]}: a bias of {np.abs(bias).max():.4g} does not fit 32 bits at steps of '
                             f'{step.min():.4g}: run the step RoundBiases, which widens the scale of such channels')
        near = at.input[place]
        names = [graph.add_constant(f'{near}_codes', codes.astype(np.int32)),
                 graph.add_constant(f'{near}_scale', np.broadcast_to(step.astype(np.float32), codes.shape)),
                 graph.add_constant(f'{near}_zero', np.zeros(codes.shape, np.int32))]
        dq = helper.make_node('DequantizeLinear', names, [graph.new_name(f'{near}_values')], axis=0)
        graph.insert_before(at, dq)
        at.input[place] = dq.output[0]
        graph.refresh()
    graph.remove_unused()


def _bias_of(graph: OnnxGraph, node):
    """(scale of the input, scales of the weight, node that adds the bias, place of the bias there, bias)."""
    if node.op_type not in ('Conv', 'Gemm', 'MatMul'):
        return None
    x, w = (graph.maker(name, 'DequantizeLinear') for name in node.input[:2])
    if x is None or w is None or graph.value(w.input[0]) is None:
        return None
    at, place = node, 2
    if node.op_type == 'MatMul':
        at = graph.only_reader(node.output[0])
        if at is None or at.op_type != 'Add':
            return None
        place = 1 - list(at.input).index(node.output[0])
    bias = graph.value(at.input[place]) if len(at.input) > place else None
    x_scale, w_scale = graph.value(x.input[1]), graph.value(w.input[1])
    if bias is None or bias.ndim != 1 or x_scale is None or x_scale.size != 1:
        return None
    if node.op_type == 'Gemm' and (attribute(node, 'alpha', 1.0), attribute(node, 'beta', 1.0)) != (1.0, 1.0):
        return None
    return float(x_scale), w_scale, at, place, bias


def quantize_before_moves(graph: OnnxGraph) -> None:
    """A quantizer behind Reshape, Transpose, ... comes before it, so that codes are moved: Q, Clip, move, DQ."""
    for node in [n for n in graph.graph.node if n.op_type == 'QuantizeLinear']:
        while (move := graph.maker(node.input[0], *MOVES)) is not None and graph.only_reader(node.input[0]) is node:
            last, scale = _last_on_codes(graph, node), graph.value(node.input[1])
            if scale is None or scale.size != 1 or move.output[0] in graph.outputs:
                break
            codes = last.output[0]
            moved = graph.new_name(f'{codes}_moved')
            graph.rename_readers(codes, moved)
            node.input[0], move.input[0], move.output[0] = move.input[0], codes, moved
            _place_after(graph, move, last)
            graph.refresh()


def _last_on_codes(graph: OnnxGraph, quantize):
    """The Clip behind a QuantizeLinear, else itself."""
    reader = graph.only_reader(quantize.output[0])
    return reader if reader is not None and reader.op_type == 'Clip' else quantize


def _place_after(graph: OnnxGraph, node, other) -> None:
    """Put a node right behind another one, where its input is there."""
    copy = type(node)()
    copy.CopyFrom(node)
    graph.graph.node.remove(node)
    at = next(i for i, x in enumerate(graph.graph.node) if x.output == other.output)
    graph.graph.node.insert(at + 1, copy)


def flatten_to_reshape(graph: OnnxGraph) -> None:
    """Flatten from axis 1 becomes Reshape, through which codes pass."""
    for node in graph.graph.node:
        if node.op_type == 'Flatten' and attribute(node, 'axis', 1) == 1:
            node.op_type = 'Reshape'
            del node.attribute[:]
            node.input.append(graph.add_constant('flat_shape', np.array([0, -1], np.int64)))
    graph.refresh()


def own_zero_points(graph: OnnxGraph) -> None:
    """Each weight has its own zeros: ONNX Runtime changes them together with the codes on CPUs without VNNI."""
    for node in graph.graph.node:
        codes = graph.value(node.input[0]) if node.op_type == 'DequantizeLinear' else None
        if codes is not None and codes.dtype == np.int8:
            node.input[2] = graph.add_constant(f'{node.input[0]}_zero', graph.value(node.input[2]))
    graph.remove_unused()


PASSES = (drop_identities, merge_equal, transpose_weights, pool_globally, flatten_to_reshape, quantize_before_moves,
          clips_to_relus, integer_biases, merge_equal, own_zero_points)
