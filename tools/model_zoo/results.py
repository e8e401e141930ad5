"""Results records: what was measured on a saved checkpoint, and what several of them say together.

One record is one evaluation by ``tools/test.py``: plain values, no path of a machine. Published records lie in
``records/<algorithm>/<config stem>/seed<N>.json``, beside ``cost.json`` with what needs no measurement
(parameters, operations, size). Tables and metafiles are made from these files alone, by ``tables.py``.
"""
from __future__ import annotations

import os
import os.path as osp
from glob import glob
from statistics import mean, stdev

from mmquant.utils import files
from mmquant.utils.building import ConfigError, differing_keys
from mmquant.utils.versions import found_versions

FORMAT = 1
COST_KEYS = ('params', 'macs', 'bops', 'size_mb', 'float_size_mb')
# What a checkpoint's meta must hold for a record; older checkpoints lack it.
META_KEYS = ('seed', 'stages', 'records', 'settings', 'cost', 'device', 'versions', 'calibration', 'seconds',
             'peak_memory_bytes', 'evaluated_images')
FLOAT_BITS = 32


def repository_path(path: str) -> str:
    """A config's path from ``configs/`` on, with forward slashes; the bare file name where it lies elsewhere."""
    parts = osp.abspath(path).split(os.sep)
    start = len(parts) - 1 - parts[::-1].index('configs') if 'configs' in parts else len(parts) - 1
    return '/'.join(parts[start:])


def baseline(stages: list[dict], *names: str) -> dict | None:
    """Metrics of the first of the named stages that a run evaluated."""
    found = {s['name']: s['metrics'] for s in stages}
    return next((found[n] for n in names if n in found), None)


def make_record(config: str, checkpoint: str, meta: dict, metrics: dict, data: dict) -> dict:
    """The record of one evaluation.

    Args:
        config, checkpoint (str): Their paths.
        meta (dict): The checkpoint's, as :class:`CalibrationLoop` wrote it.
        metrics (dict): What the evaluation gave.
        data (dict): ``name``, ``type``, number of ``images`` and ``list_sha256`` (None: unknown) of the test set.

    Returns:
        dict: ``metrics``, ``float`` and ``nearest`` (the run's own baselines; None if of other images), bits, ``cost``
        (parameters, MACs and bit operations of one image, packed size in 10**6 bytes), seed, settings, calibration
        list, time, memory, versions.

    Raises:
        ConfigError: If the checkpoint's meta lacks something.
    """
    lost = [k for k in META_KEYS if k not in meta]
    if lost:
        raise ConfigError(f'{checkpoint}: its meta has no {lost[0]!r}, which a results record needs; it was written by '
                          'an older mmquant or by mmquant.quantize. Quantize again with tools/ptq.py')
    settings, stages = meta['settings'], meta['stages'] if other_set(meta, data) is None else []
    return dict(
        format=FORMAT, config=repository_path(config), data=data, metrics=metrics,
        float=baseline(stages, 'float'), nearest=baseline(stages, 'nearest', 'nearest_weights'),
        w_bits=_bits(settings['quantizer']['weight']), a_bits=_bits(settings['quantizer']['activation']),
        cost={k: meta['cost'][k] for k in COST_KEYS}, seed=meta['seed'], settings=settings,
        calibration=meta['calibration'], minutes=meta['seconds'] / 60, peak_memory_bytes=meta['peak_memory_bytes'],
        device=meta['device'], versions=dict(quantized=meta['versions'], evaluated=found_versions()),
        checkpoint=dict(sha256=files.sha256_of(checkpoint), bytes=osp.getsize(checkpoint)),
        **({'cpu_minutes': meta['cpu_seconds'] / 60} if 'cpu_seconds' in meta else {}))


def _bits(quantizer: dict) -> int:
    return quantizer.get('bits', 8) or FLOAT_BITS


def other_set(meta: dict, data: dict) -> str | None:
    """What to tell where a run took its baselines on other images than an evaluation; None if on the same.

    The lists are compared where both are known; runs of an older mmquant say their number alone.
    """
    images, listed = meta['evaluated_images'], meta.get('evaluated_list_sha256')
    if images == data['images'] and (not listed or not data.get('list_sha256') or listed == data['list_sha256']):
        return None
    count = f'{data["images"]}' if images != data['images'] else f'{images} others'
    return (f'the run took its baselines on {images} images, this evaluation on {count}; let val_dataloader and '
            'test_dataloader have the same data')


