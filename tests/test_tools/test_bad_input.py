"""What a user may get wrong, through the command line: one paragraph, exit code 1, what to do."""
import json
import subprocess
import sys

import pytest
import torch
from models_for_tests import MLP, calibrated, images
from tools_for_tests import CONFIG, ROOT, TINY, log_of, results_of, run_tool


def ptq(tmp_path, *options, config=CONFIG, args=()):
    run_tool('ptq.py', config, '--work-dir', tmp_path, *args, '--cfg-options', *TINY, *options)


def based(tmp_path, text: str) -> str:
    path = tmp_path / 'config.py'
    path.write_text(f"_base_ = '{CONFIG}'\n{text}\n")
    return str(path)


OPTIONS = {
    'top key': ('trian_cfg.steps.weights.num_iters=4', r"no key 'trian_cfg' in the config; did you mean 'train_cfg'\?"),
    'inner key': ('model.quantizr.weight.bits=4', r"no key 'quantizr' in model; did you mean 'quantizer'\?"),
    'index': ('param_scheduler.9.end=1', r"param_scheduler is a list of 2; '9' is no index of it"),
    'step': ('train_cfg.steps.wieghts.num_iters=1', r"no key 'wieghts' in train_cfg\.steps; did you mean 'weights'\?"),
    'below a value': ('model.float_checkpoint.x=1', r'model\.float_checkpoint is .* and has no keys'),
    'key of a step': ('train_cfg.steps.weights.num_iter=4',
                      r"train_cfg\.steps\.weights \(Reconstruction\): unknown key 'num_iter'; .* 'num_iters'\?"),
    'type of a step': ('train_cfg.steps.weights.type=mmquant.Reconstuction',
                       r"train_cfg\.steps\.weights: unknown type .*; did you mean 'mmquant.Reconstruction'\?"),
    'type of an observer': ('train_cfg.steps.nearest_weights.observer.type=mmquant.LpNorm',
                            r"unknown type 'mmquant.LpNorm'; did you mean 'mmquant.LpNormObserver'\?"),
    'type of a quantizer': ('model.quantizer.weight.type=mmquant.UniformAffineQuantiser',
                            r"quantizer\.weight: unknown type .*; did you mean 'mmquant.UniformAffineQuantizer'\?"),
    'key of the quantizer': ('model.quantizer.wieght=1', r"quantizer: unknown key 'wieght'; did you mean 'weight'\?"),
    'key of the model': ('model.float_checkpont=x.pth',
                         r"model \(QuantizedModel\): unknown key 'float_checkpont'; did you mean 'float_checkpoint'\?"),
    'key of the loop': ('train_cfg.chunk_sise=3',
                        r"train_cfg \(CalibrationLoop\): unknown key 'chunk_sise'; did you mean 'chunk_size'\?"),
    'type of the architecture': ('model.architecture.type=ImageClasifier',
                                 r"unknown type 'ImageClasifier' .*; did you mean 'ImageClassifier'\?"),
    'key of the backbone': ('model.architecture.backbone.dept=18',
                            r"unknown key 'dept' for ResNet in the config; did you mean 'depth'\?"),
    'type of the data set': ('train_cfg.dataloader.dataset.type=mmquant.DigitsDatset',
                             r"unknown type .*; did you mean 'mmquant.DigitsDataset'\?"),
    'key of the data set': ('val_dataloader.dataset.splt=test',
                            r"unknown key 'splt' for DigitsDataset in the config; did you mean 'split'\?"),
    'type of the metric': ('val_evaluator.type=Acuracy', r"unknown type 'Acuracy' .*; did you mean 'Accuracy'\?"),
    'value of a step': ('train_cfg.steps.weights.unit=blok', r"unit must be one of .* got 'blok'"),
    'few bits': ('model.quantizer.weight.bits=1',
                 r'quantizer\.weight .*bits=1 is not supported: expected an int in 2\.\.16'),
    'many bits': ('model.quantizer.activation.bits=32', r'bits=32 is not supported: expected an int in 2\.\.16'),
    'bits no number': ('model.quantizer.weight.bits=four', r"bits must be int, got 'four'"),
    'missing weights': ('model.float_checkpoint=no/such.pth', r'checkpoint no/such\.pth does not exist; give the path'),
    'unreachable weights': ('model.float_checkpoint=http://127.0.0.1:9/w.pth',
                            r'w\.pth cannot be downloaded .*model\.float_checkpoint=PATH.*resnet18_w2a4_digits\.py'),
    'type of a value': ('train_cfg.chunk_size=many', r"chunk_size must be int, got 'many'"),
    'architecture that does not fit': ('model.architecture.head.in_channels=3',
                                       r'does not fit the model: .*wrong shapes|model\.architecture cannot run on'),
    'metric': ('val_evaluator.topk=x', r'the evaluation failed .*; check val_dataloader, val_evaluator'),
    'no images': ('train_cfg.dataloader.dataset.indices=0',
                  r'the calibration set is empty; check train_cfg\.dataloader'),
    'broken pixels': ('data_preprocessor.std="[0,0,0]"', r'calibration batch 0 holds NaN or infinite pixels after '
                      r'preprocessing; check the images and data_preprocessor \(a std of 0\?\)'),
}


