"""Weights of 4 and 2 bits in the file that are int8 again when it is loaded.

    codes (int4, uint4, int2, uint2) -> Cast(int32) -> [Sub zero points] -> [Mul factor] -> Cast(int8)

ONNX Runtime folds the chain before DequantizeLinear and then finds the same integer kernels as in the file with int8
weights. A 4-bit tensor right before DequantizeLinear would run in float, a 2-bit one would not load.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmquant.export.onnx_api import TensorProto, helper, onnx
from mmquant.export.onnx_graph import OnnxGraph, attribute

WIDTHS = {2: (TensorProto.INT2, TensorProto.UINT2), 4: (TensorProto.INT4, TensorProto.UINT4)}
"""Bits -> types of signed and unsigned codes."""
OPSET_OF_2_BITS, IR_OF_2_BITS = 25, 13
PRODUCTS = ('Conv', 'Gemm', 'MatMul')


@dataclass(frozen=True)
class SmallForm:
    """``values = codes * factor - offset``: ``codes`` fit ``bits``, signed or not, ``offset`` broadcasts with them."""
    codes: np.ndarray
    factor: int
    offset: np.ndarray
    bits: int

    @property
    def data_type(self) -> int:
        """Type of the initializer."""
        signed, unsigned = WIDTHS[self.bits]
        return signed if self.codes.min(initial=0) < 0 else unsigned


def pack(model: onnx.ModelProto, smallest: int = 2) -> onnx.ModelProto:
    """A copy of a QDQ model whose weights take 4 or 2 bits, with bit-identical outputs.

    Weights of Conv, Gemm and MatMul are packed where that makes the file smaller: 2 bits as 2, 3 and 4 bits as 4.

    Args:
        model (onnx.ModelProto): With int8 weights, see :func:`~mmquant.export.qdq.export_qdq`.
        smallest (int): Fewest bits, 2 (default) or 4. With 2-bit weights the file has opset 25 and IR version 13, for
            ONNX Runtime 1.27 and newer.

    Raises:
        ValueError: Another ``smallest``.
    """
    if smallest not in WIDTHS:
        raise ValueError(f'smallest must be one of {tuple(WIDTHS)} bits, got {smallest!r}')
    packed = onnx.ModelProto()
    packed.CopyFrom(model)
    graph, chains, used = OnnxGraph(packed), [], set()
    for name, axis in _weights(graph).items():
        form = small_form(graph.value(name), axis, smallest)
        if form is None:
            continue
        constants, nodes = _chain(graph, name, form)
        if sum(x.ByteSize() for x in (*constants, *nodes)) < graph.constants[name].ByteSize():
            graph.graph.initializer.remove(graph.constants[name])
            graph.graph.initializer.extend(constants)
            chains += nodes
            used.add(form.bits)
    for node in reversed(chains):
        graph.graph.node.insert(0, node)
    if 2 in used:
        _raise_versions(packed)
    return packed


def small_form(values: np.ndarray, axis: int = 0, smallest: int = 2) -> SmallForm | None:
    """The narrowest codes of int8 values, None above 4 bits.

    Args:
        values (np.ndarray): int8, any shape.
        axis (int): Of the channels, whose ranges of codes may differ. Default 0.
        smallest (int): Fewest bits. Default 2.
    """
    values = values.astype(np.int32)
    if not values.size:
        return None
    others = tuple(i for i in range(values.ndim) if i != axis % values.ndim)
    offsets = (np.zeros((), np.int32), -values.min(), -values.min(others, keepdims=True))
    forms = []
    for offset in offsets:
        shifted = values + offset
        factor = int(np.gcd.reduce(shifted, None)) or 1
        forms.append((shifted // factor, factor, np.asarray(offset, np.int32)))
    for bits in (bits for bits in WIDTHS if bits >= smallest):
        for codes, factor, offset in forms:
            low, high = int(codes.min()), int(codes.max())
            if (0 <= low and high < 2**bits) or (-2**(bits - 1) <= low and high < 2**(bits - 1)):
                return SmallForm(codes, factor, offset, bits)
    return None


def packed_bytes(codes: np.ndarray, bits: int) -> bytes:
    """Codes of ``bits`` (2 or 4) in a row, the first one in the lowest bits of a byte; rows are not padded."""
    each = 8 // bits
    flat = np.pad(codes.flatten().astype(np.uint8) & (2**bits - 1), (0, -codes.size % each))
    shifts = np.arange(each, dtype=np.uint8) * bits
    return np.bitwise_or.reduce(flat.reshape(-1, each) << shifts, 1).astype(np.uint8).tobytes()


def _weights(graph: OnnxGraph) -> dict[str, int]:
    """int8 initializers that a DequantizeLinear hands to a product, with the axis of their channels."""
    found = {}
    for node in graph.graph.node:
        codes = graph.constants.get(node.input[0]) if node.op_type == 'DequantizeLinear' else None
        if codes is not None and codes.data_type == TensorProto.INT8 and codes.dims and any(
                reader.op_type in PRODUCTS and reader.input[1] == node.output[0]
                for reader in graph.readers[node.output[0]]):
            found.setdefault(node.input[0], attribute(node, 'axis', 1) % len(codes.dims))
    return found


def _chain(graph: OnnxGraph, name: str, form: SmallForm) -> tuple[list, list]:
    """Initializers and nodes that make the int8 tensor ``name``."""
    packed = TensorProto(name=graph.new_name(f'{name}_packed'), data_type=form.data_type, dims=form.codes.shape,
                         raw_data=packed_bytes(form.codes, form.bits))
    steps = [('Mul', np.int32(form.factor), form.factor != 1), ('Sub', form.offset, form.offset.any())]
    if not (form.offset % form.factor).any():  # zero points as the quantizer has them
        steps = [('Sub', form.offset // form.factor, steps[1][2]), steps[0]]
    constants, nodes, last = [packed], [], packed.name
    steps = [('Cast', None, True), *steps, ('Cast', None, True)]
    for i, (op, operand, needed) in enumerate(steps):
        if not needed:
            continue
        made = name if i == len(steps) - 1 else graph.new_name(f'{name}_{op.lower()}')
        if operand is None:
            to = TensorProto.INT8 if made == name else TensorProto.INT32
            nodes.append(helper.make_node(op, [last], [made], name=made, to=to))
        else:
            constants.append(onnx.numpy_helper.from_array(np.asarray(operand, np.int32), graph.new_name(f'{made}_by')))
            nodes.append(helper.make_node(op, [last, constants[-1].name], [made], name=made))
        last = made
    return constants, nodes


def _raise_versions(model: onnx.ModelProto) -> None:
    """To those that know 2-bit tensors; what these versions change of older operators are further types."""
    model.ir_version = max(model.ir_version, IR_OF_2_BITS)
    for entry in model.opset_import:
        if entry.domain in ('', 'ai.onnx'):
            entry.version = max(entry.version, OPSET_OF_2_BITS)
