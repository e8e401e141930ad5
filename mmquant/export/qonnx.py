"""The QONNX form of an exported file: Quant nodes, which tools for hardware read, instead of Q and DQ.

``Quant(x, scale, zero_point, bits; signed, narrow, rounding_mode)`` of ``qonnx.custom_op.general``. It adds the zero
point before it rounds, so that ties go elsewhere where the zero point is odd.
"""
from __future__ import annotations

import os

import numpy as np

from mmquant.export.onnx_api import helper, onnx
from mmquant.export.onnx_graph import OnnxGraph, attribute
from mmquant.utils.files import replacing

DOMAIN = 'qonnx.custom_op.general'


def to_qonnx(model):
    """A copy of a QDQ model (not packed): activations and weights through Quant nodes, biases as floats.

    ValueError for a packed file.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = OnnxGraph(copy)
    for dq in [n for n in graph.graph.node if n.op_type == 'DequantizeLinear']:
        if dq.input[0] in graph.constants:
            _constant(graph, dq)
        else:
            _activation(graph, dq)
    graph.refresh()
    graph.remove_unused()
    copy.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return copy


def _quant(graph: OnnxGraph, dq, source: str, scale: np.ndarray, zero, bits: int, signed: bool) -> None:
    names = [graph.add_constant(f'{dq.output[0]}_{word}', np.asarray(value, np.float32))
             for word, value in (('scale', scale), ('zero', zero), ('bits', bits))]
    node = helper.make_node('Quant', [source, *names], list(dq.output), name=dq.output[0], domain=DOMAIN,
                            signed=int(signed), narrow=0, rounding_mode='ROUND')
    graph.insert_before(dq, node)
    graph.graph.node.remove(dq)


def _activation(graph: OnnxGraph, dq) -> None:
    maker, top, moves = graph.maker(dq.input[0]), 255, []
    while maker is not None and maker.op_type != 'QuantizeLinear':
        if maker.op_type == 'Clip':
            top = int(graph.value(maker.input[2]))
        else:
            moves.append(maker)
        maker = graph.maker(maker.input[0])
    if maker is None:
        raise ValueError(f'{dq.output[0]} reads codes that no QuantizeLinear makes: the file is packed; give the one '
                         'that is not')
    source = maker.input[0]
    for move in reversed(moves):  # codes were moved: values are, now
        copy = type(move)()
        copy.CopyFrom(move)
        copy.input[0], copy.output[0] = source, graph.new_name(f'{move.output[0]}_values')
        copy.name = source = copy.output[0]
        graph.insert_before(dq, copy)
    _quant(graph, dq, source, graph.value(dq.input[1]), graph.value(dq.input[2]), top.bit_length(), False)


def _constant(graph: OnnxGraph, dq) -> None:
    codes, scale, axis = graph.value(dq.input[0]), graph.value(dq.input[1]), attribute(dq, 'axis', 1)
    shape = [1] * codes.ndim
    if scale.size > 1:
        shape[axis] = -1
    scale = scale.reshape(shape)
    values = graph.add_constant(f'{dq.output[0]}_floats', (codes * scale.astype(np.float32)).astype(np.float32))
    if codes.dtype == np.int32:  # a bias, as finely as float32 has it
        for reader in graph.readers[dq.output[0]]:
            for place, name in enumerate(reader.input):
                if name == dq.output[0]:
                    reader.input[place] = values
        graph.graph.node.remove(dq)
        return
    _quant(graph, dq, values, scale, 0, 8, True)


def write_qonnx(path: str | os.PathLike, onnx_file: str | os.PathLike) -> str:
    """Write the QONNX form of an exported file; returns the path."""
    with replacing(path, 'wb') as stream:
        stream.write(to_qonnx(onnx.load(str(onnx_file))).SerializeToString(deterministic=True))
    return str(path)
