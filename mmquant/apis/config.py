"""From a config file to a Runner."""
import inspect
import os.path as osp

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner

from mmquant.apis.bases import read_config
from mmquant.datasets.files import check_dataset_cfg, check_evaluator_cfg
from mmquant.engine import CalibrationLoop
from mmquant.models import QuantizedModel
from mmquant.utils.building import ConfigError, check_keys, check_types, closest

LOOP = 'mmquant.CalibrationLoop'
# A Runner insists on an optimizer in its train slot; calibration steps bring their own.
UNUSED_OPTIMIZER = {'type': 'OptimWrapper', 'optimizer': {'type': 'SGD', 'lr': 0.0}}


def load_config(path: str, options: dict | None = None) -> Config:
    """Read a config, apply ``--cfg-options``; ConfigError without the file, or without the key that an option names."""
    if not osp.isfile(path):
        raise ConfigError(f'config {path} does not exist')
    cfg = read_config(path)
    for key in options or {}:
        _check_option(cfg, key)
    cfg.merge_from_dict(options or {})
    return cfg


def _check_option(cfg, key: str) -> None:
    """A dotted key must name something there, but for its last part below a dict."""
    node, parts = cfg, key.split('.')
    for depth, part in enumerate(parts):
        if isinstance(node, (list, tuple)):
            if not part.isdigit() or int(part) >= len(node):
                raise ConfigError(f'--cfg-options {key}: {".".join(parts[:depth])} is a list of {len(node)}; '
                                  f'{part!r} is no index of it')
            node = node[int(part)]
            continue
        if not hasattr(node, 'keys'):
            raise ConfigError(f'--cfg-options {key}: {".".join(parts[:depth])} is {node!r} and has no keys')
        if part not in node:
            if depth == len(parts) - 1 and depth > 0:
                return
            raise ConfigError(f'--cfg-options {key}: no key {part!r} in {".".join(parts[:depth]) or "the config"}; '
                              f'{closest(part, node.keys())}')
        node = node[part]


def check_quantized(cfg: Config) -> None:
    """Raise ConfigError unless the config quantizes a model."""
    if cfg.get('model', {}).get('type') != 'mmquant.QuantizedModel':
        raise ConfigError(f'{cfg.filename}: model.type is {cfg.get("model", {}).get("type")!r}, expected '
                          '"mmquant.QuantizedModel"; use a config below configs/brecq, or tools/train.py for float '
                          'models')
    _check_arguments(QuantizedModel, cfg.model, 'model')


def _check_arguments(cls: type, cfg: dict, where: str) -> None:
    """Raise ConfigError for a key that ``cls`` does not take."""
    valid = [p for p in inspect.signature(cls.__init__).parameters if p not in ('self', 'runner')]
    given = {k: v for k, v in cfg.items() if k not in ('type', '_scope_')}
    check_keys(given, valid, f'{where} ({cls.__name__})')
    check_types(given, cls.__init__, f'{where} ({cls.__name__})')


def calibration_config(cfg: Config) -> Config:
    """Fill the Runner's train slot, with an optimizer that it insists on; ConfigError without a calibration loop."""
    check_quantized(cfg)
    loop = cfg.get('train_cfg') or {}
    if loop.get('type') != LOOP:
        raise ConfigError(f'{cfg.filename}: train_cfg.type is {loop.get("type")!r}, expected {LOOP!r}')
    _check_arguments(CalibrationLoop, loop, 'train_cfg')
    hooks = cfg.get('custom_hooks') or []
    if not isinstance(hooks, (list, tuple)) or not all(isinstance(h, dict) and h.get('type') for h in hooks):
        raise ConfigError(f'{cfg.filename}: custom_hooks must be a list of dict(type=..., ...), got {hooks!r}')
    if not isinstance(loop.get('dataloader'), dict) and not loop.get('source'):
        raise ConfigError(f'{cfg.filename}: train_cfg.dataloader is missing; set it to the calibration_dataloader of a '
                          'file in configs/_base_/calibration, or train_cfg.source to another source of images')
    cfg.train_dataloader = loop.pop('dataloader', None) or {}  # which a Runner hands to the loop; empty with a source
    cfg.optim_wrapper, cfg.param_scheduler, cfg.auto_scale_lr = dict(UNUSED_OPTIMIZER), None, None
    cfg.resume, cfg.load_from = False, None
    if cfg.get('val_cfg') is None:
        cfg.val_cfg = {}
    return cfg


def check_data(cfg: Config, *loaders: str) -> None:
    """Raise FileNotFoundError, saying what to do, where the data sets of some loaders are missing."""
    for name in loaders:
        if cfg.get(name):
            check_dataset_cfg(cfg[name]['dataset'])
            check_evaluator_cfg(cfg.get(name.replace('dataloader', 'evaluator')), cfg[name]['dataset'])


class QuantizationRunner(Runner):
    """A Runner whose model stays unwrapped: steps exchange ranges and gradients among processes themselves."""

    def wrap_model(self, model_wrapper_cfg, model):
        """The model, on its device."""
        return model.to(get_device())


def build_runner(cfg: Config) -> Runner:
    """A Runner whose model is built and whose loops are not yet; several processes without a GPU talk by gloo."""
    if cfg.get('launcher') == 'pytorch' and not torch.cuda.is_available() and not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    return QuantizationRunner.from_cfg(cfg)