@pytest.mark.parametrize('option, text', OPTIONS.values(), ids=OPTIONS)
def test_wrong_option(tmp_path, monkeypatch, option, text):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    with pytest.raises(SystemExit, match=text) as caught:
        ptq(tmp_path, option)
    assert 'set MMQUANT_TRACEBACK=1' in str(caught.value) and 'Traceback' not in str(caught.value)


@pytest.mark.parametrize('option', ['top key', 'key of a step', 'few bits', 'key of the model'])
def test_dry_run_finds_mistakes_too(tmp_path, option):
    option, text = OPTIONS[option]
    with pytest.raises(SystemExit, match=text):
        ptq(tmp_path, option, args=['--dry-run'])


def test_missing_config(tmp_path):
    for script, args in (('ptq.py', ()), ('test.py', ('x.pth',))):
        with pytest.raises(SystemExit, match=r'config no/such\.py does not exist'):
            run_tool(script, 'no/such.py', *args)


def test_missing_imagenet(tmp_path):
    """The folder is looked for before anything is built; the embedded config is named."""
    with pytest.raises(SystemExit, match=r'FileNotFoundError: The data set ImageNet needs data/imagenet.* which does '
                       r'not exist .*configs/brecq/resnet18_w2a4_digits\.py: its images are embedded'):
        run_tool('ptq.py', 'configs/brecq/resnet18_w2a4.py', '--work-dir', tmp_path)


def test_no_steps(tmp_path):
    config = based(tmp_path, 'train_cfg = dict(steps=[])')
    with pytest.raises(SystemExit, match=r'train_cfg\.steps must be a dict of at least one step .* got \[\]'):
        run_tool('ptq.py', config, '--work-dir', tmp_path)


def test_step_of_a_child_that_its_base_does_not_have(tmp_path):
    """A misspelt name stands for a new step after merging; the one that was meant is named."""
    config = based(tmp_path, 'train_cfg = dict(steps=dict(wieghts=dict(num_iters=4)))')
    with pytest.raises(SystemExit, match=r"train_cfg\.steps: no step 'wieghts' to change .*; did you mean 'weights'\?"):
        run_tool('ptq.py', config, '--work-dir', tmp_path)


def test_hook_that_is_none(tmp_path):
    config = based(tmp_path, 'custom_hooks = [3]')
    with pytest.raises(SystemExit, match=r'custom_hooks must be a list of dict\(type=\.\.\., \.\.\.\), got \[3\]'):
        run_tool('ptq.py', config, '--work-dir', tmp_path)


def test_no_float_weights_given(tmp_path):
    config = based(tmp_path, 'model = dict(float_checkpoint=None)')
    with pytest.raises(SystemExit, match=r'gives no float weights: set model\.float_checkpoint'):
        ptq(tmp_path, config=config)


def test_no_calibration_images_given(tmp_path):
    config = based(tmp_path, 'train_cfg = dict(dataloader=None)')
    with pytest.raises(SystemExit, match=r'train_cfg\.dataloader is missing; set it to the calibration_dataloader'):
        run_tool('ptq.py', config, '--work-dir', tmp_path)


