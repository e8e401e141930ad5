"""Whole files: what is in them, that they are the same each time, and what is refused."""
import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

import mmquant  # noqa: E402
from mmquant.export.compare import compare  # noqa: E402
from mmquant.export.evaluation import deployed  # noqa: E402
from mmquant.export.files import read_sidecar  # noqa: E402
from mmquant.export.runtime import RuntimeSession  # noqa: E402
from mmquant.export.tracing import ExportError  # noqa: E402
from mmquant.export.verify import verify  # noqa: E402


class Small(nn.Module):
    """Two convolutions and a linear layer; ``share`` calls the second one twice."""

    def __init__(self, share: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)
        self.share = share

    def forward(self, x):
        x = self.first(x).relu()
        x = self.second(x).relu()
        x = self.second(x).relu() if self.share else x
        return self.fc(x.mean((2, 3)))


STEPS = [dict(type='FoldBatchNorm'), dict(type='InsertQuantizers'), dict(type='InitWeightRange'),
         dict(type='InitActivationRange')]


def quantized(w_bits=4, a_bits=8, model=None, **options):
    torch.manual_seed(0)
    images = torch.randn(8, 3, 10, 10)
    return mmquant.quantize(model or Small(), [images], STEPS, w_bits, a_bits, **options), images


def test_the_optimized_graph_is_integer(digits):
    """Section 8.7."""
    ops = RuntimeSession(digits.files.qdq[0]).optimized_ops()
    wanted = dict(QuantizeLinear=1, QLinearConv=20, QLinearAdd=8, QLinearGlobalAveragePool=1, QGemm=1)
    assert {k: ops[k] for k in wanted} == wanted
    assert not {'Conv', 'FusedConv', 'Gemm', 'Add', 'MatMul'} & set(ops)


def test_gates(digits):
    verdict = verify(digits.model, digits.files, [digits.images[:32]], 32)
    assert verdict.codes > 5e6 and verdict.codes_differing == 0 and verdict.integer_share == 1
    assert verdict.largest_step <= 1 and verdict.worst_share < 1e-3 and verdict.agreement >= 0.99
    assert verdict.packed_equal and not verdict.failures() and not verdict.islands
    verdict.worst_share = 0.01
    assert 'G2' in verdict.failures()[0]
    verdict.worst_share, verdict.metrics, verdict.evaluated = 0, {'accuracy/top1': (99.2, 99.0)}, 500
    assert not verdict.failures()  # one image of 500
    verdict.evaluated = 1000
    assert 'G3: accuracy/top1 99.2 in simulation, 99 in the runtime' in verdict.failures()


def test_packed_file_computes_the_same(digits):
    whole, small = RuntimeSession(digits.files.qdq[0]), RuntimeSession(digits.files.packed[0])
    feed = {'images': digits.images[:16].numpy()}
    np.testing.assert_array_equal(whole.run(feed)['output0'], small.run(feed)['output0'])
    sizes = [Path(x).stat().st_size for x in (digits.files.qdq[0], digits.files.packed[0])]
    assert sizes[1] < 0.45 * sizes[0]


def test_the_same_bytes_again_and_nothing_of_the_machine(digits, tmp_path):
    again = digits.model.export(tmp_path / 'model.onnx', digits.images, packed=True)
    for before, now in zip((*digits.files.qdq, *digits.files.packed, digits.files.sidecar),
                           (*again.qdq, *again.packed, again.sidecar)):
        content = Path(before).read_bytes()
        assert content == Path(now).read_bytes()
        for word in (str(Path.home()), str(Path(mmquant.__file__).parents[1]), 'site-packages', '.py'):
            assert word.encode() not in content, word


