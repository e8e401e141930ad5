"""What all steps of a run share: the model, the calibration images, and how far the run is."""
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from mmengine.logging import MMLogger

from mmquant.calibration.cache import Cache
from mmquant.calibration.items import find_items
from mmquant.calibration.stream import Stream
from mmquant.calibration.unit_inputs import UnitInput, UnitRun, output_of
from mmquant.models import QuantizedModel
from mmquant.models.cost import macs_of_calls
from mmquant.models.detection import Decisions, decoders
from mmquant.models.layers import mmcv_operators
from mmquant.structures.unit import Unit
from mmquant.utils.building import closest
from mmquant.utils.hardware import computes_bfloat16, reuse_freed_memory
from mmquant.utils.progress import silent

# What a stream of this name quantizes: (weights, activations).
MODES = {'float': (False, False), 'weights': (True, False), 'quantized': (True, True)}


@dataclass
class CalibrationContext:
    """What every step works on. ``amp`` goes off, with a warning, where processor or operators lack bfloat16."""
    model: QuantizedModel  # changed by the steps
    chunks: list  # preprocessed calibration inputs (tensors), one forward pass each
    seed: int = 0  # base of all random numbers
    amp: bool = False  # bfloat16 autocast inside reconstruction
    step_index: int = 0  # of the running step
    first_unit: int = 0  # to begin with, when the run is resumed
    unit_done: Callable[[int], None] = lambda index: None  # called after each finished unit
    progress: Callable = silent  # progress(description, total) -> context manager with update(done, text)
    records: list[dict] = field(default_factory=list)  # plain facts the steps report, for results and logs
    samples: list[list] | None = None  # data samples of each chunk, one an input; None: the caller gave tensors alone
    decisions: Decisions = field(default_factory=Decisions)  # proposals of the float model for each chunk
    cache: Cache = field(default_factory=Cache)  # where activations are kept
    # What the running step needs beside the model to go on when it is resumed: tensors and plain values, saved after
    # each unit. Empty when a step begins.
    state: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.cache.has_budget:  # a budget wants freed memory back
            reuse_freed_memory()
        operators = {type(m).__name__ for m in mmcv_operators(self.model.architecture)} if self.amp else ()
        if self.amp and not computes_bfloat16(self.device):
            reason = 'this processor has no bfloat16 instructions, so bfloat16 would be slower than float32'
        elif operators:
            reason = f'operators of mmcv compute no bfloat16 ({", ".join(sorted(operators))})'
        else:
            return
        MMLogger.get_current_instance().warning(f'amp: {reason}; reconstructing in float32')
        self.amp = False

    # ---- the images ------------------------------------------------------------------------------------------------
    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.architecture.parameters()).device

    @property
    def sizes(self) -> list[int]:
        """Images of each chunk."""
        return [len(chunk) for chunk in self.chunks]

    @cached_property
    def labels(self) -> list[torch.Tensor] | None:
        """Class numbers of each chunk, on the model's device; None where images have none, or several."""
        labels = labels_of(self.samples)
        return labels and [x.to(self.device) for x in labels]

    @cached_property
    def _sample_size(self) -> int:
        """Images that show the data flow: two, or as many as the model runs on at least (the frames of a clip)."""
        most = len(self.chunks[0])
        with torch.no_grad(), self.model.quantization(weights=False, activations=False):
            for size in (2, *(n for n in range(3, most + 1) if most % n == 0)):
                try:
                    self.model.run(self.chunks[0][:size], self.samples and self.samples[0][:size])
                    return size
                except Exception:  # which of them it is the caller shall see, on two images
                    continue
        return 2

    @property
    def sample(self):
        """A few images, enough to see the data flow: one or two if the model takes so few."""
        return self.chunks[0][:self._sample_size]

    @property
    def sample_info(self) -> list | None:
        """Data samples of :attr:`sample`."""
        return self.samples and self.samples[0][:self._sample_size]

    @cached_property
    def separate(self) -> bool:
        """Whether the model's output for an image does not depend on the other images of a chunk."""
        with torch.no_grad(), self.model.quantization(weights=False, activations=False):
            return find_items(lambda x: output_of(self.model.run(*x[0])), [(((self.chunks[0], ), {}), self.sizes[0])],
                              (0, )).images <= 1

    def batches(self, count: int) -> list[tuple]:
        """The first ``count`` images with their data samples, in chunks."""
        batches, left = [], count
        for index, chunk in enumerate(self.chunks):
            if left > 0:
                batches.append((chunk[:left], self.samples and self.samples[index][:left]))
            left -= len(chunk)
        return batches

    def images(self, count: int) -> list:
        """The first ``count`` images, in chunks."""
        return [images for images, _ in self.batches(count)]

    def subset(self, count: int | None) -> 'CalibrationContext':
        """This context on its first ``count`` images, with proposals of its own; None: on all of them."""
        chunks, samples = zip(*self.batches(sum(self.sizes) if count is None else count))
        return replace(self, chunks=list(chunks), samples=None if samples[0] is None else list(samples),
                       decisions=Decisions())

    # ---- running ---------------------------------------------------------------------------------------------------
    def run(self, chunk: int, rows: torch.Tensor | None = None):
        """Raw outputs for a chunk, or some images of it; a second stage gets the proposals of the chunk's first run."""
        images, samples = self.chunks[chunk], self.samples and self.samples[chunk]
        if rows is not None:
            images, samples = images[rows], samples and [samples[i] for i in rows.tolist()]
        with self.decisions.pinned(self.model.architecture, chunk):
            return self.model.run(images, samples)

    def stream(self, mode: str | tuple[bool, bool] | Callable | None) -> Stream:
        """Activations of all chunks, before the first unit; proposals are those of the float model.

        ``mode`` is a name in ``MODES``, or what :class:`Stream` takes.
        """
        if isinstance(mode, str) and mode not in MODES:
            raise ValueError(f'unknown stream {mode!r}; {closest(mode, MODES)}')
        self.settle_decisions()
        return Stream(self.model, self.chunks, self.samples, self.decisions, self.cache,
                      MODES[mode] if isinstance(mode, str) else mode)

    @torch.no_grad()
    def settle_decisions(self) -> None:
        """Let the float model select proposals for every chunk, if it selects any and has not yet."""
        if not self.decisions.settled and decoders(self.model.architecture):
            with self.model.quantization(weights=False, activations=False):
                for index in range(len(self.chunks)):
                    self.run(index)
                    if not self.decisions.made:  # a detector of one stage
                        break
        self.decisions.settled = True

    def visits(self, kind: str, wanted: Callable[[Unit], bool] | None = None,
               streams: Sequence[str] | Mapping[str, object] = ('float', 'quantized'), name: str = '',
               ticks: int = 1) -> Iterator['Visit']:
        """Go from unit to unit in execution order.

            for visit in context.visits('block', streams=('float', 'quantized'), name='weights'):
                for (_, call, exact), (_, _, rough) in zip(visit.calls('float'), visit.calls('quantized')):
                    ...
                visit.record(loss=loss)

        A step changes what is inside ``visit.unit``; when the loop asks for the next visit, the unit is done: it is
        saved, and a resumed run begins after it. A stream is carried on when it is asked for, so a quantized one meets
        the final state of all units before.

        Args:
            kind (str): ``'layer'``, ``'block'``, ``'stage'`` or ``'net'``.
            wanted (Callable | None): ``wanted(unit)``: whether to stop there. Default: everywhere.
            streams (Sequence[str] | Mapping): Those to carry along: what :meth:`stream` takes, by name if that differs.
            name (str): Of the step, for progress and records.
            ticks (int): Parts that the progress of a unit is shown in, see :meth:`Visit.tick`. Default 1.
        """
        todo = [(i, u) for i, u in enumerate(self.model.units(kind))
                if (wanted is None or wanted(u)) and i >= self.first_unit]
        if not todo:
            return
        shares = self._shares([u for _, u in todo])
        modes = streams if isinstance(streams, Mapping) else {stream: stream for stream in streams}
        opened = {stream: self.stream(mode) for stream, mode in modes.items()}
        with self.progress(f'{name} ({len(todo)} units)', len(todo) * ticks) as bar:
            passed = 0.0
            for done, ((index, unit), share) in enumerate(zip(todo, shares)):
                pending = frozenset(n for _, u in todo[done:] for n in u.layers)
                yield Visit(self, unit, index, pending, opened, name, lambda part, text, passed=passed, share=share:
                            bar.update(min(passed * ticks + part * share, len(todo) * ticks), text))
                self.unit_done(index)
                passed = passed + share if done + 1 < len(todo) else float(len(todo))
                bar.update(passed * ticks, unit.name or 'net')

    def _shares(self, units: list[Unit]) -> list[float]:
        """How much of the work each unit is, 1 on average: by its operations, and a little for being one at all."""
        macs: dict[str, int] = {}
        for call, count in macs_of_calls(self.model.architecture, self.model.flow):
            macs[call.name] = macs.get(call.name, 0) + count
        own = [sum(macs.get(name, 0) for name in unit.layers) for unit in units]
        mean = sum(own) / len(own)
        return [0.1 + 0.9 * n / mean if mean else 1.0 for n in own]

    def seed_for(self, unit: int) -> int:
        """Seed of one unit in this step: independent of what ran before, so that resumed runs agree."""
        return (self.seed * 1_000_003 + self.step_index * 10_007 + unit * 101) % 2**31


