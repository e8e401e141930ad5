"""Leaves ``report.html`` in the work dir, and hands its numbers and figures to the Runner's visualizer."""
import os.path as osp

from mmengine.dist import is_main_process
from mmengine.hooks import Hook

from mmquant.algorithms.step import CalibrationContext
from mmquant.analysis.inspection import inspect
from mmquant.models.cost import model_cost
from mmquant.registry import HOOKS
from mmquant.utils.hardware import device_name, peak_memory_bytes
from mmquant.utils.versions import found_versions


@HOOKS.register_module()
class ReportHook(Hook):
    """Writes the report after calibration; ``tools/ptq.py`` adds it to every run.

    A report that cannot be made is a warning: the checkpoint is saved already.

    Args:
        num_images (int): Calibration images for errors of outputs and histograms of activations. Default 16.
    """
    priority = 'VERY_LOW'  # after the evaluation of the final model

    def __init__(self, num_images: int = 16) -> None:
        self.num_images = num_images

    def after_calibration(self, runner, context: CalibrationContext, path: str) -> None:
        """Look at the model, draw, write; in the first process."""
        if not is_main_process():
            return
        try:
            self._write(runner, context)
        except Exception as error:  # the work of the run must not be lost for its picture
            runner.logger.warning(f'No report was written ({type(error).__name__}: {error})')

    def _write(self, runner, context: CalibrationContext) -> None:
        from mmquant.visualization.figures import to_array
        from mmquant.visualization.report import Run, figures_of, scalars_of, write_report
        loop, name = runner.train_loop, osp.basename(runner.cfg.filename or 'mmquant')
        versions = found_versions()
        facts = {'seed': runner.seed, '': device_name(context.device), 'mmquant': versions['mmquant'],
                 'torch': versions['torch'], 'calibrated with': f'{loop.num_images} images'}
        cost = model_cost(context.model, len(context.sample))
        found = inspect(context.model, context.images(self.num_images))
        run = Run(osp.splitext(name)[0], facts, loop.stages, context.records, cost, found,
                  loop.spent['seconds'], max(loop.spent['peak_memory_bytes'], peak_memory_bytes()),
                  runner.cfg.pretty_text)
        figures = figures_of(run)
        page = write_report(osp.join(runner.work_dir, 'report.html'), run, figures)
        runner.logger.info(f'Report: {page}')
        for key, value in scalars_of(run).items():
            runner.visualizer.add_scalar(key, value)
        for unit in run.units:
            for step, loss in unit.get('curve', ()):
                runner.visualizer.add_scalar(f'loss/{unit["step"]}/{unit["unit"] or "net"}', loss, step)
        for key, figure in figures.items():
            runner.visualizer.add_image(f'report_{key}', to_array(figure))
