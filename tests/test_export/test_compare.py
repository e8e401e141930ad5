import numpy as np
import onnx
import pytest

pytest.importorskip('onnxruntime')
from graphs_for_tests import Graph, random_inputs, residual_net, small_graph  # noqa: E402
from onnx import numpy_helper  # noqa: E402

from mmquant.export import compare as module  # noqa: E402
from mmquant.export.compare import compare  # noqa: E402
from mmquant.export.saturation import cpu_saturates  # noqa: E402


@pytest.mark.parametrize('batch', [3, 16])
def test_a_residual_net_passes(batch, tmp_path):
    onnx.save(residual_net(), tmp_path / 'net.onnx')
    images = np.random.default_rng(0).normal(size=(7, 3, 16, 16)).astype(np.float32)
    result = compare(tmp_path / 'net.onnx', images, batch=batch)
    assert result.passed and result.reason == '' and result.worst == '' and result.islands == []
    assert result.tensors == 10 and result.codes == 7 * (3 * 256 + 8 * 256 + 3 * 8 * 64 + 4 * 16 * 16 + 16)
    assert result.outputs == 70 and result.differing == result.largest == 0 and result.integer_share == 1


def test_weights_beyond_64_need_exact_sums():
    model = residual_net(0, 8, largest=127)
    images = np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float32)
    assert compare(model, images).passed
    raw = compare(model, images, exact_sums=False)
    if not cpu_saturates():
        assert raw.passed
        return
    assert not raw.passed and raw.differing > 1000 and raw.largest > 20 and len(raw.saturating) == 6
    assert 'no VNNI: sums of two products are cut off to 16 bits in 6 layers' in raw.reason


def test_a_difference_is_found_and_located(monkeypatch):
    """The runtime gets a file in which a single weight code differs."""
    model = small_graph('Conv')
    altered = onnx.ModelProto()
    altered.CopyFrom(model)
    weight = next(i for i in altered.graph.initializer if len(i.dims) == 4)
    codes = numpy_helper.to_array(weight).copy()
    codes[0, 0, 0, 0] ^= 32
    weight.CopyFrom(numpy_helper.from_array(codes, weight.name))
    session = module.RuntimeSession
    monkeypatch.setattr(module, 'RuntimeSession', lambda _, **kwargs: session(altered, **kwargs))
    result = compare(model, random_inputs(model))
    assert not result.passed and result.differing > 10 and result.largest > 1
    assert result.worst == 'quantizelinear_27' and list(result.shares) == [result.worst]
    assert result.shares[result.worst] < 1 / 8 + 1e-9 and "most in 'quantizelinear_27'" in result.reason


def test_float_islands_are_named_and_their_codes_counted_apart(monkeypatch):
    g = Graph(0)
    x = g.qdq(g.conv(g.qdq(g.input(['n', 6, 9, 9])), (6, 6, 3, 3)))
    g.output(g.qdq(g.node('Tanh', [x]), 1 / 128, 128))
    model = g.model()
    result = compare(model, random_inputs(model))
    assert result.passed and [i.op for i in result.islands] == ['Tanh'] and result.integer_share == 1
    run = module.RuntimeSession.run

    def shifted(self, inputs):
        outputs = run(self, inputs)
        return outputs | {self.output_names[-1]: outputs[self.output_names[-1]] ^ 1}

    monkeypatch.setattr(module.RuntimeSession, 'run', shifted)
    result = compare(model, random_inputs(model))
    assert result.passed and result.differing == result.behind_islands == 2 * 6 * 49 and result.largest == 1
    assert result.reason.startswith("behind the float Tanh 'node_Tanh_")


def test_no_images():
    with pytest.raises(ValueError, match='at least one image'):
        compare(residual_net(), np.zeros((0, 3, 16, 16), np.float32))
