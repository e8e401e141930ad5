import pytest
from tools_for_tests import CONFIG

from mmquant.apis.config import calibration_config, check_data, load_config
from mmquant.utils.building import ConfigError


def test_options_reach_steps_by_name():
    cfg = load_config(CONFIG, {'train_cfg.steps.weights.num_iters': 7, 'model.quantizer.weight.bits': 3})
    assert cfg.train_cfg.steps.weights.num_iters == 7 and cfg.model.quantizer.weight.bits == 3
    assert load_config(CONFIG).train_cfg.steps.weights.num_iters != 7


def test_new_keys_are_allowed_as_the_last_part_only():
    assert load_config(CONFIG, {'model.quantizer.matmul_bits': 8}).model.quantizer.matmul_bits == 8
    with pytest.raises(ConfigError, match=r"no key 'activatoin' in model\.quantizer; did you mean 'activation'\?"):
        load_config(CONFIG, {'model.quantizer.activatoin.bits': 8})
    with pytest.raises(ConfigError, match="no key 'zzz' in the config; valid ones: "):
        load_config(CONFIG, {'zzz': 8})


def test_calibration_fills_the_train_slot():
    cfg = calibration_config(load_config(CONFIG))
    assert cfg.train_dataloader.dataset.split == 'calibration' and 'dataloader' not in cfg.train_cfg
    assert cfg.optim_wrapper.optimizer.lr == 0 and cfg.param_scheduler is None and not cfg.resume
    check_data(cfg, 'train_dataloader', 'val_dataloader', 'no_such_loader')


def test_bases_of_the_package_by_prefix_are_told(tmp_path):
    """mmengine resolves prefixes of its own packages alone."""
    (tmp_path / 'c.py').write_text("_base_ = 'mmquant::brecq/resnet18_w2a4.py'\n")
    with pytest.raises(ConfigError, match=r'"mmquant::"; give the path of the file, below .*configs'):
        load_config(str(tmp_path / 'c.py'))
