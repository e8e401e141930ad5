"""The evaluation hook: float baseline, nearest rounding, each step, final; one results file."""
import os.path as osp
import time

from mmengine.dist import is_main_process
from mmengine.hooks import Hook

from mmquant.algorithms.step import CalibrationContext, Step
from mmquant.analysis.agreement import agreement, agreement_line
from mmquant.analysis.tables import coverage_table, summary_table
from mmquant.engine.evaluation import nothing_to_find, unlike_evaluations
from mmquant.models.cost import model_cost
from mmquant.reconstruction.undecided import undecided_text
from mmquant.registry import HOOKS
from mmquant.utils.building import ConfigError, closest
from mmquant.utils.files import write_json
from mmquant.utils.hardware import peak_memory_bytes

AGREEING = 16  # images of a model that has not kept outputs of its float original


@HOOKS.register_module()
class EvaluationHook(Hook):
    """Evaluates with the Runner's own validation loop and writes ``results.json``.

    Args:
        stages (list[str] | None): Names of the stages to evaluate: ``'float'`` and those of steps. Default all.
        final (bool): Evaluate the finished model, as the stage ``'final'``. Default True. Where the last step has just
            evaluated the same network, its metrics are the final ones.

    Raises:
        ConfigError: When a run begins, for a stage that none of its steps has.
    """
    priority = 'LOW'

    def __init__(self, stages: list[str] | None = None, final: bool = True) -> None:
        self.only, self.final = stages, final
        self.started, self.cpu_started = time.monotonic(), time.process_time()

    def before_train(self, runner) -> None:
        """Check the names; warn of evaluations that differ."""
        steps = runner.train_loop.steps
        valid = ['float', *(step.name for step in steps if step.evaluates is not None), 'final']
        for name in self.only or ():
            if name not in valid:
                raise ConfigError(f'EvaluationHook.stages: no stage {name!r}; {closest(name, valid)}')
        if (warning := unlike_evaluations(runner.cfg)) is not None:
            runner.logger.warning(warning)

    def before_calibration(self, runner, context: CalibrationContext) -> None:
        """Warn about shared images; evaluate the float model."""
        self.started, self.cpu_started = time.monotonic(), time.process_time()
        try:
            shared = runner.train_loop.source.overlap(runner.val_loop.dataloader.dataset)
        except ValueError as error:
            runner.logger.warning(f'Could not check whether calibration and evaluation images overlap: {error}')
            shared = 0
        if shared:
            if not any(r['kind'] == 'shared_images' for r in context.records):  # a resumed run knows already
                context.records.append(dict(kind='shared_images', count=shared))
            runner.logger.warning(
                f'WARNING: {shared} of the calibration images are also EVALUATION images. Accuracies of this run are '
                'too good and must not be published; calibrate on training images (train_cfg.dataloader).')
        if not any(s['name'] == 'float' for s in runner.train_loop.stages):
            self._evaluate(runner, context, 'float', (False, False))

    def after_calibration_step(self, runner, context: CalibrationContext, step: Step, seconds: float) -> None:
        """Evaluate after a step that changed the accuracy."""
        if step.evaluates is not None:
            self._evaluate(runner, context, step.name, step.evaluates, seconds, runner.train_loop.step_cpu_seconds)

    def after_calibration(self, runner, context: CalibrationContext, path: str) -> None:
        """Evaluate the finished model; write results, log the tables."""
        if self.final or 'final' in (self.only or ()):
            self._evaluate_final(runner, context)
        if not is_main_process():
            return
        cost = model_cost(context.model, len(context.sample))
        total, peak = time.monotonic() - self.started, peak_memory_bytes()
        found = agreement(context.model, context.images(AGREEING))
        results = dict(config=osp.relpath(runner.cfg.filename) if runner.cfg.filename else None, seed=runner.seed,
                       stages=runner.train_loop.stages, size_mb=cost.size_mb, bops=cost.bops, peak_memory_bytes=peak,
                       checkpoint=path, seconds=total, cpu_seconds=time.process_time() - self.cpu_started,
                       records=context.records, agreement=found)
        write_json(osp.join(runner.work_dir, 'results.json'), results)
        runner.logger.info('\n' + coverage_table(cost))
        runner.logger.info('\n' + summary_table(runner.train_loop.stages, cost, total, peak))
        runner.logger.info(agreement_line(found))
        if text := undecided_text(context.records):
            runner.logger.info(text)  # a warning of the step before is not repeated by mmengine's logger

    def _evaluate_final(self, runner, context: CalibrationContext) -> None:
        """As tools/test.py does; not twice on the network that the last step has left."""
        model, last, stages = context.model, runner.train_loop.steps[-1], runner.train_loop.stages
        owners = model.weight_quantizers(), model.activation_quantizers()
        if last.evaluates is not None and stages and stages[-1]['name'] == last.name and all(
                a == b or not found for a, b, found in zip(last.evaluates, model.ready, owners)):
            self._note(runner, 'final', stages[-1]['metrics'])
        else:
            self._evaluate(runner, context, 'final', model.ready)

    def _evaluate(self, runner, context: CalibrationContext, name: str, mode: tuple[bool, bool],
                  seconds: float = 0.0, cpu_seconds: float = 0.0) -> None:
        if self.only is not None and name not in (*self.only, 'final'):
            return
        with context.model.frozen(*mode):
            try:
                metrics = runner.val_loop.run()
            except Exception as error:
                raise ValueError(f'the evaluation failed ({type(error).__name__}: {" ".join(str(error).split())}); '
                                 'check val_dataloader, val_evaluator and data_preprocessor. Finished units are saved: '
                                 'go on with --resume') from error
        metrics = {k: float(v) for k, v in metrics.items()}
        if (warning := nothing_to_find(metrics)) is not None:
            runner.logger.warning(warning)
        self._note(runner, name, metrics, seconds, cpu_seconds)

    def _note(self, runner, name: str, metrics: dict, seconds: float = 0.0, cpu_seconds: float = 0.0) -> None:
        runner.train_loop.stages.append(dict(name=name, metrics=metrics, seconds=seconds, cpu_seconds=cpu_seconds))
        text = ', '.join(f'{k} {v:.4f}' for k, v in metrics.items())
        runner.logger.info(f'Stage {name}: {text} ({seconds:.1f} s)')
        for key, value in metrics.items():
            runner.visualizer.add_scalar(f'{name}/{key}', value, len(runner.train_loop.stages))
