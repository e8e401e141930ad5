"""Variants of a config: its steps with changes, measured side by side, and the table of them.

A variants file is a config with ``variants``, a dict of name -> variant. A variant may hold

- ``algorithm``: steps by name instead of the config's;
- ``steps``: changes of steps by name (``dict(weights=dict(num_iters=1000))``), merged as a child config's are: a value
  of None takes a key or a whole step away, ``after`` puts a new one in;
- ``quantizer``: changes of ``model.quantizer``, in the same way.

What was measured lies beside the records of the config, in ``records/<algorithm>/<config stem>/variants.json``.
"""
from __future__ import annotations

import copy
import os.path as osp

from mmengine.config import Config

from mmquant.algorithms.step_list import merged, ordered_steps
from mmquant.utils.building import ConfigError, check_keys, closest, plain

from .results import read_json

FILE = 'variants.json'
KEYS = ('algorithm', 'steps', 'quantizer')


def apply_variant(cfg: Config, variant: dict) -> Config:
    """A copy of a config with a variant's steps and quantizer.

    Raises:
        ConfigError: For an unknown key, or changes of a step that the algorithm does not have.
    """
    check_keys(variant, KEYS, 'variant')
    cfg = copy.deepcopy(cfg)
    steps = ordered_steps(variant.get('algorithm', cfg.train_cfg.steps))
    changes = variant.get('steps', {})
    for name, change in changes.items():
        if name not in steps and 'type' not in (change or {}):
            raise ConfigError(f'variant: no step {name!r} to change; {closest(name, steps)}')
    cfg.train_cfg.steps = ordered_steps(merged(steps, changes))
    cfg.model.quantizer = merged(cfg.model.quantizer, variant.get('quantizer', {}))
    return cfg


def read_variants(folder: str) -> dict | None:
    """What ``variants.json`` of a folder holds, or None without one."""
    return read_json(osp.join(folder, FILE))


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
