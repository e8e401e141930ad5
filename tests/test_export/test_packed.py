import numpy as np
import pytest

pytest.importorskip('onnxruntime')
import onnx  # noqa: E402
from graphs_for_tests import Graph, random_inputs  # noqa: E402
from onnx import TensorProto, numpy_helper  # noqa: E402

from mmquant.export.executor.graph_executor import GraphExecutor  # noqa: E402
from mmquant.export.packed import pack, packed_bytes, small_form  # noqa: E402
from mmquant.export.runtime import RuntimeSession  # noqa: E402

KINDS = ['symmetric', 'affine', 'half_step', 'unsigned']


def weights(shape, axis, bits, kind, seed=0):
    """int8 values of a weight of some bits, shifted up as far as 64 allows."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2**bits, shape)
    channels = [-1 if i == axis else 1 for i in range(len(shape))]
    if kind == 'half_step':
        return ((2 * codes - 2**bits + 1) * 2 ** (5 - bits)).astype(np.int8)
    if kind == 'affine':
        codes = codes - rng.integers(1, 2**bits - 1, shape[axis]).reshape(channels)
    elif kind == 'symmetric':
        codes = codes - 2 ** (bits - 1)
    return (codes * 2 ** (6 - bits)).astype(np.int8)


def net(bits, kind='affine'):
    """Conv, depthwise Conv, Gemm and MatMul with Add, which have weights of some bits, between quantizers."""
    g = Graph(bits)

    def weight(shape, axis=0):
        return g.weight(shape, axis, weights(shape, axis, bits, kind, len(g.nodes)))

    x = g.qdq(g.input(['batch', 16, 8, 8]), 0.0173, 113)
    w, scale = weight((128, 16, 1, 1))
    x = g.qdq(g.node('Relu', [g.node('Conv', [x, w, g.bias(x, scale)])]), 0.0271, 0)
    w, scale = weight((128, 1, 5, 5))
    x = g.qdq(g.node('Conv', [x, w, g.bias(x, scale)], pads=[2] * 4, group=128), 0.0413, 131)
    x = g.node('Reshape', [g.qdq(g.node('GlobalAveragePool', [x]), 0.0171, 121), g.const(np.array([-1, 128]))])
    w, scale = weight((64, 128))
    x = g.qdq(g.node('Gemm', [x, w, g.bias(x, scale)], transB=1), 0.0319, 119)
    w, scale = weight((64, 48), 1)
    g.output(g.node('Add', [g.node('MatMul', [x, w]), g.bias(x, scale)]))
    return g.model()


def types(model):
    return [TensorProto.DataType.Name(x.data_type) for x in model.graph.initializer if len(x.dims) > 1]


@pytest.mark.parametrize('bits, codes, expected', [
    (4, [-8, 7], '78'), (2, [0, 1, 2, 3], 'e4'), (4, [0, 3, 7, 15], '30f7'), (2, [-2, -1, 0, 1], '4e'),
    (4, [1, 2, 3], '2103'), (2, [3, 0, 1, 2, 1], '9301')])
def test_known_bytes(bits, codes, expected):
    """The first element is in the lowest bits; ONNX reads the same values."""
    data = packed_bytes(np.array(codes), bits)
    assert data.hex() == expected
    kind = dict(zip((True, False), {2: (TensorProto.INT2, TensorProto.UINT2),
                                    4: (TensorProto.INT4, TensorProto.UINT4)}[bits]))[min(codes) < 0]
    tensor = TensorProto(data_type=kind, dims=[len(codes)], raw_data=data)
    assert numpy_helper.to_array(tensor).astype(int).tolist() == codes


def test_rows_are_not_padded():
    assert packed_bytes(np.arange(9).reshape(3, 3), 4).hex() == '1032547608'


def test_the_affine_weight_of_the_specification():
    """Codes (0, 3, 7, 15), zero point 5, shifted by 3 bits."""
    form = small_form(np.array([[-40, -16, 16, 80]], np.int8))
    assert form.codes.tolist() == [[0, 3, 7, 15]] and (form.factor, int(form.offset), form.bits) == (8, 40, 4)
    assert packed_bytes(form.codes, 4).hex() == '30f7'
    assert form.data_type == TensorProto.UINT4


@pytest.mark.parametrize('values, bits, offset, kind', [
    ([[-128, 112], [0, 16]], 4, 0, 'INT4'),
    ([[0, 30], [15, 2]], None, None, None),
    ([[0, 30], [16, 2]], 4, 0, 'UINT4'),
    ([[-64, -32], [0, 32]], 2, 0, 'INT2'),
    ([[-32, 64], [32, 0]], 2, 32, 'UINT2'),
    ([[-5, 10, 1], [-15, 0, -1]], 4, [[5], [15]], 'UINT4'),
    ([[-3, -1], [1, 3]], 2, 3, 'UINT2'),
    ([[7, 8], [-9, -8]], 2, [[-7], [9]], 'UINT2'),
    ([[0, 0], [0, 0]], 2, 0, 'UINT2'),
    ([[-128, 127], [3, 5]], None, None, None)])
def test_the_narrowest_form(values, bits, offset, kind):
    """One zero point a channel only where a common one is not enough."""
    form = small_form(np.array(values, np.int8))
    assert (form is None) == (bits is None)
    if form:
        assert (form.bits, form.offset.tolist()) == (bits, offset)
        assert (form.codes * form.factor - form.offset).tolist() == values
        assert TensorProto.DataType.Name(form.data_type) == kind


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('bits, smallest', [(2, 2), (2, 4), (3, 2), (4, 2)])
def test_packed_files_compute_the_same_by_the_same_kernels(bits, smallest, kind):
    model = net(bits, kind)
    before = model.SerializeToString(deterministic=True)
    small = pack(model, smallest)
    onnx.checker.check_model(small, full_check=True)
    assert model.SerializeToString(deterministic=True) == before
    stored = 2 if bits == smallest == 2 else 4
    widths = {name.lstrip('U') for name in types(small) if name not in ('INT8', 'INT32')}
    assert widths == {f'INT{stored}'} and 'INT8' not in types(small)
    assert (small.opset_import[0].version, small.ir_version) == ((25, 13) if stored == 2 else (21, 10))
    inputs, taps = random_inputs(model), GraphExecutor(model).tensors()
    ours = [GraphExecutor(m).run(inputs, taps) for m in (model, small)]
    sessions = [RuntimeSession(m, taps=taps, optimize=best) for best in (True, False) for m in (model, small)]
    fast, fast_small, slow, slow_small = (session.run(inputs) for session in sessions)
    assert len(taps) == 5 and len(np.unique(fast[model.graph.output[0].name])) > 60
    for name in ours[0]:
        for one, other in ((*ours, ), (fast, fast_small), (slow, slow_small), (ours[1], fast_small)):
            np.testing.assert_array_equal(one[name], other[name], name)
    ops = [session.optimized_ops() for session in sessions[:2]]
    assert ops[0] == ops[1] and ops[1]['QLinearConv'] == 2 and not ops[1]['Cast']
    assert len(small.SerializeToString()) < {2: 0.65, 4: 0.8}[stored] * len(before)


@pytest.mark.parametrize('bits, smallest, share', [(4, 2, 0.52), (3, 2, 0.52), (2, 2, 0.28), (2, 4, 0.52)])
def test_files_are_as_small_as_their_bits_say(bits, smallest, share):
    g = Graph()
    x = g.qdq(g.input(['n', 256, 9, 9]), 0.05, 0)
    w, scale = g.weight((256, 256, 3, 3), 0, weights((256, 256, 3, 3), 0, bits, 'affine'))
    g.output(g.qdq(g.node('Conv', [x, w, g.bias(x, scale)]), 0.04, 0))
    model = g.model()
    assert len(pack(model, smallest).SerializeToString()) < share * len(model.SerializeToString())


def test_zero_points_of_channels():
    """-5..10 in one channel, -10..5 in the next: 4 bits, with a Sub of shape (C, 1, 1, 1)."""
    model = net(4)
    small = pack(model)
    subs = [node for node in small.graph.node if node.op_type == 'Sub']
    shapes = {tuple(x.dims) for x in small.graph.initializer for node in subs if x.name == node.input[1]}
    assert shapes == {(128, 1, 1, 1), (64, 1), (1, 48)}
    assert [n.op_type for n in small.graph.node[:4]] == ['Cast', 'Sub', 'Mul', 'Cast']


def test_wide_weights_and_what_would_not_get_smaller_stay():
    g = Graph()
    x = g.qdq(g.input(['n', 16, 9, 9]), 0.05, 0)
    x = g.qdq(g.conv(x, (32, 16, 3, 3)), 0.04, 0)  # 8 bits
    w, scale = g.weight((4, 32, 1, 1), 0, weights((4, 32, 1, 1), 0, 4, 'affine'))  # 128 bytes
    g.output(g.qdq(g.node('Conv', [x, w, g.bias(x, scale)]), 0.04, 0))
    model = g.model()
    assert pack(model).SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


def test_other_readers_of_the_same_codes_keep_them():
    """Two convolutions, one of them on another path, share one weight."""
    g = Graph()
    x, y = (g.qdq(g.input(['n', 64, 5, 5], name), 0.05, 100) for name in 'ab')
    codes = g.const(weights((64, 64, 1, 1), 0, 3, 'affine'), 'w')
    scale = np.full(64, 0.003, np.float32)
    for z in (x, y):
        w, _ = g.weight((64, 64, 1, 1), 0, codes, scale)
        g.output(g.qdq(g.node('Conv', [z, w, g.bias(z, scale)]), 0.1, 128))
    model = g.model()
    small, inputs = pack(model), random_inputs(model)
    assert types(small).count('INT4') == 1 and 'INT8' not in types(small)
    for name, value in RuntimeSession(model).run(inputs).items():
        np.testing.assert_array_equal(value, RuntimeSession(small).run(inputs)[name])


def test_the_same_bytes_every_time():
    assert len({pack(net(2)).SerializeToString(deterministic=True) for _ in range(3)}) == 1


def test_other_widths_are_refused():
    with pytest.raises(ValueError, match='smallest must be one of .2, 4. bits, got 3'):
        pack(net(2), 3)
