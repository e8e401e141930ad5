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


def test_bases_of_the_package_by_prefix(tmp_path):
    """Also in a list beside others, and in a base of a base; the config is what a path gives."""
    shipped = load_config(CONFIG)
    (tmp_path / 'a.py').write_text("_base_ = 'mmquant::brecq/resnet18_w2a4_digits.py'\nx = '{{ fileDirname }}'\n"
                                   "model = dict(quantizer=dict(weight=dict(bits=5)))\n")
    (tmp_path / 'y.py').write_text('y = 3\n')
    (tmp_path / 'b.py').write_text("_base_ = [\n    './a.py',\n    'y.py',\n]\nz = _base_.y + 1\n"
                                   "n = '{{ fileBasename }}'\n")
    cfg = load_config(str(tmp_path / 'b.py'), {'train_cfg.steps.weights.num_iters': 7})
    assert (cfg.x, cfg.y, cfg.z, cfg.n) == (str(tmp_path), 3, 4, 'b.py') and cfg.filename == str(tmp_path / 'b.py')
    assert cfg.model.quantizer.weight.bits == 5 and cfg.train_cfg.steps.weights.num_iters == 7
    cfg.model.quantizer.weight.bits, cfg.train_cfg.steps.weights.num_iters = (
        shipped.model.quantizer.weight.bits, shipped.train_cfg.steps.weights.num_iters)
    assert {k: v for k, v in cfg.to_dict().items() if k not in 'xyzn'} == shipped.to_dict()  # no scope of its own
    assert str(tmp_path / 'a.py') in cfg.text and 'mmquant.FoldBatchNorm' in cfg.pretty_text


def test_a_shipped_base_that_is_not_there(tmp_path):
    (tmp_path / 'c.py').write_text("_base_ = 'mmquant::brecq/resnet18_w2a4_digit.py'\n")
    with pytest.raises(ConfigError, match=r"there is no config 'mmquant::brecq/resnet18_w2a4_digit.py'; did you mean "
                                          r"'mmquant::brecq/resnet18_w2a4_digits.py'\?"):
        load_config(str(tmp_path / 'c.py'))
