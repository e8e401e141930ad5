"""The calibration loop: runs the steps of an algorithm in the train slot of a Runner."""
from __future__ import annotations

import inspect
import os.path as osp
import time

import torch
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop

from mmquant.algorithms.step import CalibrationContext, Step
from mmquant.calibration.cache import Cache
from mmquant.datasets.checks import list_digest, without_roots
from mmquant.engine.progress_file import NAME, ProgressFile, fingerprint
from mmquant.engine.unreadable_images import POLICIES, ReadableDataset, Sieve, Unreadable, readable_batches
from mmquant.models.cost import model_cost
from mmquant.registry import DATASETS, LOOPS, STEPS
from mmquant.utils.building import ConfigError, build, check_keys, plain
from mmquant.utils.distributed import alone, gather_list, one_writes
from mmquant.utils.hardware import device_name, peak_memory_bytes
from mmquant.utils.progress import progress
from mmquant.utils.versions import found_versions

EMPTY = 'the calibration set is empty; check train_cfg.dataloader.dataset'


@LOOPS.register_module()
class CalibrationLoop(BaseLoop):
    """Loads the float weights and the calibration images, runs the steps, saves ``quantized.pth``.

    Hook points, beside mmengine's ``before_train`` and ``after_train``: ``before_calibration(runner, context)``,
    ``after_calibration_step(runner, context, step, seconds)``, ``after_calibration(runner, context, path)``.

    Args:
        runner (Runner): The runner.
        dataloader (dict | DataLoader): Calibration images; labels are not used.
        steps (list[dict]): Configs of the steps, at least one.
        chunk_size (int): Images a forward pass outside reconstruction. Default 64.
        amp (bool): bfloat16 autocast inside reconstruction. Default False.
        resume (bool | str): Continue from the state in the work dir, or from this file. Default False.
        cache (dict | None): Bytes for cached activations: ``device``, ``host``, ``disk``, ``folder``; see
            :class:`Cache`. Default: memory without limit.
        unreadable (str): ``'stop'`` at a calibration image that cannot be read (default), or ``'skip'`` such images.

    Raises:
        ConfigError: For a wrong step, cache or policy.
        ValueError: If there is no calibration image, one cannot be read or holds NaN.
    """

    def __init__(self, runner, dataloader, steps: list, chunk_size: int = 64, amp: bool = False,
                 resume: bool | str = False, cache: dict | None = None, unreadable: str = 'stop') -> None:
        if not isinstance(steps, (list, tuple)) or not steps:
            raise ConfigError(f'train_cfg.steps must be a list of at least one step, got {steps!r}')
        self.steps: list[Step] = [build(STEPS, s, f'train_cfg.steps[{i}]') for i, s in enumerate(steps)]
        single = [step.name for step in self.steps if not step.distributed]
        if single and not alone():
            raise ConfigError(f'the steps {", ".join(single)} do not run in several processes; start tools/ptq.py '
                              'without a launcher')
        if chunk_size < 1:
            raise ConfigError(f'train_cfg.chunk_size must be at least 1, got {chunk_size}')
        if unreadable not in POLICIES:
            raise ConfigError(f'train_cfg.unreadable must be one of {POLICIES}, got {unreadable!r}')
        check_keys(cache or {}, inspect.signature(Cache).parameters, 'train_cfg.cache')
        self.cache = Cache(**(cache or {}))
        try:
            super().__init__(runner, _readable(dataloader))
        except ValueError as error:
            if 'need at least one array' in str(error):  # what mmengine says of a data set without samples
                raise ValueError(EMPTY) from error
            raise
        self.dataloader.collate_fn = Sieve(self.dataloader.collate_fn)
        self.chunk_size, self.amp, self.resume, self.unreadable = chunk_size, amp, resume, unreadable
        self.stages: list[dict] = []
        self.spent = dict(seconds=0.0, peak_memory_bytes=0)  # by the steps, in all sessions of a resumed run
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
        """Run all steps; returns the model."""
        runner = self.runner
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        model.load_float_checkpoint()
        runner.call_hook('before_train')
        chunks, samples = self.collect(model)
        check_shares(chunks)
        context = CalibrationContext(model, chunks, seed=runner.seed, amp=self.amp, progress=progress, samples=samples,
                                     cache=self.cache)
        self._check_architecture(context)
        self.num_images = sum(gather_list([len(chunk) for chunk in chunks]))
        settings = plain(dict(steps=runner.cfg.train_cfg.get('steps', ()), quantizer=model.quantizer_cfg,
                              seed=runner.seed, chunk_size=self.chunk_size, amp=self.amp))
        told = dict(config=settings, weights=dict(float_checkpoint=model.float_checkpoint),
                    calibration=dict(images=self.num_images, shape=list(chunks[0].shape[1:])))
        saved = ProgressFile(osp.join(runner.work_dir, NAME), fingerprint(context, settings), told)
        state = saved.load(self.resume if isinstance(self.resume, str) else saved.path) if self.resume else None
        if state:
            self.stages, context.records = state['stages'], state['records']
            self.spent = state.get('spent') or self.spent
            runner.logger.info(f'Resuming at step {state["step"]} ({self._name(state["step"])}), behind unit '
                               f'{state["unit"]}')
        runner.call_hook('before_calibration', context=context)
        for index, step in enumerate(self.steps):
            self._run_step(index, step, context, saved, state)
        if state and state['step'] >= len(self.steps):
            model.architecture.load_state_dict(state['state_dict'])
        self._warn_of_idle_quantizers(model)
        path = osp.join(runner.work_dir, 'quantized.pth')
        self._save(path, context, settings)
        runner.call_hook('after_calibration', context=context, path=path)
        runner.call_hook('after_train')
        return runner.model

    @torch.no_grad()
    def _check_architecture(self, context: CalibrationContext) -> None:
        try:
            context.model.run(context.sample)
        except Exception as error:
            raise ConfigError(f'model.architecture cannot run on calibration images of shape '
                              f'{tuple(context.sample.shape)} ({type(error).__name__}: {error}); do backbone, neck and '
                              'head fit each other and data_preprocessor?') from error

    def _name(self, index: int) -> str:
        return self.steps[index].name if index < len(self.steps) else 'end'

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
        started = time.monotonic()
        before = self.spent

        def spent() -> dict:
            return dict(seconds=before['seconds'] + time.monotonic() - started,
                        peak_memory_bytes=max(before['peak_memory_bytes'], peak_memory_bytes()))

        context.step_index = index
        context.unit_done = lambda unit: saved.save(context, index, unit, self.stages, spent())
        step.run(context)
        context.first_unit, context.state = 0, {}
        self._iter = index + 1
        self.spent = spent()
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
        context.model.save(path, self._meta(context, settings))

    def _meta(self, context: CalibrationContext, settings: dict) -> dict:
        """What a results record needs beside the weights: how the checkpoint was made, at which cost."""
        cost = model_cost(context.model, len(context.sample)).to_dict()
        del cost['layers']
        try:
            listed = list_digest(self.dataloader.dataset)
        except ValueError:  # samples without names
            listed = None
        evaluation, dataset = self.runner.val_loop, self.runner.cfg.train_dataloader.get('dataset')
        calibration = dict(images=self.num_images, list_sha256=listed, dataset=without_roots(dataset))
        return dict(config=self.runner.cfg.pretty_text, seed=self.runner.seed, stages=self.stages,
                    records=context.records, settings=settings, cost=cost, device=device_name(context.device),
                    versions=found_versions(), calibration=calibration,
                    evaluated_images=len(evaluation.dataloader.dataset) if evaluation else 0, **self.spent)

    @torch.no_grad()
    def collect(self, model) -> tuple[list[torch.Tensor], list[list] | None]:
        """All calibration images, preprocessed, in chunks on the model's device, and the data samples of each chunk.

        Images of different sizes go into different chunks.

        Raises:
            ValueError: If there are none, one cannot be read, they do not batch, or one holds NaN or infinite values.
        """
        lost: list[Unreadable] = []
        try:
            batches = [model.data_preprocessor(batch, False)
                       for batch in readable_batches(self.dataloader, self.unreadable, lost)]
        except ValueError:
            raise
        except Exception as error:
            if 'stack expects each tensor to be equal size' not in str(error):
                raise ValueError(f'the calibration images cannot be loaded ({type(error).__name__}: {error}); check '
                                 'train_cfg.dataloader (sampler, dataset, a pipeline that ends in PackInputs) and '
                                 'data_preprocessor') from error
            raise ValueError('the calibration images have different sizes and do not batch: set '
                             'train_cfg.dataloader.batch_size=1, or let the pipeline resize or pad them to one size '
                             f'({error})') from error
        if lost:
            self.runner.logger.warning(f'{len(lost)} calibration images cannot be read and are left out; the first: '
                                       f'{lost[0].name} ({lost[0].reason})')
        if not batches:
            raise ValueError(EMPTY)
        for i, batch in enumerate(batches):
            if not torch.isfinite(batch['inputs']).all():
                raise ValueError(f'calibration batch {i} holds NaN or infinite pixels after preprocessing; check the '
                                 'images and data_preprocessor (a std of 0?)')
        return chunks_of_one_size(batches, self.chunk_size)


