"""One unit as a problem: rows in, loss out, for fitting and for measuring on held-out rows; and several as one."""
import contextlib
import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.utils._pytree import tree_map_only

from mmquant.calibration.items import Items
from mmquant.calibration.unit_inputs import pick
from mmquant.utils.distributed import mean_over_ranks
from mmquant.utils.hardware import autocast, in_bfloat16


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
            # the channel axis of one of several outputs: 1 of maps, the last one of tokens and rows
            losses = [self.loss(p, t, {4: 1, 3: -1, 2: -1}.get(t.dim(), self.channel_dim), w)
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
    items: Items = Items({})  # what a row is

    def loss_on(self, rows: torch.Tensor) -> torch.Tensor:
        """Loss of a step of the fit on some rows: mixed, in bfloat16 with ``amp``."""
        return self._loss(rows, self.mixer, self.amp)

    @torch.no_grad()
    def held_loss(self, size: int = 64) -> float:
        """Loss on the held-out rows of all processes, in passes of ``size`` rows, in float32 and without mixing."""
        parts = self.held_rows.split(self.items.rows(size))
        total = sum(self._loss(rows, None, False).item() * len(rows) for rows in parts)
        return mean_over_ranks(total / max(1, len(self.held_rows)))

    def _loss(self, rows: torch.Tensor, mixer, amp: bool) -> torch.Tensor:
        # in the order of the terms: masks are drawn in it
        data = {name: self._data(name, rows, mixer, amp) for name in dict.fromkeys(c.inputs for c in self.comparisons)}
        with autocast(self.device, amp), _mixing_inside(self.quantizers, mixer):
            predictions = {name: self.forward(x) for name, x in data.items()}
            results = [predictions[c.inputs] if c.tail is None else c.tail(predictions[c.inputs], rows)
                       for c in self.comparisons]
        return functools.reduce(operator.add, (c.value(x, rows) for c, x in zip(self.comparisons, results)))

    def _data(self, name: str | None, rows: torch.Tensor, mixer, amp: bool):
        if name is None and mixer is not None:
            data = mixer(*(pick(self.streams[stream], rows) for stream in mixer.streams))
        else:
            data = pick(self.streams[name or next(iter(self.streams))], rows)
        return tree_map_only(torch.Tensor, in_bfloat16, data) if amp and self.half_inputs else data

    def draw(self, sampler: torch.Generator, count: int) -> torch.Tensor:
        """``count`` train rows without replacement, all if there are fewer; fewer where a row holds several images."""
        return self.train_rows[torch.randperm(len(self.train_rows), generator=sampler)[:self.items.rows(count)]]

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


@dataclass(frozen=True)
class RaggedProblem:
    """Problems of a unit whose samples differ in shape: images of several sizes, heads shared over pyramid levels.

    The loss of a step is the mean over the calls of the unit (pyramid levels), for the same images of one size; the
    size is drawn by its share of the images.
    """
    groups: list[list[Problem]]  # for each size of images, one problem a call

    @property
    def parts(self) -> list[Problem]:
        return [problem for group in self.groups for problem in group]

    @property
    def device(self) -> torch.device:
        return self.groups[0][0].device

    @property
    def on_gpu(self) -> bool:
        return False  # shapes change from step to step

    @property
    def num_rows(self) -> int:
        """Rows to draw from, of the largest group."""
        return max(p.num_rows for group in self.groups for p in group)

    def draw(self, sampler: torch.Generator, count: int) -> tuple[int, list[torch.Tensor]]:
        """Number of a group, and rows for each of its problems; calls with as many rows get the same ones."""
        shares = torch.tensor([float(group[0].num_rows) for group in self.groups])
        index = int(torch.multinomial(shares, 1, generator=sampler)) if len(shares) > 1 else 0
        drawn: dict[int, torch.Tensor] = {}
        for problem in self.groups[index]:
            if problem.num_rows not in drawn:
                drawn[problem.num_rows] = problem.draw(sampler, count)
        return index, [drawn[p.num_rows] for p in self.groups[index]]

    def loss_on(self, rows: tuple[int, list[torch.Tensor]]) -> torch.Tensor:
        """Loss on what :meth:`draw` returned."""
        index, chosen = rows
        losses = [p.loss_on(r) for p, r in zip(self.groups[index], chosen)]
        return sum(losses) / len(losses)

    def held_loss(self, size: int = 64) -> float:
        """Loss on the held-out rows, in float32: mean over calls, over sizes by their share of the rows."""
        counts = [len(group[0].held_rows) for group in self.groups]
        means = [sum(p.held_loss(size) for p in group) / len(group) for group in self.groups]
        return sum(n * m for n, m in zip(counts, means)) / max(1, sum(counts))


@contextlib.contextmanager
def _mixing_inside(quantizers: tuple, mixer):
    """Let activation quantizers mix their result with their input, if the mixer does; never outside of this block."""
    try:
        for quantizer in quantizers if mixer is not None and mixer.inside else ():
            quantizer.mix = mixer.within
        yield
    finally:
        for quantizer in quantizers:
            quantizer.mix = None


def split_rows(num_rows: int, held: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(train_rows, held_rows): ``min(held, num_rows // 8)`` rows are held out; with fewer than 8 rows both are all."""
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))
    held = min(held, num_rows // 8)
    return (order[held:], order[:held]) if held else (order, order)
