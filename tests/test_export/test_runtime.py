import sys

import numpy as np
import pytest

pytest.importorskip('onnxruntime')
import onnx  # noqa: E402
from graphs_for_tests import Graph, packed, random_inputs, residual_net, small_graph  # noqa: E402

from mmquant.export import _extras  # noqa: E402
from mmquant.export.executor.graph_executor import GraphExecutor  # noqa: E402
from mmquant.export.runtime import RuntimeSession  # noqa: E402
from mmquant.export.saturation import cpu_saturates, saturates  # noqa: E402


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp('files') / 'net.onnx'
    onnx.save(residual_net(), path)
    return path


def test_everything_is_fused_and_taps_leave_it_so(path):
    expected = dict(QuantizeLinear=1, QLinearConv=6, QLinearAdd=2, QLinearGlobalAveragePool=1, QGemm=1)
    for taps in ((), GraphExecutor(path).tensors()):
        session = RuntimeSession(path, taps=taps)
        names = session.optimized_ops()
        assert {name: names[name] for name in expected} == expected
        assert not {'Conv', 'FusedConv', 'Gemm', 'Add', 'DequantizeLinear'} & set(names)
        outputs = session.run(random_inputs(session.model))
        assert len(outputs) == 1 + len(taps) and all(outputs[t].dtype == np.uint8 for t in taps)


def test_without_optimization_the_file_is_float(path):
    session = RuntimeSession(path, optimize=False)
    names, inputs = session.optimized_ops(), random_inputs(session.model)
    assert names['Conv'] == 6 and not names['QLinearConv']
    fast, slow = (list(s.run(inputs).values())[0] for s in (RuntimeSession(path), session))
    assert 0 < np.abs(fast - slow).max() < 0.1 * np.abs(slow).max()


def test_packed_files_keep_the_kernels():
    model = packed(residual_net(0, 4, largest=112, step=16))
    names = RuntimeSession(model).optimized_ops()
    assert names['QLinearConv'] == 6 and names['QGemm'] == 1 and not names['Cast'] and not names['Sub']


def test_shared_zero_points_load_where_weights_become_uint8():
    g = Graph(0, largest=127)
    x = g.qdq(g.input(['n', 4, 9, 9]), 0.05, 128)
    shared = g.const(np.zeros(4, np.int8))
    for _ in range(3):
        w, scale = g.weight((4, 4, 3, 3))
        g.nodes[-1].input[2] = shared
        x = g.qdq(g.node('Conv', [x, w, g.bias(x, scale)], pads=[1] * 4), 0.3, 128)
    g.output(x)
    model = g.model()
    assert RuntimeSession(model).optimized_ops()['QLinearConv'] == 3 and model == g.model()


def test_optimizers_can_be_disabled():
    """A float bias is rounded when the file is loaded, unless that optimizer is off."""
    model = small_graph('ConvFloatBias')
    assert RuntimeSession(model).optimized_ops()['QLinearConv'] == 1
    names = RuntimeSession(model, disabled_optimizers=['WeightBiasQuantization']).optimized_ops()
    assert names['Conv'] == 1 and not names['QLinearConv']


def test_openvino_agrees_but_for_single_codes(path):
    pytest.importorskip('openvino')
    session = RuntimeSession(path, provider='openvino')
    inputs = random_inputs(session.model, count=4)
    ours, theirs = (list(s.run(inputs).values())[0] for s in (RuntimeSession(path), session))
    assert ours.shape == theirs.shape == (4, 10)
    assert np.abs(ours - theirs).mean() < 0.05 * np.abs(ours).mean()
    with pytest.raises(ValueError, match='of onnxruntime alone'):
        session.optimized_ops()


def test_broken_files(path, tmp_path):
    data = path.read_bytes()
    for name, content in dict(cut=data[:len(data) // 2], altered=data.replace(b'QuantizeLinear', b'QuantizeLinaer'),
                              empty=b'', text=b'no model at all').items():
        broken = tmp_path / f'{name}.onnx'
        broken.write_bytes(content)
        for reader in (RuntimeSession, GraphExecutor):
            with pytest.raises(ValueError, match=f'{name}.onnx is not a whole ONNX model'):
                reader(broken)
    with pytest.raises(FileNotFoundError):
        RuntimeSession(tmp_path / 'none.onnx')


def test_wrong_inputs(path):
    session = RuntimeSession(path)
    images = random_inputs(session.model)['images']
    with pytest.raises(ValueError, match=r"the model has the inputs \{'images'.*got \['image'\]"):
        session.run({'image': images})
    with pytest.raises(ValueError, match=r"must have the shape \['batch', 3, 16, 16\], got \[2, 3, 16, 15\]"):
        session.run({'images': images[..., 1:]})
    with pytest.raises(ValueError, match="input 'images' must be float32, got float64"):
        session.run({'images': images.astype(np.float64)})
    with pytest.raises(ValueError, match="tap 'nothing' is not made by any node"):
        RuntimeSession(path, taps=['nothing'])
    with pytest.raises(ValueError, match="got 'tensorrt'"):
        RuntimeSession(path, provider='tensorrt')
    with pytest.raises(ValueError, match='openvino has no levels'):
        RuntimeSession(path, provider='openvino', optimize=False)


def test_a_missing_package_says_what_to_install(path, monkeypatch):
    for name in ('onnxruntime', 'openvino'):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ImportError, match=f'{name} is needed .* pip install -r requirements/export.txt'):
            RuntimeSession(path, provider=name)
    assert _extras.need('onnx.helper') is onnx.helper


def test_which_layers_could_lose_bits():
    """Depthwise convs never do, nor do codes of 4 bits (15 * 2 * 127) or weights up to 64 (255 * 2 * 64)."""
    names = saturates(residual_net(0, 8, 127))
    assert len(names) == 6 and sum('Conv' in name for name in names) == 5 and 'node_Gemm' in names[-1]
    assert saturates(residual_net(0, 8, 64)) == []
    low = saturates(residual_net(0, 4, 127))  # input, last conv and classifier have 8 bits
    assert set(low) < set(saturates(residual_net(0, 8, 127))) | set(low) and len(low) == 2


def test_vnni_is_read_from_the_flags(tmp_path):
    info = tmp_path / 'cpuinfo'
    for flags, expected in (('avx2 fma', True), ('avx2 avx512f avx512_vnni', False), ('avx2 avx_vnni', False)):
        info.write_text(f'processor : 0\nflags\t\t: fpu {flags}\n')
        assert cpu_saturates(info) is expected
    info.write_text('processor : 0\nFeatures : asimd\n')
    assert cpu_saturates(info) is cpu_saturates(tmp_path / 'none') is False