def check_shares(chunks: list[torch.Tensor]) -> None:
    """Raise ValueError unless every process holds as many images of the same sizes; gathering would wait for ever."""
    held = gather_list([[tuple(chunk.shape) for chunk in chunks]])
    if all(shapes == held[0] for shapes in held):
        return
    told = '; '.join(f'process {rank}: ' + ', '.join(f'{n} of {"x".join(map(str, shape))}' for n, *shape in shapes)
                     for rank, shapes in enumerate(held))
    raise ValueError(f'the processes hold different numbers or sizes of calibration images ({told}); resize or pad '
                     'them to one size, repair unreadable ones, or start one process')


def _readable(dataloader):
    """A data loader config whose data set is built and tells of images that it cannot read."""
    if not isinstance(dataloader, dict) or not isinstance(dataloader.get('dataset'), dict):
        return dataloader
    dataset = DATASETS.build(dataloader['dataset'])
    if hasattr(dataset, 'full_init'):
        dataset.full_init()
    return {**dataloader, 'dataset': ReadableDataset(dataset)}


def chunks_of_one_size(batches: list[dict], size: int) -> tuple[list[torch.Tensor], list[list] | None]:
    """Join preprocessed batches to chunks of up to ``size`` images, each of images of one height and width.

    Args:
        batches (list[dict]): With ``inputs`` (N, C, H, W) and maybe ``data_samples``, one an image.
        size (int): Images a chunk.

    Returns:
        tuple: The chunks, sizes in the order in which they first occur, and the data samples of each chunk, or None
        where some are missing.
    """
    groups: dict[tuple, list[dict]] = {}
    for batch in batches:
        groups.setdefault(tuple(batch['inputs'].shape[1:]), []).append(batch)
    chunks, samples, complete = [], [], True
    for group in groups.values():
        images = torch.cat([b['inputs'] for b in group]).contiguous(memory_format=torch.channels_last)
        info = [x for b in group for x in b.get('data_samples') or ()]
        complete &= len(info) == len(images)
        chunks += images.split(size)
        samples += [info[i:i + size] for i in range(0, len(images), size)]
    return chunks, samples if complete else None
