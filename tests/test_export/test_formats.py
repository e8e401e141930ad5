"""Other formats of an exported file: QONNX, encodings of AIMET."""
import json

import numpy as np
import pytest

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

from onnx.reference import ReferenceEvaluator  # noqa: E402
from onnx.reference.op_run import OpRun  # noqa: E402

from mmquant.export.encodings import encodings, write_encodings  # noqa: E402
from mmquant.export.qonnx import DOMAIN, to_qonnx, write_qonnx  # noqa: E402
from mmquant.export.runtime import RuntimeSession  # noqa: E402


class Quant(OpRun):
    """As the operator is defined by the QONNX project."""
    op_domain = DOMAIN

    def _run(self, x, scale, zero, bits, signed=None, narrow=None, rounding_mode=None):
        assert (narrow, rounding_mode) == (0, 'ROUND')
        low = -2**(float(bits) - 1) if signed else 0
        codes = np.clip(np.rint(x / scale + zero), low, low + 2**float(bits) - 1)
        return (((codes - zero) * scale).astype(np.float32), )


def test_qonnx_computes_the_same(digits):
    model = to_qonnx(onnx.load(digits.files.qdq[0]))
    onnx.checker.check_model(model)
    ops = {n.op_type for n in model.graph.node}
    assert ops == {'Quant', 'Conv', 'Relu', 'Add', 'GlobalAveragePool', 'Reshape', 'Gemm'}
    images = digits.images[:8].numpy()
    found, = ReferenceEvaluator(model, new_ops=[Quant]).run(None, {'images': images})
    expected = RuntimeSession(digits.files.qdq[0], optimize=False).run({'images': images})['output0']
    assert (found.argmax(1) == expected.argmax(1)).all()
    assert np.abs(found - expected).mean() < 0.05 * np.abs(expected).mean()
    bits = {int(onnx.numpy_helper.to_array(x)) for x in model.graph.initializer if x.name.endswith('_bits')}
    assert bits == {4, 8}


def test_a_packed_file_is_refused_and_files_are_written(digits, tmp_path):
    path = write_qonnx(tmp_path / 'q.onnx', digits.files.qdq[0])
    assert onnx.load(path).graph.node
    found = json.loads(open(write_encodings(tmp_path / 'm.encodings', digits.files.qdq[0])).read())
    assert found['version'] == '2.0.0'


def test_encodings_are_complete(digits):
    graph = onnx.load(digits.files.qdq[0]).graph
    found = {x['name']: x for x in encodings(digits.files.qdq[0])}
    weighted = [n for n in graph.node if n.op_type in ('Conv', 'Gemm')]
    makers = {n.output[0]: n for n in graph.node}
    for node in weighted:
        weight = makers[node.input[1]].input[0]
        assert found[weight]['output_dtype'] == 'int8' and len(found[weight]['y_scale']) > 1
        assert found[makers[node.input[2]].input[0]]['output_dtype'] == 'int32'
    quantizers = [n for n in graph.node if n.op_type == 'QuantizeLinear']
    assert len(found) == len(quantizers) + 2 * len(weighted)
    assert {found[n.input[0]]['output_dtype'] for n in quantizers} == {'uint4', 'uint8'}
    assert found['images']['y_zero_point'] > 0
