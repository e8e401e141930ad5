"""Sensitivity of single layers: errors by hand, the metric with one layer switched, inputs quantized elsewhere."""
import csv
import math
from types import SimpleNamespace

import pytest
import torch
from detectors_for_tests import needs_detectors, quick_config
from models_for_tests import ResNet, calibrated, images
from sensitivity import restrict_to_images
from tools_for_tests import log_of, run_tool

from mmquant.analysis.sensitivity import only, quantizers_of, sensitivities


@pytest.fixture(scope='module')
def measured():
    """A ResNet at 4 bits, an image batch, and every layer's float input."""
    torch.manual_seed(0)
    x = images(4, 3, 16, 16)
    model = calibrated(ResNet(), x, w_bits=4, a_bits=4).model
    inputs = {}
    handles = [m.register_forward_pre_hook(lambda m, args, n=n: inputs.update({n: args[0]}))
               for n, m in model.quantized_layers().items()]
    with torch.no_grad(), model.quantization(weights=False, activations=False):
        model.run(x)
    for handle in handles:
        handle.remove()
    return model, x, inputs


@torch.no_grad()
def test_sqnr_by_hand(measured):
    """Weights and input of the layer are quantized, also where its input is quantized at the producer."""
    model, x, inputs = measured
    rows = {row.name: row for row in sensitivities(model, [(x, None)])[0]}
    assert set(rows) == set(model.quantized_layers())
    elsewhere = [name for name, p in model.plan.inputs.items() if p.what == 'output']
    assert elsewhere and set(elsewhere) < set(rows)
    for name, layer in model.quantized_layers().items():
        own = quantizers_of(model)[name]
        source = own.inputs[0] if own.inputs else torch.nn.Identity()
        with model.quantization(weights=False, activations=False):
            exact = layer(inputs[name])
        with model.quantization(weights=True, activations=False):
            assert source is layer.input_quantizer or name in elsewhere or not own.inputs
            noisy_input = inputs[name]
            if own.inputs:
                source.enabled = True
                noisy_input = source(inputs[name])
            noisy = layer(noisy_input)  # quantizing twice changes nothing
        expected = 10 * math.log10(exact.double().square().sum() / (noisy - exact).double().square().sum())
        assert rows[name].sqnr == pytest.approx(expected, abs=1e-3), name
        assert rows[name].w_bits in (4, 8)


def test_bits_of_the_input_wherever_it_is_quantized(measured):
    model, x, _ = measured
    rows = {row.name: row for row in sensitivities(model, [(x, None)])[0]}
    assert rows['conv1'].a_bits is None  # reads the network input
    for name in set(rows) - {'conv1'}:
        assert rows[name].a_bits == model.plan.inputs[name].bits
    assert {model.plan.inputs[name].what for name in set(rows) - {'conv1'}} == {'input', 'output'}


@torch.no_grad()
def test_the_metric_with_one_layer_switched(measured):
    model, x, _ = measured
    with model.quantization(weights=False, activations=False):
        reference = model.run(x)
    evaluate = lambda: -(model.run(x) - reference).square().mean().item()  # noqa: E731
    names = list(model.quantized_layers())[:2]
    rows, whole = sensitivities(model, [(x, None)], evaluate, names)
    assert whole['float'] == 0 > whole['quantized'] and [r.name for r in rows] == sorted(
        names, key=lambda n: -next(r.drop for r in rows if r.name == n))
    for row in rows:
        assert row.only_quantized == -row.drop < 0 and row.gain == row.only_float - whole['quantized']
        with only(model, row.name, True):
            on = [n for n, q in model.weight_quantizers().items() if q.enabled]
            assert on == [row.name]
            active = [q for q in model.activation_quantizers().values() if q.enabled]
            assert {id(q) for q in active} == {id(q) for q in quantizers_of(model)[row.name].inputs}
        with only(model, row.name, False):
            assert [n for n, q in model.weight_quantizers().items() if not q.enabled] == [row.name]


@needs_detectors
@pytest.mark.slow
def test_report_on_a_detector(tmp_path, monkeypatch):
    """The tool on the embedded RetinaNet: table, CSV and PNG, worst layer first."""
    config = quick_config(tmp_path, monkeypatch)
    run_tool('ptq.py', config, '--work-dir', tmp_path / 'run', '--no-report')
    arguments = ('analysis_tools/sensitivity.py', config, tmp_path / 'run/quantized.pth', '--work-dir',
                 tmp_path / 'out')
    run_tool(*arguments, '--images', 3, '--batches', 1, '--layers', 'retina_cls|lateral_convs')
    with open(tmp_path / 'out/sensitivity.csv') as stream:
        rows = list(csv.DictReader(stream))
    assert {r['name'] for r in rows} == {'bbox_head.retina_cls', *(f'neck.lateral_convs.{i}.conv' for i in range(3))}
    assert all(r['w_bits'] == r['a_bits'] == '8' and 15 < float(r['sqnr']) < 80 for r in rows)
    drops = [float(r['drop']) for r in rows]
    assert drops == sorted(drops, reverse=True) and all(r['gain'] for r in rows)
    assert (tmp_path / 'out/sensitivity.png').read_bytes()[:4] == b'\x89PNG'
    assert 'Sensitivity, float ' in log_of(tmp_path / 'out')
    with pytest.raises(SystemExit, match=r"--layers 'nothing' matches none of the \d+ quantized layers"):
        run_tool(*arguments, '--layers', 'nothing', '--sqnr-only', '--batches', 1)


def test_coco_metrics_count_the_objects_of_the_images_shown():
    images = [dict(img_id=7), dict(img_id=3)]

    class Images(list):
        def get_data_info(self, index):
            return self[index]

    class Coco:
        img_ids = None

    coco, other = Coco(), object()
    restrict_to_images(SimpleNamespace(dataloader=SimpleNamespace(dataset=Images(images)),
                                       evaluator=SimpleNamespace(metrics=[other, coco])))
    assert coco.img_ids == [7, 3]
