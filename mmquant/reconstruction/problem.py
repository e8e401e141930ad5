"""One unit as a problem: rows in, loss out, for fitting and for measuring on held-out rows."""
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.utils._pytree import tree_map_only

from mmquant.calibration.unit_inputs import pick
from mmquant.utils.distributed import mean_over_ranks
from mmquant.utils.hardware import autocast, in_bfloat16

_NOTHING = contextlib.nullcontext()


@dataclass(frozen=True)
class Comparison:
    """One term of the loss of a unit: what is compared with what."""
    loss: Callable  # loss(prediction, target, channel_dim, importance) -> scalar
    targets: object  # Tensor or Rows for all calibration rows; a tuple for several tensors
    channel_dim: int  # channel axis of the targets
    weight: float = 1.0
    importance: object = None  # weight of each target element
    inputs: str | None = None  # stream that the unit's input is taken from; None: the unit's own inputs, mixed or not
    tail: Callable | None = None  # tail(output, rows) -> what is compared; None: the unit's output itself

    def value(self, prediction, rows: torch.Tensor) -> torch.Tensor:
        """The weighted loss on some rows; the mean over tensors where there are several."""
        target = pick(self.targets, rows)
        importance = None if self.importance is None else pick(self.importance, rows)
        if isinstance(target, tuple):
            losses = [self.loss(p, t, channel_dim(t, self.channel_dim), w)
                      for p, t, w in zip(prediction, target, importance or (None, ) * len(target))]
            loss = sum(losses) / len(losses)
        else:
            loss = self.loss(prediction, target, self.channel_dim, importance)
        return loss if self.weight == 1 else self.weight * loss


@dataclass(frozen=True)
class Problem:
    """One unit to reconstruct, for images of one size and one of its calls."""
    forward: Callable  # data rows -> prediction, with gradients
    # All calibration rows of each input stream (Tensor, Rows, or a tuple for several tensors). The first one is what
    # the unit is given where nothing is mixed.
    streams: Mapping[str, object]
    comparisons: tuple[Comparison, ...]
    train_rows: torch.Tensor  # numbers of the rows to fit on
    held_rows: torch.Tensor  # and of those to choose by; disjoint
    device: torch.device  # where the unit lives
    amp: bool = False  # run the unit in bfloat16 autocast while it is fitted
    half_inputs: bool = False  # with amp, give it its inputs in bfloat16 too; for units that do not quantize them
    mixer: object = None  # mixes streams at the entry of the unit, and inside `quantizers`, while it is fitted
    quantizers: tuple = ()  # activation quantizers within the unit

    def loss_on(self, rows: torch.Tensor) -> torch.Tensor:
        """Loss of a step of the fit on some rows: mixed, in bfloat16 with ``amp``."""
        return self._loss(rows, self.mixer, self.amp)

    @torch.no_grad()
    def held_loss(self, size: int = 64) -> float:
        """Loss on the held-out rows of all processes, in passes of ``size`` rows, in float32 and without mixing."""
        parts = self.held_rows.split(size)
        own = sum(self._loss(rows, None, False).item() * len(rows) for rows in parts) / max(1, len(self.held_rows))
        return mean_over_ranks(own)

    def _loss(self, rows: torch.Tensor, mixer, amp: bool) -> torch.Tensor:
        # in the order of the terms: masks are drawn in it
        data = {c.inputs: None for c in self.comparisons}
        data = {name: self._data(name, rows, mixer, amp) for name in data}
        inside = _mixing_inside(self.quantizers, mixer) if mixer is not None and mixer.inside else _NOTHING
        with autocast(self.device, amp), inside:
            predictions = {name: self.forward(x) for name, x in data.items()}
            results = [predictions[c.inputs] if c.tail is None else c.tail(predictions[c.inputs], rows)
                       for c in self.comparisons]
        total, *others = (c.value(result, rows) for c, result in zip(self.comparisons, results))
        for loss in others:
            total = total + loss
        return total

    def _data(self, name: str | None, rows: torch.Tensor, mixer, amp: bool):
        if name is None and mixer is not None:
            data = mixer(*(pick(self.streams[stream], rows) for stream in mixer.streams))
        else:
            data = pick(self.streams[name or next(iter(self.streams))], rows)
        return tree_map_only(torch.Tensor, in_bfloat16, data) if amp and self.half_inputs else data

    def draw(self, sampler: torch.Generator, count: int) -> torch.Tensor:
        """``count`` train rows without replacement, all if there are fewer."""
        return self.train_rows[torch.randperm(len(self.train_rows), generator=sampler)[:count]]

    @property
    def parts(self) -> list['Problem']:
        return [self]

    @property
    def num_rows(self) -> int:
        return len(self.train_rows)

    @property
    def on_gpu(self) -> bool:
        """Whether all data of a step lie on a GPU, in shapes that do not change."""
        return all(isinstance(x, torch.Tensor) and x.device.type == 'cuda' for x in self.streams.values())


@contextlib.contextmanager
def _mixing_inside(quantizers: tuple, mixer):
    """Let activation quantizers mix their result with their input; never outside of this block."""
    try:
        for quantizer in quantizers:
            quantizer.mix = mixer.within
        yield
    finally:
        for quantizer in quantizers:
            quantizer.mix = None


def channel_dim(x: torch.Tensor, default: int) -> int:
    """Channel axis of one of several outputs: 1 of maps, the last one of tokens and rows."""
    return {4: 1, 3: -1, 2: -1}.get(x.dim(), default)


def split_rows(num_rows: int, held: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(train_rows, held_rows): ``min(held, num_rows // 8)`` rows are held out; with fewer than 8 rows both are all."""
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))
    held = min(held, num_rows // 8)
    return (order[held:], order[:held]) if held else (order, order)
