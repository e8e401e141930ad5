import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

pytest.importorskip('onnxruntime')
from graphs_for_tests import KINDS, Graph, packed, random_inputs, residual_net, small_graph  # noqa: E402
from onnx import TensorProto  # noqa: E402

from mmquant.export.executor.graph_executor import GraphExecutor  # noqa: E402
from mmquant.export.executor.pointwise import fma  # noqa: E402
from mmquant.export.runtime import RuntimeSession  # noqa: E402

TIES = [(0.02, 0.02, 0.04), (0.03, 0.01, 0.02)]  # sums and means fall between two codes all the time


def both(model, seed=0, count=2):
    """(executor, its tensors, those of ONNX Runtime), on random inputs, with all codes."""
    executor, inputs = GraphExecutor(model), random_inputs(model, seed, count)
    taps = executor.tensors()
    return executor, executor.run(inputs, taps), RuntimeSession(model, taps=taps).run(inputs)


@pytest.mark.parametrize('bits', [8, 4])
@pytest.mark.parametrize('seed', range(3))
def test_a_residual_net_equals_the_runtime(bits, seed):
    executor, ours, theirs = both(residual_net(seed, bits), seed, 4)
    assert set(ours) == set(theirs) and len(ours) == 11
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype
        np.testing.assert_array_equal(ours[name], theirs[name], name)
    assert not executor.islands and executor.integer_share == 1
    assert executor.integer_ops == dict(Conv=6, MaxPool=1, Add=2, GlobalAveragePool=1, Reshape=1, Gemm=1)
    codes = [a for a in ours.values() if a.dtype == np.uint8]
    assert sum(len(np.unique(a)) > 2**bits / 2 for a in codes) > 4  # the test would see a difference


@pytest.mark.parametrize('scales', [(None, None, None), *TIES])
@pytest.mark.parametrize('kind', KINDS)
def test_every_operator_equals_the_runtime(kind, scales):
    for seed in range(3):
        model = small_graph(kind, seed, scales)
        executor, ours, theirs = both(model, seed)
        assert not executor.islands
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name], f'{name} of seed {seed}')


def test_additions_of_all_pairs_of_codes():
    """One pair in 600000 tells how the constant of the kernel is rounded."""
    rng = np.random.default_rng(5)
    for _ in range(20):
        g, codes = Graph(), np.arange(256, dtype=np.uint8)
        inputs = dict(a=np.repeat(codes, 256), b=np.tile(codes, 256))
        scales, zeros = rng.uniform(0.02, 0.1, 3).astype(np.float32), rng.integers(0, 256, 3).astype(np.uint8)
        parts = [g.node('DequantizeLinear', [g.input([65536], name, TensorProto.UINT8), g.const(s), g.const(z)])
                 for name, s, z in zip('ab', scales, zeros)]
        g.output(g.node('QuantizeLinear', [g.node('Add', parts), g.const(scales[2]), g.const(zeros[2])]),
                 TensorProto.UINT8)
        ours, theirs = (s.run(inputs) for s in (GraphExecutor(g.model()), RuntimeSession(g.model())))
        np.testing.assert_array_equal(*ours.values(), *theirs.values())


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('mode, share', [('exact', 0.02), ('single', 0.02), ('double', 0.1)])
def test_other_modes_differ_in_few_codes_by_one(kind, mode, share):
    model = small_graph(kind, 1)
    inputs, taps = random_inputs(model, 1), GraphExecutor(model).tensors()
    reference, ours = (GraphExecutor(model, m).run(inputs, taps) for m in ('ort', mode))
    for name in taps:
        gap = np.abs(reference[name].astype(int) - ours[name].astype(int))
        assert gap.max() <= 1 and gap.mean() <= share, (name, gap.mean())