def labels_of(samples: list[list] | None) -> list[torch.Tensor] | None:
    """Class numbers (images,) of each chunk's data samples; None where an image has none, or several."""
    labels = [[getattr(x, 'gt_label', None) for x in chunk] for chunk in samples or ()]
    if not labels or any(not isinstance(x, torch.Tensor) or x.numel() != 1 for chunk in labels for x in chunk):
        return None
    return [torch.stack([x.reshape(()) for x in chunk]).long() for chunk in labels]


class Visit:
    """The stop at one unit, the one with number ``index`` of its kind.

    Attributes:
        seed (int): Of its random numbers: the same in a resumed run.
        pending (frozenset[str]): Layers of this unit and of all that are still to be visited, see :meth:`Stream.walk`.
        streams (dict[str, Stream]): By name; before or at the entry of the unit.
        items (dict[tuple, Items]): How its calls keep items, by the keys of :meth:`gather`, from the first one on.
        images (Mapping[tuple, float]): What a step wants before that: images of an item, by the same keys.
    """

    def __init__(self, context: CalibrationContext, unit: Unit, index: int, pending: frozenset[str],
                 streams: dict[str, Stream], name: str, update: Callable[[float, str], None]) -> None:
        self.context, self.unit, self.index, self.pending, self.streams = context, unit, index, pending, streams
        self.seed, self.items, self.images = context.seed_for(index), {}, {}
        self._name, self._update = name, update
        self._runs: dict[tuple[int, bool], UnitRun] = {}

    def mode(self, stream: str):
        """Context manager: quantize what a stream quantizes."""
        return self.streams[stream].mode()

    def gather(self, stream: str) -> dict[tuple, UnitInput]:
        """Inputs of the unit on all images, by (shape of an image, number of the unit's call); see :attr:`items`."""
        return self.streams[stream].gather(self.unit, self.pending, self.items, self.images)

    def calls(self, stream: str) -> Iterator[tuple[int, int, tuple[tuple, dict]]]:
        """Yields (chunk, call of the unit, (args, kwargs)), without gradients; as often as it is asked.

        Several streams may be asked in turns: each has its own mode, whatever mode is active. To see inside, hook
        modules around :meth:`run` only: while the stream moves, hooks see its placeholders too.
        """
        return self.streams[stream].walk(self.unit, self.pending)

    def run(self, arguments: tuple[tuple, dict], call: int = 0, activation: bool = True):
        """Output of a call of the unit in the mode that is active, one tensor or a tuple; see :class:`UnitRun`."""
        key = call, activation
        if key not in self._runs:
            self._runs[key] = UnitRun(self.context.model, self.unit, call, activation=activation)
        return self._runs[key].on(arguments)

    def outputs(self, stream: str, activation: bool = True) -> Iterator[tuple[int, int, object]]:
        """Yields (chunk, call, output) of the unit in the stream's mode, on the stream's inputs."""
        for chunk, call, arguments in self.calls(stream):
            with self.mode(stream):
                output = self.run(arguments, call, activation)
            yield chunk, call, output

    def tick(self, done: float, text: str = '') -> None:
        """Show that ``done`` ticks of this unit are over."""
        self._update(done, f'{self.unit.name or "net"} {text}')

    def record(self, kind: str = 'unit', **facts) -> None:
        """Report plain facts about this unit."""
        self.context.records.append(dict(kind=kind, step=self._name, unit=self.unit.name, **facts))
