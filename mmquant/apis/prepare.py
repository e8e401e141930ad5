"""A config's model with quantizers, without the rest of its steps: with its images, or without (a dry run)."""
import os.path as osp
import time
from math import prod

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger, print_log
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch.utils._pytree import tree_leaves

from mmquant.algorithms.step import CalibrationContext, Step
from mmquant.algorithms.step_list import build_steps
from mmquant.analysis.tables import summary
from mmquant.apis.config import build_runner, calibration_config
from mmquant.apis.quantize import run_steps
from mmquant.models import QuantizedModel
from mmquant.models.cost import ModelCost, model_cost
from mmquant.registry import MODELS
from mmquant.utils.building import ConfigError
from mmquant.utils.files import write_json
from mmquant.utils.progress import progress

RANDOM_BATCH, TIMED_BATCH = 2, 8
LARGE, SMALL = 512 * 512, 256 * 256  # pixels of images that a dry run replaces by smaller ones, and of these, about


def prepare_context(cfg: Config) -> tuple[Runner, CalibrationContext]:
    """Build the Runner, load the float weights and the calibration images, run the structural steps.

    ``cfg`` is a calibration config with the common arguments merged in; it is changed. Returns the Runner, for its
    loops, logger and visualizer, and the context for further steps.
    """
    runner = build_runner(calibration_config(cfg))
    model = runner.model
    model.load_float_checkpoint()
    chunks, samples = runner.train_loop.collect(model)
    context = CalibrationContext(model, chunks, runner.seed, cfg.train_cfg.get('amp', False), progress=progress,
                                 samples=samples)
    _run_structural(context, cfg)
    return runner, context


def prepare_random(cfg: Config) -> tuple[CalibrationContext, list[Step]]:
    """As :func:`prepare_context` with random weights and ``RANDOM_BATCH`` random images; all steps instead of a Runner.

    The steps run on smaller images where the config's are large, and only the data flow is that of a large one.

    Raises ConfigError unless the config has ``calibration_input_shape``, that of one preprocessed image.
    """
    shape = cfg.get('calibration_input_shape')
    if not shape:
        raise ConfigError(f'{cfg.filename}: calibration_input_shape is missing; set it to the shape of one '
                          'preprocessed image, as in configs/_base_/calibration/imagenet_1024.py')
    MMLogger.get_instance('mmquant', log_level='WARNING')
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    torch.manual_seed(0)
    model_cfg = dict(cfg.model, float_checkpoint='random')
    if cfg.get('data_preprocessor'):
        model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor)
    small = smaller(shape)
    context = CalibrationContext(MODELS.build(model_cfg), [torch.randn(RANDOM_BATCH, *small)])
    if small != tuple(shape):
        try:
            context.model.run(context.sample)
        except Exception:  # a model of fixed size
            context.chunks = [torch.randn(RANDOM_BATCH, *shape)]
            return context, _run_structural(context, cfg)
    steps = _run_structural(context, cfg)
    if small != tuple(shape):
        context = CalibrationContext(context.model, [torch.randn(1, *shape)])
        context.model.observe(context.sample)
    return context, steps


def smaller(shape) -> tuple[int, ...]:
    """The shape of a large image (C, H, W) scaled down to sides that are multiples of 32; others as they are."""
    if len(shape) != 3 or shape[1] * shape[2] <= LARGE:
        return tuple(shape)
    scale = (SMALL / (shape[1] * shape[2]))**0.5
    return (shape[0], *(max(32, round(side * scale / 32) * 32) for side in shape[1:]))


def _run_structural(context: CalibrationContext, cfg: Config) -> list[Step]:
    """All steps, of which those that shape the model have run."""
    steps = build_steps(cfg.train_cfg.steps)
    run_steps(context, [s for s in steps if s.structural])
    return steps


def dry_run(cfg: Config) -> dict:
    """Build the model by :func:`prepare_random`, report; writes and returns ``dry_run.json`` of the work dir:
    ``units``, ``layers``, ``params``, ``macs``, ``bops``, ``size_mb``, ``float_size_mb``, ``estimated_seconds``."""
    context, steps = prepare_random(cfg)
    model = context.model
    report = describe(model, next((s.unit for s in steps if s.unit), 'block'), len(context.sample))
    report['estimated_seconds'] = estimate_seconds(context, steps, report)
    folder = cfg.get('work_dir') or '.'
    write_json(osp.join(folder, 'dry_run.json'), report)
    return report


def model_cost_of(cfg: Config) -> ModelCost:
    """Parameters, operations and size of a calibration config's model, without data and without weights."""
    context, _ = prepare_random(cfg)
    return model_cost(context.model, len(context.sample))


def describe(model: QuantizedModel, granularity: str, batch: int = RANDOM_BATCH) -> dict:
    """Units, coverage and cost of a model with inserted quantizers, observed on ``batch`` images; prints the tables."""
    cost = model_cost(model, batch)
    units = model.units(granularity)
    bits = {x.name: (x.w_bits, x.a_bits) for x in cost.layers}
    print_log('\n' + summary(model, granularity))
    listed = [dict(name=u.name, kind=u.kind, layers=list(u.layers),
                   bits={n: dict(w=bits[n][0], a=bits[n][1]) for n in u.layers if n in bits}) for u in units]
    return dict(units=listed, layers=[vars(x) for x in cost.layers], params=cost.params, macs=cost.macs,
                bops=cost.bops, size_mb=cost.size_mb, float_size_mb=cost.float_size_mb)


def estimate_seconds(context: CalibrationContext, steps: list[Step], report: dict) -> float:
    """Seconds of reconstruction, from the speed of one training step of the whole net and each unit's share of MACs.

    Large images are timed on smaller ones, by their share of the pixels.
    """
    model, shape = context.model, tuple(context.chunks[0].shape[1:])
    timed = shape if len(context.chunks[0]) > 1 else smaller(shape)
    count = TIMED_BATCH if timed == shape else 1
    weights = [layer._parameters['weight'].requires_grad_(True) for layer in model.quantized_layers().values()]
    images = torch.randn(count, *timed)

    def train_once():
        total = sum(x.float().sum() for x in tree_leaves(model.run(images)) if isinstance(x, torch.Tensor))
        if total.requires_grad:
            total.backward()

    with model.quantization(weights=False, activations=False), torch.enable_grad():
        train_once()  # warm up
        started = time.perf_counter()
        train_once()
        seconds = (time.perf_counter() - started) / count * prod(shape) / prod(timed)
    for w in weights:
        w.requires_grad_(False).grad = None
    passes = sum(s.image_passes(len(report['units'])) for s in steps)
    total = seconds * passes
    print_log(f'Estimated time of reconstruction on this machine: {total / 60:.1f} min ({passes} images through each '
              f'of {len(report["units"])} units, {seconds * 1e3:.1f} ms an image through all)')
    return total
