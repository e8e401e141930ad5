"""The inner loop: fit some tensors to a problem."""
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from mmengine.logging import print_log

from mmquant.reconstruction.optimizers import ParamGroup, can_be_captured, make_optimizers, set_rates
from mmquant.reconstruction.problem import Problem
from mmquant.utils.distributed import alone, average_gradients, share

DIVERGED = 'lower the learning rate, or switch --amp off'
TOO_LARGE = 'nothing has been trained yet: check the sizes of weights and calibration images, or switch --amp off'
WARMUP = 3  # ordinary calls before a step is captured


@dataclass
class Pushes:
    """The regularizers, by name, of a fit of so many steps; ``fit`` is what they are asked about."""
    regularizers: Mapping
    fit: object = None
    num_iters: int = 1

    def at(self, step: int) -> dict[str, float]:
        """Names of those that are active at ``step``, each with its number."""
        return {name: r.push(step, self.num_iters) for name, r in self.regularizers.items()
                if r.active(step, self.num_iters)}


class GraphedUpdate:
    """``update(rows, pushes)`` on a GPU; after a few ordinary calls, a replay of the captured CUDA graph.

    A step of hundreds of small kernels becomes one launch. Each set of active regularizers is a graph of its own. Where
    capturing fails, all calls stay ordinary.

    ``update`` computes gradients from ``batch_size`` rows (int64) and the active regularizers' parameters (name ->
    scalar tensor), changes what trains, and returns the loss; ``clear()`` drops all gradients.
    """

    def __init__(self, update: Callable, clear: Callable, batch_size: int, device: torch.device) -> None:
        self.update, self.clear, self.device = update, clear, device
        self.rows = torch.zeros(batch_size, dtype=torch.long, device=device)
        self.scalars: dict[str, torch.Tensor] = {}
        self.stream, self.usable = torch.cuda.Stream(device), True
        self.calls: Counter = Counter()
        self.graphs: dict[tuple, tuple] = {}

    def __call__(self, rows: torch.Tensor, pushes: Mapping[str, float]) -> torch.Tensor:
        """One step; the returned loss is overwritten by the next one."""
        self.rows.copy_(rows, non_blocking=True)
        for name, value in pushes.items():
            if name not in self.scalars:
                self.scalars[name] = torch.ones((), device=self.device)
            self.scalars[name].fill_(value)
        active = tuple(pushes)
        self.calls[active] += 1
        if self.usable and self.calls[active] > WARMUP and active not in self.graphs:
            self._capture(active)
        if self.usable and active in self.graphs:
            self.graphs[active][0].replay()
            return self.graphs[active][1]
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            self.clear()
            loss = self._run(active)
        torch.cuda.current_stream().wait_stream(self.stream)
        return loss

    def _run(self, active: tuple[str, ...]) -> torch.Tensor:
        return self.update(self.rows, {name: self.scalars[name] for name in active})

    def _capture(self, active: tuple[str, ...]) -> None:
        graph = torch.cuda.CUDAGraph()
        self.clear()
        try:
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode='thread_local'):
                loss = self._run(active)
        except RuntimeError as error:
            self.usable = False
            print_log(f'reconstruction runs without CUDA graphs, several times slower for small units, because '
                      f'this unit cannot be captured: {str(error).splitlines()[0]}', 'current', logging.WARNING)
        else:
            self.graphs[active] = graph, loss


def make_update(problem: Problem, optimizers: Sequence, pushes: Pushes, batch_size: int) -> Callable:
    """One training step as ``update(rows, {name of an active regularizer: its number})`` -> loss without penalties."""

    def clear():
        for optimizer in optimizers:
            optimizer.zero_grad()

    def step(rows, active):
        for name, push in active.items():
            pushes.regularizers[name].announce(pushes.fit, push)
        loss = total = problem.loss_on(rows)
        for name, push in active.items():
            total = total + pushes.regularizers[name].weight * pushes.regularizers[name].penalty(pushes.fit, push)
        total.backward()
        for optimizer in optimizers:
            optimizer.step()
        return loss.detach()

    def cleared_step(rows, active):
        clear()
        return step(rows, active)

    if problem.on_gpu and alone() and can_be_captured(optimizers):
        return GraphedUpdate(step, clear, batch_size, problem.device)
    return cleared_step


def fit(problem: Problem, groups: Sequence[ParamGroup], num_iters: int, batch_size: int, seed: int,
        pushes: Pushes | None = None, after_step: Callable | None = None, report: Callable | None = None) -> float:
    """Train some tensors; returns the mean loss, without penalties, of the last tenth of the steps.

    Args:
        groups (Sequence[ParamGroup]): At least one, none of them empty.
        num_iters, batch_size, seed (int): Steps, rows a step (in all processes), and of how they are drawn.
        after_step (Callable | None): ``after_step(step)`` runs after each update; what it returns, if not None, are the
            groups that train from now on, with optimizers that begin anew.
        report (Callable | None): ``report(step, loss)`` now and then; FloatingPointError if that loss is not finite.
    """
    sampler = torch.Generator().manual_seed(seed)
    batch_size, pushes = min(share(batch_size), problem.num_rows), pushes or Pushes({})

    def begin(groups):
        optimizers = make_optimizers(groups)
        for optimizer in optimizers:
            average_gradients(optimizer)
        return optimizers, make_update(problem, optimizers, pushes, batch_size)

    optimizers, update = begin(groups)
    recent, count, every = torch.zeros((), device=problem.device), 0, max(1, num_iters // 20)
    for step in range(num_iters):
        rows = problem.draw(sampler, batch_size)
        set_rates(optimizers, step / num_iters)
        loss = update(rows, pushes.at(step))
        if step >= num_iters * 0.9:
            recent, count = recent + loss, count + 1
        if report and (step % every == 0 or step == num_iters - 1):
            value = loss.item()
            if not math.isfinite(value):
                raise FloatingPointError(f'the reconstruction loss became {value} at step {step} of {num_iters}; '
                                         f'{DIVERGED if step else TOO_LARGE}')
            report(step + 1, value)
        changed = after_step(step) if after_step else None
        if changed is not None:
            optimizers, update = begin(changed)
    return (recent / max(1, count)).item()