class DtypesSeen(TorchFunctionMode):
    """Types of all tensors that go into or come out of functions of torch."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in (*args, *(args[0] if args and isinstance(args[0], (list, tuple)) else ()), result):
            if isinstance(value, torch.Tensor) and value.numel() > 16:  # multipliers are made of a few floats
                self.seen.add(value.dtype)
        return result


@pytest.mark.parametrize('mode', ['single', 'double'])
def test_integers_only_between_input_codes_and_logit_codes(mode):
    g = Graph(3)
    x = g.node('DequantizeLinear', [g.input(['n', 3, 9, 9], dtype=TensorProto.UINT8), g.const(np.float32(0.017)),
                                    g.const(np.uint8(113))])
    g.scales[x] = np.float32(0.017)
    x = g.qdq(g.node('Relu', [g.conv(x, (8, 3, 3, 3), pads=[1] * 4)]), 0.021, 0)
    y = g.qdq(g.conv(x, (8, 1, 3, 3), pads=[1] * 4, group=8), 0.033, 117)
    x = g.qdq(g.node('Relu', [g.node('Add', [x, y])]), 0.029, 0)
    x = g.node('Reshape', [g.qdq(g.node('GlobalAveragePool', [x]), 0.013, 0), g.const(np.array([-1, 8], np.int64))])
    logits = g.output(g.qdq(g.gemm(x, (10, 8)), 0.031, 128, dequantize=False), TensorProto.UINT8)
    codes = np.random.default_rng(0).integers(0, 256, (2, 3, 9, 9)).astype(np.uint8)
    executor = GraphExecutor(g.model(), mode, carrier=torch.int64)
    with DtypesSeen() as watch:
        result = executor.run({'images': codes})[logits]
    assert not executor.islands and watch.seen >= {torch.uint8, torch.int8, torch.int64}
    assert not any(dtype.is_floating_point for dtype in watch.seen), watch.seen
    np.testing.assert_array_equal(result, GraphExecutor(g.model(), mode).run({'images': codes})[logits])
    with DtypesSeen() as watch:
        GraphExecutor(g.model(), 'ort').run({'images': codes})
    assert torch.float32 in watch.seen


def test_the_linear_layer_of_the_scheme():
    """S1 = 0.05, Z1 = -20, S2 = 0.02, S3 = 0.04, Z3 = 5, int8: acc = (8850, -4190), the first code saturates."""
    g = Graph()
    x = g.node('DequantizeLinear', [g.input([1, 3], dtype=TensorProto.INT8), g.const(np.float32(0.05)),
                                    g.const(np.int8(-20))])
    g.scales[x] = np.float32(0.05)
    w, scale = g.weight((2, 3), 0, np.array([[50, -100, 25], [127, 3, -64]], np.int8), np.full(2, 0.02, np.float32))
    y = g.node('Gemm', [x, w, g.bias(x, scale, np.array([350, -200], np.int32))], transB=1)
    g.output(g.node('QuantizeLinear', [y, g.const(np.float32(0.04)), g.const(np.int8(5))]), TensorProto.INT8)
    for mode in ('exact', 'single', 'double'):
        executor = GraphExecutor(g.model(), mode)
        codes, = executor.run({'images': np.array([[10, -60, 100]], np.int8)}).values()
        assert codes.tolist() == [[127, -100]] and list(executor.arithmetic.largest.values()) == [8850]
    assert 'int8 codes; ONNX Runtime wants uint8' in GraphExecutor(g.model()).islands[0].reason


def test_residual_add_of_the_scheme():
    """Section 3.3: the four sums, in gemmlowp's arithmetic."""
    g = Graph()
    parts = [g.node('DequantizeLinear', [g.input([4], name, TensorProto.INT8), g.const(np.float32(s)),
                                         g.const(np.int8(z))]) for name, s, z in (('a', 0.05, -10), ('b', 0.02, 3))]
    g.output(g.node('QuantizeLinear', [g.node('Add', parts), g.const(np.float32(0.06)), g.const(np.int8(-4))]),
             TensorProto.INT8)
    inputs = dict(a=np.array([100, -50, 7, -128], np.int8), b=np.array([-20, 90, 0, 127], np.int8))
    for mode in ('double', 'single', 'exact'):
        codes, = GraphExecutor(g.model(), mode).run(inputs).values()
        assert codes.tolist() == [80, -8, 9, -61], mode


def test_layout_in_front_of_a_quantizer_and_on_codes():
    """Conv -> Relu -> MaxPool -> Q, GAP -> Reshape -> Q and Q -> Reshape -> DQ stay in integers, as in the runtime."""
    g = Graph(2)
    x = g.node('MaxPool', [g.node('Relu', [g.conv(g.qdq(g.input(['n', 3, 9, 9])), (8, 3, 3, 3))])], kernel_shape=[2, 2])
    x = g.node('Reshape', [g.node('GlobalAveragePool', [g.qdq(x, 0.05, 0)]), g.const(np.array([-1, 8], np.int64))])
    codes = g.qdq(x, 0.03, 0, dequantize=False)
    codes = g.node('Reshape', [codes, g.const(np.array([-1, 4], np.int64))])
    x = g.node('DequantizeLinear', [codes, g.const(np.float32(0.03)), g.const(np.uint8(0))])
    g.scales[x] = np.float32(0.03)
    g.output(g.gemm(x, (5, 4)))
    executor, ours, theirs = both(g.model())
    assert not executor.islands and len(ours) == 4 and not any('in_front' in name for name in ours)
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], name)
    names = RuntimeSession(g.model()).optimized_ops()
    assert names['QLinearConv'] == names['QLinearGlobalAveragePool'] == names['QGemm'] == 1


def test_fma_rounds_once():
    """(1 + 2^-12)^2 - (1 + 2^-11) = 2^-24, which two roundings lose; and halves that only the exact sum tells apart."""
    f32 = np.float32
    one = f32(1 + 2**-12)
    assert fma(one, one, f32(-(1 + 2**-11))) == f32(2**-24)
    assert fma(f32(1), f32(1 + 2**-23), f32(2**-60)) == f32(1 + 2**-23)
    a, c = f32(2**-24 * (1 + 2**-23)), f32(1)  # a hair above the tie between 1 and its neighbour
    assert fma(a, f32(1), c) == f32(1 + 2**-23) and fma(f32(2**-24), f32(1), c) == 1


