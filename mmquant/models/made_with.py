"""What decides a model's results and has no parameters: kinds of modules, their settings, quantizers.

Taken from the modules themselves, so that it is known of any model, with or without a config.
"""
import inspect
import json
import types
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from mmquant.models.policy import QuantizerPolicy, merged_config
from mmquant.registry import QUANTIZERS
from mmquant.utils.building import differing_keys, plain

# Settings of training and of building, which an evaluation does not see.
UNSEEN = {'training', 'momentum', 'inplace', 'drop_prob', 'drop_path_rate', 'drop_path', 'dropout', 'pretrained',
          'frozen_stages', 'norm_eval', 'with_cp', 'zero_init_residual', 'fp16_enabled', 'device'}
UNSEEN_ENDS = ('_cfg', '_drop', '_dropout')  # of configs all but test_cfg, whose parts are modules, or of training
SMALL = 16  # values of a buffer without a place in the state that are compared one by one; of others the shape is


def structure(model: nn.Module) -> dict[str, dict]:
    """Plain values by the paths of modules: their kinds, and attributes that are numbers, words or lists of them."""
    return {name: _facts(module) for name, module in model.named_modules()}


def differences(saved: dict[str, dict], own: dict[str, dict]) -> list[str]:
    """What modules of one name have in common and set otherwise; what only one has may be left from an earlier call."""
    common = {n: saved[n].keys() & own[n].keys() for n in saved.keys() & own.keys()}
    return differing_keys(*({n: {k: x[n][k] for k in keys} for n, keys in common.items()} for x in (saved, own)))


def quantizer_facts(policy: QuantizerPolicy) -> dict:
    """Plain values: which quantizers a policy hands out, whichever way its config says it."""
    bases = dict(weight=policy.weights, matmul=policy.operands)
    rules = [dict(selector=r.position or r.pattern.pattern,
                  **{kind: _filled(merged_config(bases.get(kind, policy.activations), change))
                     for kind, change in r.changes.items()}) for r in policy.rules]
    return plain(dict(weight=_filled(policy.weights), activation=_filled(policy.activations),
                      matmul=_filled(policy.operands), overrides=rules, scope=policy.scope, per_call=policy.per_call,
                      depthwise_channels=policy.depthwise_channels))


def plain_quantizer(cfg: Mapping) -> dict:
    """A quantizer config that a checkpoint can hold: classes by their names."""
    names = {cls: f'mmquant.{name}' for name, cls in QUANTIZERS.module_dict.items()}
    return json.loads(json.dumps(cfg, default=lambda x: names.get(x, str(x))))


def _filled(cfg: Mapping) -> dict:
    """With the defaults of its class, by the class's bare name."""
    cls = cfg['type'] if isinstance(cfg['type'], type) else QUANTIZERS.get(cfg['type'])
    parameters = inspect.signature(cls.__init__).parameters.values()
    return {**{p.name: p.default for p in parameters if p.default is not p.empty}, **cfg, 'type': cls.__name__}


def _facts(module: nn.Module) -> dict:
    kind = 'BatchNorm' if isinstance(module, _BatchNorm) and type(module).forward in (
        nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward) else type(module).__name__
    found = dict(type=kind)
    if isinstance(module, _DropoutNd):
        return found
    for key, value in vars(module).items():
        hidden = key.startswith('_') and key not in ('_channel_conversion', '_enable_normalize')
        unseen = key in UNSEEN or key.endswith(UNSEEN_ENDS) and key != 'test_cfg'
        if not hidden and not unseen and (value := _value(value, 4)) is not None:
            found[key] = value
    for key in module._non_persistent_buffers_set:
        if (value := module._buffers.get(key)) is not None:
            found[key] = _value(value, 0) or list(value.shape)
    return found


def _value(value, depth: int):
    """A setting as plain values; None for what is none, or no word but a text such as a path."""
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return value if len(value) < 40 and '/' not in value else None
    if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
        return value.tolist() if value.numel() <= SMALL and not value.is_meta else None
    if isinstance(value, (types.FunctionType, types.BuiltinFunctionType, type)):
        return value.__name__
    if isinstance(value, torch.dtype):
        return str(value)
    if depth and isinstance(value, (list, tuple)):
        items = [_value(x, depth - 1) for x in value]
        return items if items and not all(x is None for x in items) else None
    if depth and isinstance(value, Mapping):
        items = {str(k): v for k, x in value.items() if (v := _value(x, depth - 1)) is not None}
        return items or None
    ours = type(value).__module__.partition('.')[0] in ('mmdet', 'mmpretrain') and not isinstance(value, nn.Module)
    if depth and ours and hasattr(value, '__dict__'):
        return _value(vars(value), depth - 1)  # generators of anchors, coders of boxes
    return None