def check_publishable(meta: dict, settings: dict, data: dict) -> None:
    """Refuse to publish what the config as it stands would not give.

    Args:
        meta (dict): Meta of the checkpoint.
        settings (dict): ``steps``, ``quantizer`` and ``dataset`` (calibration, without roots) of the config file, plain
            values.
        data (dict): Of the record.

    Raises:
        ConfigError: If the run had other settings, calibrated on evaluation images, or took its baselines on another
            number of images than the evaluation.
    """
    own = dict(meta['settings'], dataset=meta['calibration']['dataset'])
    changed = differing_keys({k: own[k] for k in settings}, settings)
    if changed:
        raise ConfigError(f'--update-results: the checkpoint was made with other settings than the config has: '
                          f'{", ".join(changed[:5])}. Quantize with the config as it is, or write a config of its own')
    shared = [r for r in meta['records'] if r['kind'] == 'shared_images']
    if shared:
        raise ConfigError(f'--update-results: {shared[0]["count"]} calibration images of this run are also evaluation '
                          'images; calibrate on training images (train_cfg.dataloader)')
    if (lost := other_set(meta, data)) is not None:
        raise ConfigError(f'--update-results: {lost}')


def publish_deployed(config: str, seed: int, verdict: dict, simulated: dict, sizes: dict) -> str:
    """Add what a runtime gave to the published record of a seed, as ``deployed``; returns the record's path.

    Args:
        config (str): Of the record.
        seed (int): Of the checkpoint that was exported.
        verdict (dict): Plain values of the verdict, with ``metrics`` of the runtime.
        simulated (dict): Metrics of the same network in simulation.
        sizes (dict): ``qdq`` and ``packed`` (None without): bytes of all files.

    Raises:
        ConfigError: There is no record of the seed yet.
    """
    path = osp.join(results_folder(config), f'seed{seed}.json')
    record = read_json(path)
    if record is None:
        raise ConfigError(f'--update-results: {config} has no record of seed {seed}; publish it first by tools/test.py '
                          '--update-results with the checkpoint that is exported')
    record['deployed'] = dict(verdict, simulated=simulated, bytes=sizes)
    return write_json(path, record)


def write_json(path: str, data: dict) -> str:
    """Write with sorted keys and a line end; returns the path."""
    return files.write_json(path, data, sort_keys=True)


def read_json(path: str) -> dict | None:
    """What a file holds, None without one."""
    return files.read_json(path) if osp.exists(path) else None


def results_folder(config: str) -> str:
    """Where the records of ``<root>/configs/<algorithm>/<stem>.py`` lie: ``<root>/records/<algorithm>/<stem>``."""
    folder = osp.dirname(osp.abspath(config))
    return osp.join(osp.dirname(osp.dirname(folder)), 'records', osp.basename(folder),
                    osp.splitext(osp.basename(config))[0])


def read_records(config: str) -> list[dict]:
    """Published records of a config, by seed; empty if there are none."""
    return sorted(map(read_json, glob(osp.join(results_folder(config), 'seed*.json'))), key=lambda r: r['seed'])


def read_cost(config: str, records: list[dict]) -> dict | None:
    """Cost of a config's model: of its first record, else of ``cost.json``, else None."""
    return records[0]['cost'] if records else read_json(osp.join(results_folder(config), 'cost.json'))


def values_of(records: list[dict], key: str, part: str = 'metrics') -> list[float]:
    """One metric of each record; empty if any lacks it."""
    found = [(r.get(part) or {}).get(key) for r in records]
    return [] if None in found else found


def spread(values: list[float], digits: int = 2, factor: float = 1.0) -> str:
    """``'71.20'``, or mean and sample standard deviation of several, ``'71.20 ± 0.15'``; ``'-'`` of none."""
    if not values:
        return '-'
    scaled = [v * factor for v in values]
    text = f'{mean(scaled):.{digits}f}'
    return f'{text} ± {stdev(scaled):.{digits}f}' if len(scaled) > 1 else text
