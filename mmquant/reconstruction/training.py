"""The inner loop: fit some parameters of one unit to its float output, and measure units on held-out samples."""
from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mmquant.reconstruction.graphed import GraphedUpdate
from mmquant.reconstruction.unit_data import pick


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

    def loss_on(self, rows: torch.Tensor) -> torch.Tensor:
        """Loss on some rows."""
        data, target = pick(self.inputs, rows), pick(self.targets, rows)
        weight = None if self.weight is None else pick(self.weight, rows)
        with autocast(self.device, self.amp):
            prediction = self.forward(data)
        if not isinstance(target, tuple):
            return self.loss(prediction, target, self.channel_dim, weight)
        losses = [self.loss(p, t, channel_dim(t, self.channel_dim), w)
                  for p, t, w in zip(prediction, target, weight or (None, ) * len(target))]
        return sum(losses) / len(losses)

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
        """Loss on the held-out rows, in float32."""
        exact = self if not self.amp else Problem(**{**vars(self), 'amp': False})
        parts = self.held_rows.split(size)
        return sum(exact.loss_on(rows).item() * len(rows) for rows in parts) / max(1, len(self.held_rows))


@dataclass(frozen=True)
class RoundingSchedule:
    """When and how hard the rounding regularizer pushes (AdaRound, BRECQ).

    Attributes:
        weight (float): Factor of the regularizer, default 0.01 (0.1 for MobileNetV2).
        beta_start, beta_end (float): Exponent, falls linearly after the warm-up; 20 to 2.
        warmup (float): Share of the iterations without the regularizer, in [0, 1).
    """
    weight: float = 0.01
    beta_start: float = 20.0
    beta_end: float = 2.0
    warmup: float = 0.2

    def __post_init__(self) -> None:
        if self.weight < 0 or not 0 <= self.warmup < 1 or min(self.beta_start, self.beta_end) < 1:
            raise ValueError(f'expected weight >= 0, 0 <= warmup < 1 and exponents >= 1, got {self}')

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


def autocast(device: torch.device, on: bool):
    """bfloat16 autocast, or nothing."""
    return torch.autocast(device.type, torch.bfloat16) if on else contextlib.nullcontext()


def split_rows(num_rows: int, held: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(train_rows, held_rows): ``min(held, num_rows // 8)`` rows are held out; with fewer than 8 rows both are all."""
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))
    held = min(held, num_rows // 8)
    return (order[held:], order[:held]) if held else (order, order)


def make_adam(params: list, lr: float) -> torch.optim.Adam:
    """Adam, fused where the parameters allow; on a GPU its rate is a tensor, so that captured steps can change it."""
    device = params[0].device
    on_gpu = device.type == 'cuda'
    rate = torch.tensor(lr, device=device) if on_gpu else lr
    return torch.optim.Adam(params, lr=rate, fused=on_gpu or device.type == 'cpu', capturable=on_gpu)


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Change the learning rate."""
    for group in optimizer.param_groups:
        if isinstance(group['lr'], torch.Tensor):
            group['lr'].fill_(lr)
        else:
            group['lr'] = lr


def fit(problem: Problem, params: list, num_iters: int, batch_size: int, lr: float, seed: int, cosine: bool = False,
        schedule: RoundingSchedule | None = None, regularizer: Callable | None = None,
        after_step: Callable | None = None, report: Callable | None = None) -> float:
    """Adam on ``params``; returns the mean reconstruction loss of the last tenth of the steps.

    Args:
        problem (Problem): What to fit.
        params (list[Tensor]): Leaf tensors that require gradients.
        num_iters, batch_size (int): Steps, and rows a step, drawn without replacement.
        lr (float): Learning rate; falls to 0 along a cosine if ``cosine``.
        seed (int): Seed of the row sampler.
        schedule (RoundingSchedule | None): When the regularizer counts, and its exponent.
        regularizer (Callable | None): ``regularizer(beta)`` -> scalar added to the loss; ``beta`` is a float, on a GPU
            a scalar tensor.
        after_step (Callable | None): ``after_step(step)`` runs behind each update.
        report (Callable | None): ``report(step, loss)`` now and then.

    Raises:
        FloatingPointError: If the loss is NaN or infinite.
    """
    optimizer = make_adam(params, lr)
    sampler = torch.Generator().manual_seed(seed)
    batch_size = min(batch_size, problem.num_rows)

    def clear():
        optimizer.zero_grad(set_to_none=True)

    def update(rows, beta):
        loss = problem.loss_on(rows)
        total = loss if beta is None else loss + schedule.weight * regularizer(beta)
        total.backward()
        optimizer.step()
        return loss.detach()

    step_on = GraphedUpdate(update, clear, batch_size, problem.device) if problem.on_gpu else None
    recent, count, every = torch.zeros((), device=problem.device), 0, max(1, num_iters // 20)
    for step in range(num_iters):
        rows = problem.draw(sampler, batch_size)
        beta = schedule.beta(step, num_iters) if schedule and schedule.active(step, num_iters) else None
        if cosine:
            set_rate(optimizer, lr * 0.5 * (1 + math.cos(math.pi * step / num_iters)))
        if step_on is None:
            clear()
            loss = update(rows, beta)
        else:
            loss = step_on(rows, beta)
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
