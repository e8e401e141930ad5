"""What a run would do: units, layers, bits, cost and time, without data and without weights."""
from __future__ import annotations

import json
import os
import os.path as osp
import time

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from torch.utils._pytree import tree_leaves

from mmquant.algorithms.step import CalibrationContext, Step
from mmquant.analysis.tables import coverage_table, units_table
from mmquant.apis.prepare import RANDOM_BATCH, prepare_random
from mmquant.models import QuantizedModel
from mmquant.models.cost import ModelCost, model_cost

TIMED_BATCH = 8


def dry_run(cfg: Config) -> dict:
    """Build the model by :func:`prepare_random`, report; writes ``dry_run.json`` into the work dir.

    Returns:
        dict: ``units`` (name, kind, layers, bits), ``layers``, ``size_mb``, ``bops``, ``macs``, ``params``,
        ``estimated_seconds``.
    """
    context, steps = prepare_random(cfg)
    model = context.model
    report = describe(model, next((s.unit for s in steps if s.unit), 'block'))
    report['estimated_seconds'] = estimate_seconds(context, steps, report)
    folder = cfg.get('work_dir') or '.'
    os.makedirs(folder, exist_ok=True)
    with open(osp.join(folder, 'dry_run.json'), 'w') as f:
        json.dump(report, f, indent=1)
    return report


def model_cost_of(cfg: Config) -> ModelCost:
    """Parameters, operations and size of a calibration config's model, without data and without weights."""
    return model_cost(prepare_random(cfg)[0].model, RANDOM_BATCH)


def describe(model: QuantizedModel, granularity: str) -> dict:
    """Units, coverage and cost of a model with inserted quantizers; prints the tables."""
    cost = model_cost(model, RANDOM_BATCH)
    units = model.units(granularity)
    bits = {x.name: (x.w_bits, x.a_bits) for x in cost.layers}
    print_log('\n' + units_table(units, bits))
    print_log('\n' + coverage_table(cost))
    print_log(f'size {cost.size_mb:.3f} MB (float {cost.float_size_mb:.3f} MB), {cost.macs / 1e9:.3f} GMACs, '
              f'{cost.bops / 1e9:.3f} GBOPs for one image')
    listed = [dict(name=u.name, kind=u.kind, layers=list(u.layers),
                   bits={n: dict(w=bits[n][0], a=bits[n][1]) for n in u.layers if n in bits}) for u in units]
    return dict(units=listed, layers=[vars(x) for x in cost.layers], params=cost.params, macs=cost.macs,
                bops=cost.bops, size_mb=cost.size_mb, float_size_mb=cost.float_size_mb)


def estimate_seconds(context: CalibrationContext, steps: list[Step], report: dict) -> float:
    """Seconds of reconstruction, from the speed of one training step of the whole net and each unit's share of MACs."""
    model = context.model
    weights = [p.requires_grad_(True) for layer in model.quantized_layers().values()
               for p in [layer._parameters['weight']]]
    images = torch.randn(TIMED_BATCH, *context.chunks[0].shape[1:])

    def train_once():
        sum(x.float().sum() for x in tree_leaves(model.run(images)) if isinstance(x, torch.Tensor)).backward()

    with model.quantization(weights=False, activations=False), torch.enable_grad():
        train_once()  # warm up
        started = time.perf_counter()
        train_once()
        seconds = (time.perf_counter() - started) / TIMED_BATCH
    for w in weights:
        w.requires_grad_(False).grad = None
    passes = sum(s.image_passes(len(report['units'])) for s in steps)
    total = seconds * passes
    print_log(f'Estimated time of reconstruction on this machine: {total / 60:.1f} min ({passes} images through each '
              f'of {len(report["units"])} units, {seconds * 1e3:.1f} ms an image through all)')
    return total
