"""Changes of the ONNX graph that let a runtime find its integer kernels."""
import numpy as np
import pytest

onnx = pytest.importorskip('onnx')

from onnx import helper  # noqa: E402

from mmquant.export import passes  # noqa: E402
from mmquant.export.onnx_graph import OnnxGraph  # noqa: E402


def graph_of(nodes, constants, inputs=(('x', (2, 4, 6, 6)), ), outputs=('y', )) -> OnnxGraph:
    """A graph of float inputs and outputs."""
    values = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    made = helper.make_graph(nodes, 'g', [helper.make_tensor_value_info(n, 1, s) for n, s in inputs],
                             [helper.make_tensor_value_info(n, 1, None) for n in outputs], values)
    return OnnxGraph(helper.make_model(made, opset_imports=[helper.make_opsetid('', 21)], ir_version=10))


def outputs_of(graph: OnnxGraph, x: np.ndarray) -> np.ndarray:
    """What onnxruntime computes without optimizations."""
    ort = pytest.importorskip('onnxruntime')
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(graph.model.SerializeToString(), options).run(None, {'x': x})[0]


def types(graph: OnnxGraph) -> list[str]:
    return [n.op_type for n in graph.graph.node]


def clipped(scale: float, top: int) -> OnnxGraph:
    node = helper.make_node
    return graph_of([node('Clip', ['x', 'low', 'high'], ['a']), node('QuantizeLinear', ['a', 's', 'z'], ['q']),
                     node('Clip', ['q', 'z', 'top'], ['c']), node('DequantizeLinear', ['c', 's', 'z'], ['y'])],
                    dict(low=np.float32(0), high=np.float32(6), s=np.float32(scale), z=np.uint8(0), top=np.uint8(top)))


def test_a_clip_above_the_codes_is_a_relu():
    """Section 8.6: 14.5 * 0.4 = 5.8 <= 6, but 14.5 * 0.45 = 6.525 > 6."""
    for scale, op in ((0.4, 'Relu'), (0.45, 'Clip')):
        graph = clipped(scale, 15)
        x = np.linspace(-2, 8, 2 * 4 * 36, dtype=np.float32).reshape(2, 4, 6, 6)
        before = outputs_of(graph, x)
        passes.clips_to_relus(graph)
        assert types(graph)[0] == op
        np.testing.assert_array_equal(outputs_of(graph, x), before)


def test_codes_of_transposed_weights():
    node, rng = helper.make_node, np.random.default_rng(0)
    graph = graph_of([node('DequantizeLinear', ['w', 's', 'z'], ['f'], axis=0),
                      node('Transpose', ['f'], ['t'], perm=[1, 0]),
                      node('MatMul', ['x', 't'], ['y'])],
                     dict(w=rng.integers(-9, 9, (3, 5), np.int8), s=rng.random(3, np.float32), z=np.zeros(3, np.int8)),
                     (('x', (2, 5)), ))
    x = rng.random((2, 5), np.float32)
    before = outputs_of(graph, x)
    passes.transpose_weights(graph)
    assert types(graph) == ['DequantizeLinear', 'MatMul'] and graph.graph.node[0].attribute[0].i == 1
    np.testing.assert_allclose(outputs_of(graph, x), before, rtol=1e-6)


@pytest.mark.parametrize('keep', [0, 1])
@pytest.mark.parametrize('axes', [(2, 3), (-1, -2)])
def test_mean_of_images_is_a_global_pool(keep, axes):
    graph = graph_of([helper.make_node('ReduceMean', ['x', 'axes'], ['y'], keepdims=keep)],
                     dict(axes=np.array(axes, np.int64)))
    x = np.random.default_rng(1).random((2, 4, 6, 6), np.float32)
    before = outputs_of(graph, x)
    passes.pool_globally(graph)
    assert types(graph) == ['GlobalAveragePool'] + ['Reshape'] * (not keep)
    found = outputs_of(graph, x)
    assert found.shape == before.shape
    np.testing.assert_allclose(found, before, rtol=1e-6)
    other = graph_of([helper.make_node('ReduceMean', ['x', 'axes'], ['y'])], dict(axes=np.array([1], np.int64)))
    passes.pool_globally(other)
    assert types(other) == ['ReduceMean']


def test_codes_are_moved_instead_of_values():
    node = helper.make_node
    graph = graph_of([node('Reshape', ['x', 'shape'], ['r']), node('QuantizeLinear', ['r', 's', 'z'], ['q']),
                      node('Clip', ['q', 'z', 'top'], ['c']), node('DequantizeLinear', ['c', 's', 'z'], ['y'])],
                     dict(shape=np.array([2, -1], np.int64), s=np.float32(0.1), z=np.uint8(0), top=np.uint8(7)))
    x = np.random.default_rng(2).random((2, 4, 6, 6), np.float32)
    before = outputs_of(graph, x)
    passes.quantize_before_moves(graph)
    assert types(graph) == ['QuantizeLinear', 'Clip', 'Reshape', 'DequantizeLinear']
    np.testing.assert_array_equal(outputs_of(graph, x), before)


def gemm(bias: float) -> OnnxGraph:
    node = helper.make_node
    return graph_of([node('QuantizeLinear', ['x', 's', 'z'], ['q']), node('DequantizeLinear', ['q', 's', 'z'], ['d']),
                     node('DequantizeLinear', ['w', 'sw', 'zw'], ['f'], axis=0),
                     node('Gemm', ['d', 'f', 'b'], ['y'], transB=1)],
                    dict(s=np.float32(0.05), z=np.uint8(3), w=np.ones((2, 4), np.int8), sw=np.full(2, 0.02, np.float32),
                         zw=np.zeros(2, np.int8), b=np.array([bias, -0.2], np.float32)), (('x', (1, 4)), ))


def test_biases_are_integers_of_the_sums():
    graph = gemm(0.35)
    passes.integer_biases(graph)
    dq = graph.maker(graph.graph.node[-1].input[2], 'DequantizeLinear')
    assert graph.value(dq.input[0]).tolist() == [350, -200] and graph.value(dq.input[0]).dtype == np.int32
    assert graph.value(dq.input[1]).tolist() == pytest.approx([0.001, 0.001])
    with pytest.raises(ValueError, match='RoundBiases'):
        passes.integer_biases(gemm(3e6))


def test_zero_points_of_weights_are_not_shared():
    node = helper.make_node
    graph = graph_of([node('DequantizeLinear', ['a', 's', 'z'], ['f'], axis=0),
                      node('DequantizeLinear', ['b', 's', 'z'], ['g'], axis=0), node('Add', ['f', 'g'], ['h']),
                      node('MatMul', ['x', 'h'], ['y'])],
                     dict(a=np.ones((4, 2), np.int8), b=np.full((4, 2), 2, np.int8), s=np.ones(4, np.float32),
                          z=np.zeros(4, np.int8)), (('x', (1, 4)), ))
    passes.own_zero_points(graph)
    zeros = [n.input[2] for n in graph.graph.node if n.op_type == 'DequantizeLinear']
    assert len(set(zeros)) == 2 and 'z' not in graph.constants
