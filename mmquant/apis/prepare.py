"""A config's model with quantizers, without running the rest of its steps: with its calibration images, or without."""
from __future__ import annotations

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from mmquant.algorithms.step import CalibrationContext, Step
from mmquant.algorithms.step_list import build_steps
from mmquant.apis.config import build_runner, calibration_config
from mmquant.apis.quantize import run_steps
from mmquant.registry import MODELS
from mmquant.utils.building import ConfigError
from mmquant.utils.progress import progress

RANDOM_BATCH = 2


def prepare_context(cfg: Config) -> tuple[Runner, CalibrationContext]:
    """Build the Runner, load the float weights and the calibration images, run the structural steps.

    Args:
        cfg (Config): A calibration config with the common arguments merged in; changed in place.

    Returns:
        The Runner, for its loops, logger and visualizer, and the context for further steps.
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
    context = CalibrationContext(MODELS.build(model_cfg), [torch.randn(RANDOM_BATCH, *shape)])
    return context, _run_structural(context, cfg)


def _run_structural(context: CalibrationContext, cfg: Config) -> list[Step]:
    """Build all steps, run those that shape the model."""
    steps = build_steps(cfg.train_cfg.steps)
    run_steps(context, [s for s in steps if s.structural])
    return steps
