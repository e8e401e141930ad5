"""The example project: a known answer, and its config through the command line."""
import pytest
import torch
from models_for_tests import MIN_MAX, ResNet, images, inserted, randomize
from tools_for_tests import ROOT, results_of, run_tool

from mmquant.algorithms import InitWeightRange


@pytest.fixture
def outside(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def means_of(model, x, **mode):
    """Mean of each output channel of each quantized layer."""
    found, handles = {}, []
    for name, layer in model.quantized_layers().items():
        dims = (0,) if isinstance(layer, torch.nn.Linear) else (0, 2, 3)
        handles.append(layer.register_forward_hook(
            lambda m, args, out, name=name, dims=dims: found.update({name: out.mean(dims)})))
    with model.quantization(**mode), torch.no_grad():
        model.run(x)
    for handle in handles:
        handle.remove()
    return found


def test_means_are_those_of_the_float_model(outside):
    from projects.example_project.bias_correction import BiasCorrection
    x = images(8, 3, 16, 16)
    context = inserted(randomize(ResNet()), x, w_bits=2)
    InitWeightRange(observer=MIN_MAX).run(context)
    with context.model.quantization(weights=False, activations=False), torch.no_grad():
        exact = context.model.run(x)
    wanted = means_of(context.model, x, weights=False, activations=False)
    before = means_of(context.model, x, weights=True, activations=False)
    BiasCorrection(num_images=8).run(context)
    after = means_of(context.model, x, weights=True, activations=False)
    with context.model.quantization(weights=False, activations=False), torch.no_grad():
        assert torch.equal(context.model.run(x), exact)  # the float model stays
    assert any((before[n] - wanted[n]).abs().max() > 0.1 for n in wanted)
    assert all(torch.allclose(after[n], wanted[n], atol=1e-4) for n in wanted)
    assert context.records[-1]['kind'] == 'bias_correction' and context.records[-1]['layers'] == len(wanted)


def test_config(outside, tmp_path):
    run_tool('ptq.py', 'projects/example_project/configs/resnet18_w4a8_digits.py', '--work-dir', tmp_path,
             '--no-report', '--cfg-options', 'val_dataloader.dataset.indices=100',
             'train_cfg.dataloader.dataset.indices=64')
    stages = {s['name']: s['metrics']['accuracy/top1'] for s in results_of(tmp_path)['stages']}
    assert list(stages) == ['float', 'nearest_weights', 'bias_correction', 'activation_ranges', 'final']
    assert stages['bias_correction'] >= stages['nearest_weights'] - 2
