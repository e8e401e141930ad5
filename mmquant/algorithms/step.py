"""One stage of an algorithm, and what the stages share."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from mmengine.logging import MMLogger

from mmquant.calibration.cache import Cache
from mmquant.calibration.stream import Stream
from mmquant.models import QuantizedModel
from mmquant.models.detection import Decisions, decoders
from mmquant.models.layers import mmcv_operators
from mmquant.utils.hardware import computes_bfloat16, reuse_freed_memory


@dataclass
class CalibrationContext:
    """What every step works on.

    Attributes:
        model (QuantizedModel): Changed by the steps.
        chunks (list[Tensor]): Preprocessed calibration inputs, one forward pass each.
        samples (list[list] | None): Data samples of each chunk (labels, image sizes), one an input; None where the
            caller gave tensors alone.
        seed (int): Base of all random numbers.
        amp (bool): bfloat16 autocast inside reconstruction; off, with a warning, where the processor or an operator of
            mmcv in the model cannot compute it.
        step_index (int): Number of the running step.
        first_unit (int): Unit to begin with, when the run is resumed.
        unit_done (Callable[[int], None]): Called after each finished unit.
        progress (Callable): ``progress(description, total)`` -> context manager with ``update(done, text)``.
        state (dict): What the running step needs beside the model to go on when it is resumed: tensors and plain
            values, saved after each unit. Empty when a step begins.
        records (list[dict]): Plain facts the steps report, for results and logs.
        decisions (Decisions): Proposals of the float model for each chunk.
        cache (Cache): Where activations are kept.
    """
    model: QuantizedModel
    chunks: list
    seed: int = 0
    amp: bool = False
    step_index: int = 0
    first_unit: int = 0
    unit_done: Callable[[int], None] = lambda index: None
    progress: Callable | None = None
    records: list[dict] = field(default_factory=list)
    samples: list[list] | None = None
    decisions: Decisions = field(default_factory=Decisions)
    cache: Cache = field(default_factory=Cache)
    state: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.cache.limited:  # a budget wants freed memory back
            reuse_freed_memory()
        reason = self._against_bfloat16() if self.amp else None
        if reason:
            MMLogger.get_current_instance().warning(f'amp: {reason}; reconstructing in float32')
            self.amp = False

    def _against_bfloat16(self) -> str | None:
        if not computes_bfloat16(self.device):
            return 'this processor has no bfloat16 instructions, so bfloat16 would be slower than float32'
        operators = {type(m).__name__ for m in mmcv_operators(self.model.architecture)}
        return f'operators of mmcv compute no bfloat16 ({", ".join(sorted(operators))})' if operators else None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.architecture.parameters()).device

    @property
    def sample(self):
        """One or two images, enough to see the data flow."""
        return self.chunks[0][:2]

    @property
    def sample_info(self) -> list | None:
        """Data samples of :attr:`sample`."""
        return None if self.samples is None else self.samples[0][:2]

    def samples_of(self, index: int) -> list | None:
        """Data samples of a chunk."""
        return None if self.samples is None else self.samples[index]

    def run(self, index: int):
        """Raw outputs for a chunk; the second stage of a detector gets the proposals of the chunk's first run."""
        with self.decisions.pinned(self.model.architecture, index):
            return self.model.run(self.chunks[index], self.samples_of(index))

    def stream(self) -> Stream:
        """Activations of all chunks, before the first unit; proposals are those of the float model."""
        self._pin_decisions()
        return Stream(self.model, self.chunks, self.samples, self.decisions, self.cache)

    @torch.no_grad()
    def _pin_decisions(self) -> None:
        """Let the float model select proposals for every chunk, if it selects any."""
        if decoders(self.model.architecture) and not self.decisions.made:
            with self.model.quantization(weights=False, activations=False):
                for index in range(len(self.chunks)):
                    self.run(index)
                    if not self.decisions.made:  # a detector of one stage
                        break

    def seed_for(self, unit: int) -> int:
        """Seed of one unit in this step: independent of what ran before, so that resumed runs agree."""
        return (self.seed * 1_000_003 + self.step_index * 10_007 + unit * 101) % 2**31

    def images(self, count: int) -> list:
        """The first ``count`` images, in chunks."""
        return [images for images, _ in self.batches(count)]

    def batches(self, count: int) -> list[tuple]:
        """The first ``count`` images with their data samples, in chunks."""
        found, left = [], count
        for index, chunk in enumerate(self.chunks):
            if left <= 0:
                break
            samples = self.samples_of(index)
            found.append((chunk[:left], samples and samples[:left]))
            left -= len(found[-1][0])
        return found


class Step:
    """Base of all steps.

    Attributes:
        structural (bool): Rebuilds structure from the float weights; runs again when a run is resumed.
        evaluates (tuple[bool, bool] | None): Quantization of (weights, activations) to evaluate behind this step.
        distributed (bool): Gives the same result in every process where the images are scattered over several.
        name (str): Name of the stage in results.
    """
    structural = False
    distributed = False
    evaluates: tuple[bool, bool] | None = None

    def __init__(self, name: str | None = None) -> None:
        self.name = name or type(self).__name__

    def run(self, context: CalibrationContext) -> None:
        """Change ``context.model``."""
        raise NotImplementedError(f'{type(self).__name__} does not define run(context)')