def test_a_saved_model_is_the_exported_one(digits, tmp_path):
    """The checkpoint holds the deploy quantizers and rounded biases, and exports to the same bytes."""
    path = digits.model.save(tmp_path / 'deployed.pth')
    from mmengine.config import Config
    from mmpretrain.registry import MODELS
    cfg = Config.fromfile(Path(__file__).parents[2] / 'configs/float/resnet18_digits.py')
    fresh = mmquant.load(MODELS.build(dict(cfg.model, data_preprocessor=cfg.data_preprocessor)).eval(), path)
    with torch.no_grad():
        assert torch.equal(fresh.run(digits.images), digits.model.run(digits.images))
    files = fresh.export(tmp_path / 'model.onnx', digits.images)
    assert Path(files.qdq[0]).read_bytes() == Path(digits.files.qdq[0]).read_bytes()


def test_sidecar(digits):
    about = read_sidecar(digits.files.packed[0])
    assert about['input']['shape'] == [3, 32, 32] and about['input']['mean'] == pytest.approx([77.7] * 3)
    assert about['layers']['backbone.layer1.0.conv1'] == dict(w_bits=2, a_bits=8) and about['float_layers'] == {}
    assert about['layers']['backbone.conv1'] == dict(w_bits=8, a_bits=8)
    assert [x['name'] for x in about['files']] == ['model.onnx', 'model_packed.onnx']


def test_altered_files_are_refused(digits, tmp_path):
    files = digits.model.export(tmp_path / 'model.onnx', digits.images)
    content = bytearray(Path(files.qdq[0]).read_bytes())
    content[len(content) // 2] ^= 1
    Path(files.qdq[0]).write_bytes(content)
    with pytest.raises(ExportError, match='truncated or altered'):
        read_sidecar(files.qdq[0])
    Path(files.qdq[0]).unlink()
    with pytest.raises(ExportError, match='missing'):
        read_sidecar(files.qdq[0])
    Path(files.sidecar).write_text('{"format": 9, "files": []}')
    with pytest.raises(ExportError, match='format 9'):
        read_sidecar(files.sidecar)
    Path(files.sidecar).write_text('{')
    with pytest.raises(ExportError, match='no sidecar of an exported model'):
        read_sidecar(files.sidecar)
    with pytest.raises(ExportError, match='has no sidecar'):
        read_sidecar(tmp_path / 'other.onnx')


def test_post_processing_takes_the_runtime(digits):
    with torch.no_grad(), deployed(digits.model, digits.files.qdq[0]):
        found = digits.model.architecture(digits.images[:8], mode='predict')
    session = RuntimeSession(digits.files.qdq[0])
    logits = session.run({'images': digits.images[:8].numpy()})['output0']
    assert [int(x.pred_label) for x in found] == logits.argmax(1).tolist()
    assert 'extract_feat' not in vars(digits.model.architecture)


def test_fixed_batch(tmp_path):
    model, images = quantized()
    files = model.export(tmp_path / 'm.onnx', images, batch=3)
    session = RuntimeSession(files.qdq[0])
    assert session.run({'images': images[:3].numpy()})['output0'].shape == (3, 4)
    with pytest.raises(ValueError, match='shape'):
        session.run({'images': images[:2].numpy()})


def test_a_layer_called_twice_shares_its_weight(tmp_path):
    """Its two inputs have scales of their own with per_call, and so have its biases."""
    model, images = quantized(8, 8, Small(True), per_call=True, weight=dict(symmetric=True))
    files = model.export(tmp_path / 'm.onnx', images)
    found = compare(files.qdq[0], images.numpy())
    assert found.differing == 0 and found.outputs_differing == 0 and found.passed
    import onnx
    graph = onnx.load(files.qdq[0]).graph
    biases = [x.name for x in graph.initializer if x.data_type == onnx.TensorProto.INT32 and x.name.count('codes')]
    assert len(biases) == 4 and len([x for x in graph.initializer if len(x.dims) == 4]) == 2


def test_8_bit_zero_points_become_symmetric(tmp_path):
    model, images = quantized(8, 8, weight=dict(symmetric=False), overrides=[])
    assert not any(p.quantizer['symmetric'] for p in model.plan.weights.values())
    with torch.no_grad():
        before = model.run(images)
    files = model.export(tmp_path / 'm.onnx', images)
    with torch.no_grad():
        after = model.run(images)
    assert all(p.quantizer['symmetric'] for p in model.plan.weights.values())
    assert (after - before).abs().max() < 0.05 * before.abs().max() and not torch.equal(after, before)
    assert compare(files.qdq[0], images.numpy()).integer_share == 1


def test_refusals_name_the_layer(tmp_path):
    images = torch.randn(4, 3, 10, 10)
    model, _ = quantized(weight=dict(keep_mean=True))
    with pytest.raises(ExportError, match=r'first one is first: keep_mean'):
        copy.deepcopy(model).export(tmp_path / 'm.onnx', images)
    files = model.export(tmp_path / 'm.onnx', images, allow_float=True)
    about = json.loads(Path(files.sidecar).read_text())
    assert 'keep_mean' in about['float_layers']['second'] and about['runtime']['disabled_optimizers']
    model, _ = quantized(a_bits=4, activation=dict(type='mmquant.APoTQuantizer'), overrides=[])
    with pytest.raises(ExportError, match='APoTQuantizer'):
        model.export(tmp_path / 'm.onnx', images)
    with pytest.raises(ExportError, match='several sizes'):
        quantized()[0].export(tmp_path / 'm.onnx', [images, images[..., :8]])
    with pytest.raises(ExportError, match='no images'):
        quantized()[0].export(tmp_path / 'm.onnx', [])
    with pytest.raises(ValueError, match='ort_cpu'):
        quantized()[0].export(tmp_path / 'm.onnx', images, profile='ort_cqu')


def test_scales_of_channels_and_wide_codes_run_in_float(tmp_path):
    """16-bit activations: the file computes what the simulation does, in plain float operations."""
    model, images = quantized(8, 16, weight=dict(symmetric=True))
    files = model.export(tmp_path / 'm.onnx', images)
    with torch.no_grad():
        expected = model.run(images)
    session = RuntimeSession(files.qdq[0], optimize=False)
    found = session.run({'images': images.numpy()})['output0']
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-4)