def test_float_config(tmp_path):
    config = str(ROOT / 'configs/float/resnet18_digits.py')
    for script, args in (('ptq.py', ()), ('test.py', ('x.pth',))):
        with pytest.raises(SystemExit, match=r"model\.type is 'ImageClassifier', expected \"mmquant\.QuantizedModel\"; "
                           'use a config below configs/brecq'):
            run_tool(script, config, *args, '--work-dir', tmp_path)


def test_loop_of_another_kind(tmp_path):
    config = based(tmp_path, "train_cfg = dict(_delete_=True, by_epoch=True, max_epochs=1)")
    with pytest.raises(SystemExit, match=r"train_cfg\.type is None, expected 'mmquant\.CalibrationLoop'"):
        run_tool('ptq.py', config, '--work-dir', tmp_path)


def test_wrong_checkpoint_for_evaluation(tmp_path):
    run = lambda path: run_tool('test.py', CONFIG, path, '--work-dir', tmp_path)  # noqa: E731
    with pytest.raises(SystemExit, match='does not exist; give the path of a file'):
        run('no/such.pth')
    with pytest.raises(SystemExit, match=r'is no checkpoint of mmquant .* quantize the model'):
        run(ROOT / 'checkpoints/resnet18_digits.pth')
    (tmp_path / 'broken.pth').write_bytes((ROOT / 'checkpoints/resnet18_digits.pth').read_bytes()[:5000])
    with pytest.raises(SystemExit, match=r'broken\.pth cannot be read .*truncated'):
        run(tmp_path / 'broken.pth')
    calibrated(MLP(), images(8, 8)).model.save(str(tmp_path / 'other.pth'))
    with pytest.raises(SystemExit, match=r"other\.pth does not fit the model: .*the model has no module 'fc1'"):
        run(tmp_path / 'other.pth')


def test_float_weights_of_another_model(tmp_path):
    torch.save(dict(state_dict={'backbone.conv1.weight': torch.ones(2)}), tmp_path / 'w.pth')
    with pytest.raises(SystemExit, match=r'w\.pth does not fit the model: .* missing keys'):
        ptq(tmp_path, f'model.float_checkpoint={tmp_path}/w.pth')


def test_nan_in_the_float_weights(tmp_path):
    data = torch.load(ROOT / 'checkpoints/resnet18_digits.pth', weights_only=True)
    data['state_dict']['backbone.layer2.0.conv1.weight'][0, 0, 0, 0] = float('nan')
    torch.save(data, tmp_path / 'w.pth')
    with pytest.raises(SystemExit, match=r'NaN or infinite .* \(first: backbone\.layer2\.0\.conv1\.weight\)'):
        ptq(tmp_path, f'model.float_checkpoint={tmp_path}/w.pth')


def test_activations_without_a_range_stay_float_and_are_named(tmp_path):
    """A recipe that forgets InitActivationRange."""
    left_out = 'nearest=None, weights=None, activation_ranges=None, activations=None'
    config = based(tmp_path, f'train_cfg = dict(steps=dict({left_out}))')
    few = [o for o in TINY if 'steps.' not in o]
    run_tool('ptq.py', config, '--work-dir', tmp_path / 'run', '--cfg-options', *few)
    stages = results_of(tmp_path / 'run')['stages']
    assert [s['name'] for s in stages] == ['float', 'nearest_weights', 'final']
    assert stages[2]['metrics'] == stages[1]['metrics']
    assert '18 activation quantizers have no range (first: backbone.relu.output)' in log_of(tmp_path / 'run')
    run_tool('test.py', config, tmp_path / 'run/quantized.pth', '--work-dir', tmp_path / 'test', '--out',
             tmp_path / 'm.json', '--cfg-options', *few)
    assert json.loads((tmp_path / 'm.json').read_text()) == stages[2]['metrics']


def test_traceback_on_demand(tmp_path, monkeypatch):
    monkeypatch.setenv('MMQUANT_TRACEBACK', '1')
    with pytest.raises(ValueError, match='does not exist'):
        run_tool('ptq.py', 'no/such.py')


def test_exit_code(tmp_path):
    done = subprocess.run([sys.executable, 'tools/ptq.py', 'no/such.py'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert done.stderr.strip().splitlines()[-2:] == [
        'ConfigError: config no/such.py does not exist', '(set MMQUANT_TRACEBACK=1 to see where it came from)']
