"""The inner loop: fit some parameters of one unit to its float output, and measure units on held-out samples."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch.utils._pytree import tree_map_only

from mmquant.calibration.unit_inputs import pick
from mmquant.reconstruction.cuda_graph import GraphedUpdate
from mmquant.reconstruction.rest_of_net import TailTerm
from mmquant.utils.amp import autocast, in_bfloat16
from mmquant.utils.distributed import alone, average_gradients, mean_over_ranks, share


@dataclass(frozen=True)
class Problem:
    """One unit to reconstruct.

    Attributes:
        forward (Callable): Data rows -> prediction, with gradients.
        inputs, targets (Tensor | Rows | tuple): All calibration rows; a tuple for several tensors.
        weight (Tensor | None): Importance of each target element.
        loss (Callable): ``loss(prediction, target, channel_dim, weight)``.
        channel_dim (int): Channel axis of the target.
        train_rows, held_rows (Tensor): Disjoint row numbers for fitting and for choosing.
        device (torch.device): Where the unit lives.
        amp (bool): Run the unit in bfloat16 autocast.
        half_inputs (bool): With ``amp``, give the unit its inputs in bfloat16 too; for units that do not quantize them.
        mix (Callable | None): ``mix(inputs, float_inputs)`` -> what the unit is given while it is fitted.
        float_inputs (Tensor | Rows | tuple | None): The float prefix's rows, where ``mix`` needs them.
        tail (TailTerm | None): A second loss at the end of what follows.
    """
    forward: Callable
    inputs: object
    targets: object
    weight: object
    loss: Callable
    channel_dim: int
    train_rows: torch.Tensor
    held_rows: torch.Tensor
    device: torch.device
    amp: bool = False
    mix: Callable | None = None
    float_inputs: object = None
    tail: TailTerm | None = None
    half_inputs: bool = False

    def loss_on(self, rows: torch.Tensor) -> torch.Tensor:
        """Loss on some rows."""
        data, target = pick(self.inputs, rows), pick(self.targets, rows)
        if self.mix is not None:
            data = self.mix(data, pick(self.float_inputs, rows))
        if self.amp and self.half_inputs:
            data = tree_map_only(torch.Tensor, in_bfloat16, data)
        weight = None if self.weight is None else pick(self.weight, rows)
        with autocast(self.device, self.amp):
            prediction = self.forward(data)
            behind = None if self.tail is None else self.tail.run(prediction, rows)
        if self.tail is not None:
            return self._with_tail(prediction, target, weight, behind, rows)
        if not isinstance(target, tuple):
            return self.loss(prediction, target, self.channel_dim, weight)
        losses = [self.loss(p, t, channel_dim(t, self.channel_dim), w)
                  for p, t, w in zip(prediction, target, weight or (None, ) * len(target))]
        return sum(losses) / len(losses)

    def _with_tail(self, prediction, target, weight, behind, rows) -> torch.Tensor:
        share = self.tail.share
        loss = share.weight * self.loss(behind, pick(self.tail.targets, rows), self.tail.channel_dim)
        if share.unit_weight == 0:
            return loss
        return loss + share.unit_weight * self.loss(prediction, target, self.channel_dim, weight)

    def draw(self, sampler: torch.Generator, count: int) -> torch.Tensor:
        """``count`` train rows without replacement, all if there are fewer."""
        return self.train_rows[torch.randperm(len(self.train_rows), generator=sampler)[:count]]

    @property
    def num_rows(self) -> int:
        """Rows to draw from."""
        return len(self.train_rows)

    @property
    def on_gpu(self) -> bool:
        """Whether all data of a step lie on a GPU, in shapes that do not change."""
        return isinstance(self.inputs, torch.Tensor) and self.inputs.device.type == 'cuda'

    @torch.no_grad()
    def held_loss(self, size: int = 64) -> float:
        """Loss on the held-out rows of all processes, in float32 and without mixing."""
        exact = replace(self, amp=False, mix=None)
        parts = self.held_rows.split(size)
        own = sum(exact.loss_on(rows).item() * len(rows) for rows in parts) / max(1, len(self.held_rows))
        return mean_over_ranks(own)


@dataclass(frozen=True)
class RoundingSchedule:
    """When and how hard the rounding regularizer pushes (AdaRound, BRECQ).

    Attributes:
        weight (float): Factor of the regularizer, default 0.01 (0.1 for MobileNetV2).
        relative (bool): Take the mean of the regularizer over the unit's weights, not the sum, and ``weight`` times the
            unit's loss with nearest rounding, so that a factor means the same for outputs of any magnitude and units of
            any size. Default False, as published.
        beta_start, beta_end (float): Exponent, falls linearly after the warm-up; 20 to 2.
        warmup (float): Share of the iterations without the regularizer, in [0, 1).
    """
    weight: float = 0.01
    beta_start: float = 20.0
    beta_end: float = 2.0
    warmup: float = 0.2
    relative: bool = False

    def __post_init__(self) -> None:
        if self.weight < 0 or not 0 <= self.warmup < 1 or min(self.beta_start, self.beta_end) < 1:
            raise ValueError(f'expected weight >= 0, 0 <= warmup < 1 and exponents >= 1, got {self}')

    def for_unit(self, loss: float, num_weights: int) -> 'RoundingSchedule':
        """The schedule of a unit with that loss with nearest rounding; itself unless ``relative``."""
        return replace(self, weight=self.weight * loss / num_weights, relative=False) if self.relative else self

    def active(self, step: int, num_iters: int) -> bool:
        """Whether the regularizer is on at ``step``."""
        return self.weight > 0 and step >= self.warmup * num_iters

    def beta(self, step: int, num_iters: int) -> float:
        """Exponent at ``step``: ``beta_start`` until the warm-up ends, ``beta_end`` at ``num_iters``."""
        if step < self.warmup * num_iters:
            return self.beta_start
        left = 1 - (step - self.warmup * num_iters) / ((1 - self.warmup) * num_iters)
        return self.beta_end + (self.beta_start - self.beta_end) * max(0.0, left)


def channel_dim(x: torch.Tensor, default: int) -> int:
    """Channel axis of one of several outputs: 1 of maps, the last one of tokens and rows."""
    return {4: 1, 3: -1, 2: -1}.get(x.dim(), default)


def split_rows(num_rows: int, held: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(train_rows, held_rows): ``min(held, num_rows // 8)`` rows are held out; with fewer than 8 rows both are all."""
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))
    held = min(held, num_rows // 8)
    return (order[held:], order[:held]) if held else (order, order)


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that share a learning rate.

    Attributes:
        params (list[Tensor]): Leaf tensors that require gradients.
        lr (float): Adam's rate.
        cosine (bool): Whether the rate falls to 0 along a cosine. Default False.
    """
    params: list
    lr: float
    cosine: bool = False


def make_adam(groups: Sequence[ParamGroup]) -> torch.optim.Adam:
    """Adam, fused where the parameters allow; on a GPU rates are tensors, which captured steps can read."""
    device = groups[0].params[0].device
    on_gpu = device.type == 'cuda'
    rated = [dict(params=g.params, lr=torch.tensor(g.lr, device=device) if on_gpu else g.lr) for g in groups]
    return torch.optim.Adam(rated, lr=rated[0]['lr'], fused=on_gpu or device.type == 'cpu', capturable=on_gpu)


def set_rates(optimizer: torch.optim.Optimizer, groups: Sequence[ParamGroup], progress: float) -> None:
    """Move the rates of groups with a cosine to where they belong at ``progress`` (0..1)."""
    for state, group in zip(optimizer.param_groups, groups, strict=True):
        if not group.cosine:
            continue
        lr = group.lr * 0.5 * (1 + math.cos(math.pi * progress))
        if isinstance(state['lr'], torch.Tensor):
            state['lr'].fill_(lr)
        else:
            state['lr'] = lr


def make_update(problem: Problem, optimizer: torch.optim.Optimizer, schedule: RoundingSchedule | None,
                roundings: Sequence, batch_size: int) -> Callable:
    """One training step as ``update(rows, beta)`` -> reconstruction loss; without regularizer where beta is None."""

    def clear():
        optimizer.zero_grad(set_to_none=True)

    def step(rows, beta):
        for rounding in roundings:
            rounding.beta = beta
        total = loss = problem.loss_on(rows)
        if beta is not None:
            total = loss + schedule.weight * sum(r.penalty for r in roundings if r.penalty is not None)
        total.backward()
        for rounding in roundings:
            rounding.beta = rounding.penalty = None
        optimizer.step()
        return loss.detach()

    def cleared_step(rows, beta):
        clear()
        return step(rows, beta)

    return GraphedUpdate(step, clear, batch_size, problem.device) if problem.on_gpu and alone() else cleared_step


def fit(problem: Problem, groups: Sequence[ParamGroup], num_iters: int, batch_size: int, seed: int,
        schedule: RoundingSchedule | None = None, roundings: Sequence = (), after_step: Callable | None = None,
        report: Callable | None = None) -> float:
    """Adam on some parameters; returns the mean reconstruction loss of the last tenth of the steps.

    Args:
        problem (Problem): What to fit.
        groups (Sequence[ParamGroup]): At least one, none of them empty.
        num_iters, batch_size (int): Steps, and rows a step (in all processes), drawn without replacement.
        seed (int): Seed of the row sampler.
        schedule (RoundingSchedule | None): When and how hard the roundings' regularizer pushes.
        roundings (Sequence[Rounding]): Whose regularizers are added to the loss.
        after_step (Callable | None): ``after_step(step)`` runs behind each update.
        report (Callable | None): ``report(step, loss)`` now and then.

    Raises:
        FloatingPointError: If the loss is NaN or infinite.
    """
    optimizer = make_adam(groups)
    sampler = torch.Generator().manual_seed(seed)
    average_gradients(optimizer)
    batch_size = min(share(batch_size), problem.num_rows)
    update = make_update(problem, optimizer, schedule, roundings, batch_size)
    recent, count, every = torch.zeros((), device=problem.device), 0, max(1, num_iters // 20)
    for step in range(num_iters):
        rows = problem.draw(sampler, batch_size)
        beta = schedule.beta(step, num_iters) if schedule and schedule.active(step, num_iters) else None
        set_rates(optimizer, groups, step / num_iters)
        loss = update(rows, beta)
        if after_step:
            after_step(step)
        if step >= num_iters * 0.9:
            recent, count = recent + loss, count + 1
        if report and (step % every == 0 or step == num_iters - 1):
            value = loss.item()
            if not math.isfinite(value):
                raise FloatingPointError(f'the reconstruction loss became {value} at step {step} of {num_iters}; lower '
                                         'the learning rate, or switch --amp off')
            report(step + 1, value)
    return (recent / max(1, count)).item()