@pytest.mark.parametrize('bits, opset', [(4, 21), (2, 25)])
def test_packed_weights_give_the_same_codes(bits, opset):
    step = 2 ** (8 - bits)
    model = residual_net(0, 4, largest=127 // step * step, step=step, opset=opset)
    small = packed(model, bits)
    inputs, taps = random_inputs(model), GraphExecutor(model).tensors()
    results = [GraphExecutor(m).run(inputs, taps) for m in (model, small)]
    results += [RuntimeSession(m, taps=taps).run(inputs) for m in (model, small)]
    for name in results[0]:
        for other in results[1:]:
            np.testing.assert_array_equal(results[0][name], other[name])


def islands(build):
    g = Graph(1)
    x = g.qdq(g.input(['n', 6, 9, 9]), 0.05)
    g.output(build(g, x))
    return {i.op: i.reason for i in GraphExecutor(g.model()).islands}, g.model()


@pytest.mark.parametrize('build, op, reason', [
    (lambda g, x: g.qdq(g.node('Relu', [g.conv(x, (4, 6, 3, 3))]), 0.05, 20), 'Conv', 'Relu cuts off codes'),
    (lambda g, x: g.qdq(g.node('Clip', [g.conv(x, (4, 6, 3, 3)), g.const(np.float32(0)), g.const(np.float32(6))]),
                        6.1 / 255, 0), 'Conv', 'Clip cuts off codes'),
    (lambda g, x: g.conv(x, (4, 6, 3, 3)), 'Conv', 'is an output of the graph'),
    (lambda g, x: g.qdq(g.node('Tanh', [x])), 'Tanh', 'Tanh has no integer kernel'),
    (lambda g, x: g.qdq(g.conv(g.node('Sqrt', [x]), (4, 6, 3, 3), bias=False)), 'Conv', "'sqrt_7' is float"),
    (lambda g, x: g.gemm(g.node('Flatten', [x]), (5, 486)), 'Gemm', "'flatten_7' is float"),
    (lambda g, x: g.qdq(g.node('AveragePool', [x], kernel_shape=[2, 2], ceil_mode=1)), 'AveragePool', 'ceil_mode'),
])
def test_what_stays_float_and_why(build, op, reason):
    """The same operators stay float in the graph that ONNX Runtime executes."""
    found, model = islands(build)
    assert reason in found[op]
    if op != 'AveragePool':
        names = RuntimeSession(model).optimized_ops()
        assert not names['QLinearConv'] and not names['QGemm']


def test_relu_narrows_the_codes_in_integer_modes():
    _, model = islands(lambda g, x: g.qdq(g.node('Relu', [g.conv(x, (4, 6, 3, 3))]), 0.05, 20))
    executor = GraphExecutor(model, 'single')
    codes = executor.run(random_inputs(model), executor.tensors())[executor.tensors()[-1]]
    assert not executor.islands and codes.min() == 20 and codes.max() > 100


def test_accumulators_that_leave_int32():
    g = Graph()
    x = g.qdq(g.input([1, 2]), 1.0, 0)
    w, scale = g.weight((1, 2), 0, np.full((1, 2), 127, np.int8))
    g.output(g.node('Gemm', [x, w, g.bias(x, scale, np.array([2**31 - 10], np.int32))], transB=1))
    executor = GraphExecutor(g.model())
    assert executor.run({'images': np.zeros((1, 2), np.float32)}) and [*executor.arithmetic.largest.values()] == [
        2**31 - 10]
    with pytest.raises(OverflowError, match='node_Gemm.* do not fit int32'):
        executor.run({'images': np.full((1, 2), 200, np.float32)})


def test_a_bias_of_another_scale_is_an_error():
    g = Graph()
    x = g.qdq(g.input(['n', 6, 9, 9]), 0.05)
    w, scale = g.weight((4, 6, 3, 3))
    g.output(g.qdq(g.node('Conv', [x, w, g.bias(x, scale * 2)])))
    with pytest.raises(ValueError, match=r'node_Conv_\d+: the scale of its bias must be s_x \* s_w'):
        GraphExecutor(g.model()).run(random_inputs(g.model()))


def test_wrong_arguments():
    model = small_graph('Conv')
    with pytest.raises(ValueError, match="got 'float'"):
        GraphExecutor(model, 'float')
    executor, inputs = GraphExecutor(model), random_inputs(model)
    with pytest.raises(ValueError, match="the model has the inputs .*'a'.*got \\['images'\\]"):
        executor.run({'images': inputs['a']})
    with pytest.raises(ValueError, match=r"input 'a' must have the shape \['n', 6, 9, 9\], got \[2, 5, 9, 9\]"):
        executor.run(dict(inputs, a=inputs['a'][:, :5]))
    with pytest.raises(ValueError, match=r"taps \['nothing'\] are not made by any step"):
        executor.run(inputs, ['nothing'])
