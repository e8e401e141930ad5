"""A config's model with quantizers and its calibration images, without running the rest of its steps."""
from __future__ import annotations

from mmengine.config import Config
from mmengine.runner import Runner

from mmquant.algorithms.step import CalibrationContext
from mmquant.apis.config import build_runner, calibration_config
from mmquant.apis.quantize import run_steps
from mmquant.registry import STEPS
from mmquant.utils.building import build
from mmquant.utils.progress import progress


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
    steps = [build(STEPS, s, f'train_cfg.steps[{i}]') for i, s in enumerate(cfg.train_cfg.steps)]
    run_steps(context, [s for s in steps if s.structural])
    return runner, context
