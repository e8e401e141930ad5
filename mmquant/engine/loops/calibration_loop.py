"""The calibration loop: runs the steps of an algorithm in the train slot of a Runner."""
import contextlib
import inspect
import os.path as osp
import time

import torch
from mmengine import dist
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop

from mmquant.algorithms.step import CalibrationContext, Step
from mmquant.algorithms.step_list import build_steps, listed_steps
from mmquant.calibration.cache import Cache
from mmquant.datasets.identity import digest_or_none, without_roots
from mmquant.engine.progress_file import NAME, ProgressFile, fingerprint
from mmquant.engine.sources import LoaderImages, Source
from mmquant.models.cost import model_cost
from mmquant.registry import LOOPS, SOURCES
from mmquant.utils.building import ConfigError, build, check_keys, plain
from mmquant.utils.distributed import alone, gather_list, one_writes
from mmquant.utils.files import locked
from mmquant.utils.hardware import device_name, peak_memory_bytes
from mmquant.utils.progress import progress
from mmquant.utils.versions import found_versions


@LOOPS.register_module()
class CalibrationLoop(BaseLoop):
    """Loads the float weights and the calibration images, runs the steps, saves ``quantized.pth``.

    Hook points, beside mmengine's ``before_train`` and ``after_train``: ``before_calibration(runner, context)``,
    ``after_calibration_step(runner, context, step, seconds)``, ``after_calibration(runner, context, path)``.

    Args:
        runner (Runner): The runner.
        dataloader (dict | DataLoader | None): Of calibration images: short for the source :class:`LoaderImages`.
        steps (dict | list): Configs of the steps by name, at least one; see :func:`ordered_steps`. Their names are
            those of the stages in ``results.json``.
        chunk_size (int): Images a forward pass outside reconstruction. Default 64.
        amp (bool): bfloat16 autocast inside reconstruction. Default False.
        resume (bool | str): Continue from the state in the work dir, or from this file. Default False.
        cache (dict | None): Bytes for cached activations: ``device``, ``host``, ``disk``, ``folder``; see
            :class:`Cache`. Default: memory without limit.
        unreadable (str): What to do at an image of the dataloader that cannot be read: ``'stop'`` (default) or
            ``'skip'``.
        source (dict | None): Config of another source of calibration images, instead of ``dataloader``.

    Raises:
        ConfigError: For a wrong step, cache, source or policy.
        ValueError: If there is no calibration image, one cannot be read or holds NaN.
    """

    def __init__(self, runner, dataloader, steps: dict | list, chunk_size: int = 64, amp: bool = False,
                 resume: bool | str = False, cache: dict | None = None, unreadable: str = 'stop',
                 source: dict | None = None) -> None:
        self.steps: list[Step] = build_steps(steps)
        single = [step.name for step in self.steps if not step.distributed]
        if single and not alone():
            raise ConfigError(f'the steps {", ".join(single)} do not run in several processes; start tools/ptq.py '
                              'without a launcher')
        if chunk_size < 1:
            raise ConfigError(f'train_cfg.chunk_size must be at least 1, got {chunk_size}')
        check_keys(cache or {}, inspect.signature(Cache).parameters, 'train_cfg.cache')
        self.cache = Cache(**(cache or {}))
        self.source = _source(dataloader, source, unreadable)
        super().__init__(runner, self.source)  # a Runner asks what it takes for a loader for its ``dataset``
        self.chunk_size, self.amp, self.resume = chunk_size, amp, resume
        self.stages: list[dict] = []
        # By the steps, in all sessions of a resumed run: wall time, which depends on what else the machine does, time
        # of all threads on processors, memory.
        self.spent = dict(seconds=0.0, cpu_seconds=0.0, peak_memory_bytes=0)
        self.step_cpu_seconds = 0.0  # of the latest step
        self._iter = 0

    @property
    def iter(self) -> int:
        """Finished steps."""
        return self._iter

    @property
    def max_iters(self) -> int:
        """Number of steps."""
        return len(self.steps)

    epoch, max_epochs = iter, max_iters

    def run(self):
        """Run all steps; returns the model. InUseError if another process works in the work dir."""
        with locked(self.runner.work_dir) if dist.is_main_process() else contextlib.nullcontext():
            return self._run()

    def _run(self):
        runner = self.runner
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        model.load_float_checkpoint()
        runner.call_hook('before_train')
        chunks, samples = self.collect(model)
        context = CalibrationContext(model, chunks, seed=runner.seed, amp=self.amp, progress=progress, samples=samples,
                                     cache=self.cache)
        self._check_architecture(context)
        self.num_images = sum(gather_list([len(chunk) for chunk in chunks]))
        settings = plain(dict(steps=listed_steps(runner.cfg.train_cfg.steps), quantizer=model.quantizer_cfg,
                              seed=runner.seed, chunk_size=self.chunk_size, amp=self.amp))
        evaluation = self._evaluation()
        told = dict(config=settings, model=model.structure, evaluation=evaluation,
                    weights=dict(float_checkpoint=model.float_checkpoint),
                    calibration=dict(images=self.num_images, shape=list(chunks[0].shape[1:])))
        saved = ProgressFile(osp.join(runner.work_dir, NAME), fingerprint(context, settings, evaluation), told)
        state = saved.load(self.resume if isinstance(self.resume, str) else saved.path) if self.resume else None
        if state:
            self.stages, context.records = state['stages'], state['records']
            self.spent |= state.get('spent') or {}
            name = next((s.name for s in self.steps[state['step']:]), 'end')
            runner.logger.info(f'Resuming at step {state["step"]} ({name}), behind unit {state["unit"]}')
        runner.call_hook('before_calibration', context=context)
        for index, step in enumerate(self.steps):
            self._run_step(index, step, context, saved, state)
        if state and state['step'] >= len(self.steps):
            model.architecture.load_state_dict(state['state_dict'])
        self._warn_of_idle_quantizers(model)
        model.decide()
        path = osp.join(runner.work_dir, 'quantized.pth')
        self._save(path, context, settings)
        runner.call_hook('after_calibration', context=context, path=path)
        runner.call_hook('after_train')
        return runner.model

    def collect(self, model) -> tuple[list[torch.Tensor], list[list] | None]:
        """All calibration images, preprocessed, in chunks, and the data samples of each; see :meth:`Source.collect`."""
        return self.source.collect(model, self.runner.seed, self.chunk_size)

    def _evaluation(self) -> dict | None:
        """What decides the figures of the run's stages: the images, what is made of them, and the metrics."""
        cfg, loop = self.runner.cfg, self.runner.val_loop
        if loop is None:
            return None
        dataset = (cfg.get('val_dataloader') or {}).get('dataset')
        listed = digest_or_none(loop.dataloader.dataset)
        return plain(dict(val_dataloader=dict(dataset=without_roots(dataset), list_sha256=listed),
                          val_evaluator=without_roots(cfg.get('val_evaluator')), val_cfg=cfg.get('val_cfg')))

    @torch.no_grad()
    def _check_architecture(self, context: CalibrationContext) -> None:
        try:
            context.model.run(context.sample)
        except Exception as error:
            raise ConfigError(f'model.architecture cannot run on calibration images of shape '
                              f'{tuple(context.sample.shape)} ({type(error).__name__}: {error}); do backbone, neck and '
                              'head fit each other and data_preprocessor?') from error

    def _run_step(self, index: int, step: Step, context: CalibrationContext, saved: ProgressFile, state) -> None:
        resumed_at = state['step'] if state else 0
        if index < resumed_at:
            if step.structural:
                records = list(context.records)  # these hold what the step reported the first time
                step.run(context)
                context.records[:] = records
            return
        if state and index == resumed_at:
            context.model.architecture.load_state_dict(state['state_dict'])
            context.first_unit, context.state = state['unit'] + 1, state['context_state']
        started, cpu_started = time.monotonic(), time.process_time()
        before = self.spent

        def spent() -> dict:
            return dict(seconds=before['seconds'] + time.monotonic() - started,
                        cpu_seconds=before['cpu_seconds'] + time.process_time() - cpu_started,
                        peak_memory_bytes=max(before['peak_memory_bytes'], peak_memory_bytes()))

        context.step_index = index
        context.unit_done = lambda unit: saved.save(context, index, unit, self.stages, spent())
        step.run(context)
        context.first_unit, context.state = 0, {}
        self._iter = index + 1
        self.spent, self.step_cpu_seconds = spent(), time.process_time() - cpu_started
        self.runner.call_hook('after_calibration_step', context=context, step=step, seconds=time.monotonic() - started)
        if not step.structural:
            saved.save(context, index + 1, -1, self.stages, self.spent)

    def _warn_of_idle_quantizers(self, model) -> None:
        for kind, quantizers in (('weight', model.weight_quantizers()), ('activation', model.activation_quantizers())):
            idle = [name for name, q in quantizers.items() if not q.initialized]
            if idle:
                self.runner.logger.warning(
                    f'{len(idle)} {kind} quantizers have no range (first: {idle[0]}), so {kind}s stay float: add a '
                    f'step mmquant.Init{kind.capitalize()}Range to train_cfg.steps, or set quantizer.{kind}.bits=None')

    @one_writes
    def _save(self, path: str, context: CalibrationContext, settings: dict) -> None:
        """Save the model with what a results record needs beside the weights: how it was made, at which cost."""
        cost = model_cost(context.model, len(context.sample)).to_dict()
        del cost['layers']
        evaluation, calibration = self.runner.val_loop, dict(images=self.num_images, **self.source.facts())
        context.model.save(path, dict(
            config=self.runner.cfg.pretty_text, seed=self.runner.seed, stages=self.stages, records=context.records,
            settings=settings, cost=cost, device=device_name(context.device), versions=found_versions(),
            calibration=calibration, evaluated_images=len(evaluation.dataloader.dataset) if evaluation else 0,
            evaluated_list_sha256=digest_or_none(evaluation.dataloader.dataset) if evaluation else None, **self.spent))


def _source(dataloader, source: dict | None, unreadable: str) -> Source:
    """The source of the images; ``dataloader`` stands for one with the policy ``unreadable``."""
    if source is None:
        return LoaderImages(dataloader, unreadable)
    if dataloader or unreadable != 'stop':  # an empty dict from tools/ptq.py, since a Runner insists on a loader
        raise ConfigError('train_cfg.source takes the place of train_cfg.dataloader and of its policy '
                          'train_cfg.unreadable; give one or the other')
    return build(SOURCES, source, 'train_cfg.source')
