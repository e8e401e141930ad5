"""Variants of a config: its steps with changes, measured side by side, and the table of them.

A variants file is a config with ``variants``, a dict of name -> variant. A variant may hold

- ``algorithm``: a list of steps instead of the config's;
- ``steps``: changes of steps by the name of their class (``dict(Reconstruction=dict(loss=dict(p=2)))``); dicts are
  merged, a value of None takes a key away, None for a whole step takes that away;
- ``quantizer``: changes of ``model.quantizer``, in the same way.

What was measured lies beside the records of the config, in ``results/<config stem>/variants.json``.
"""
from __future__ import annotations

import copy
import json
import os.path as osp

from mmengine.config import Config

from mmquant.utils.building import ConfigError, check_keys, closest, plain

FILE = 'variants.json'
KEYS = ('algorithm', 'steps', 'quantizer')


def merged(base: dict, changes: dict) -> dict:
    """``base`` with ``changes`` in it; dicts are merged, None takes a key away."""
    result = copy.deepcopy(base)
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def apply_variant(cfg: Config, variant: dict) -> Config:
    """A copy of a config with a variant's steps and quantizer.

    Raises:
        ConfigError: For an unknown key, or changes of a step that the algorithm does not have.
    """
    check_keys(variant, KEYS, 'variant')
    cfg = copy.deepcopy(cfg)
    steps = [dict(s) for s in variant.get('algorithm', cfg.train_cfg.steps)]
    changes = variant.get('steps', {})
    names = [s['type'].split('.')[-1] for s in steps]
    for name in changes:
        if name not in names:
            raise ConfigError(f'variant: no step {name!r} to change; {closest(name, names)}')
    cfg.train_cfg.steps = [merged(s, changes.get(name, {})) for s, name in zip(steps, names)
                           if changes.get(name, {}) is not None]
    cfg.model.quantizer = merged(cfg.model.quantizer, variant.get('quantizer', {}))
    return cfg


def read_variants(folder: str) -> dict | None:
    """What ``variants.json`` of a folder holds, or None without one."""
    path = osp.join(folder, FILE)
    if not osp.exists(path):
        return None
    with open(path) as f:
        return json.load(f)


def measurement(known: dict | None, name: str, variant: dict, source: str, data: dict) -> dict:
    """``known`` with room for the seeds of a variant; its figures are dropped where the variant or data changed.

    Args:
        known (dict | None): Of :func:`read_variants`.
        name, variant: Of the variant.
        source (str): The variants file, as published.
        data (dict): ``name`` and number of ``images`` of the evaluation.
    """
    rows = dict(known['variants']) if known and known['data'] == data else {}
    if rows.get(name, {}).get('changes') != plain(variant):
        rows[name] = dict(changes=plain(variant), seeds={})
    return dict(source=source, data=data, variants=rows)
