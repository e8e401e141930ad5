"""Encodings of AIMET, version 2.0.0, of an exported graph: what other tools read to quantize its float twin.

A list of ``name``, ``output_dtype``, ``y_scale``, ``y_zero_point`` and ``axis`` for every tensor that is quantized;
made from the graph, so that it is complete and fits it.
"""
from __future__ import annotations

import os
from pathlib import Path

from mmquant.export.executor.graph_view import GraphView
from mmquant.utils.files import write_json

VERSION = '2.0.0'


def encodings(path: str | os.PathLike) -> list[dict]:
    """One entry for each quantized tensor of a QDQ file, in the order of its nodes.

    Activations are named as the float tensor that the quantizer reads, weights and biases as their codes. Codes of
    fewer than 8 bits are told by ``output_dtype``: ``uint4``, ``int8``, ...
    """
    view, found = GraphView(path), []
    for node in view.nodes:
        if node.op == 'QuantizeLinear':
            scale, zero = (view.constants[name] for name in node.inputs[1:3])
            reader = view.only_reader(node.outputs[0])
            top = int(view.constants[reader.inputs[2]]) if reader is not None and reader.op == 'Clip' else 255
            found.append(dict(name=node.inputs[0], output_dtype=f'uint{top.bit_length()}', y_scale=float(scale),
                              y_zero_point=int(zero)))
        elif node.op == 'DequantizeLinear' and node.inputs[0] in view.constants:
            codes, scale = (view.constants[name] for name in node.inputs[:2])
            found.append(dict(name=node.inputs[0], output_dtype=str(codes.dtype), y_scale=scale.flatten().tolist(),
                              axis=node.attributes.get('axis', 1)))
    return found


def write_encodings(path: str | os.PathLike, onnx_file: str | os.PathLike) -> str:
    """Write ``.encodings`` beside an exported file; returns the path."""
    return write_json(Path(path), dict(version=VERSION, encodings=encodings(onnx_file)))