def test_a_failed_write_leaves_no_half(tmp_path, monkeypatch):
    model, images = quantized()
    from mmquant.export import files as module

    def full(*args):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(module.os, 'fsync', full, raising=False)
    import mmquant.utils.files as utils
    monkeypatch.setattr(utils.os, 'fsync', full)
    with pytest.raises(OSError, match='No space'):
        model.export(tmp_path / 'm.onnx', images)
    assert not list(tmp_path.iterdir())


def test_missing_extras_say_how_to_get_them(monkeypatch):
    from mmquant.export import _extras
    monkeypatch.setattr(_extras, 'import_module', lambda name: (_ for _ in ()).throw(ImportError(name)))
    with pytest.raises(ImportError, match=r'pip install -r requirements/export\.txt'):
        _extras.need('onnxscript')


def test_weights_alone_stay_weights_alone(tmp_path):
    """No activation is quantized for the runtime's sake: W4A32 is stored in 4 bits and computed in float."""
    model, images = quantized(4, None)
    files = model.export(tmp_path / 'm.onnx', images, packed=True)
    with torch.no_grad():
        expected = model.run(images)
    assert {p.what for p in model.plan.places} == {'weight'}
    found = RuntimeSession(files.packed[0]).run({'images': images.numpy()})['output0']
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    assert compare(files.qdq[0], images.numpy()).integer_share == 0


def test_float_weights_are_not_quantized_behind_our_back(tmp_path):
    """Section 8.9: ONNX Runtime would give the float layer 8-bit weights unless an optimizer is off."""
    model, images = quantized(None, 4, Small(True))
    files = model.export(tmp_path / 'm.onnx', images)
    disabled = read_sidecar(files.qdq[0])['runtime']['disabled_optimizers']
    assert disabled == ['WeightBiasQuantization']
    feed = {'images': images.numpy()}
    plain = RuntimeSession(files.qdq[0], optimize=False).run(feed)['output0']
    ours = RuntimeSession(files.qdq[0], disabled_optimizers=disabled).run(feed)['output0']
    np.testing.assert_allclose(ours, plain, atol=1e-5)
    assert np.abs(RuntimeSession(files.qdq[0]).run(feed)['output0'] - plain).max() > 1e-4
