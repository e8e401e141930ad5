"""The inner loop: fit some tensors to a problem."""
import math
from collections.abc import Callable, Mapping, Sequence

import torch

from mmquant.reconstruction.cuda_graph import GraphedUpdate
from mmquant.reconstruction.optimizers import ParamGroup, can_be_captured, make_optimizers, set_rates
from mmquant.reconstruction.problem import Problem
from mmquant.utils.distributed import alone, average_gradients, share


class Pushes:
    """The regularizers, by name, of a fit of so many steps; ``fit`` is what they are asked about."""

    def __init__(self, regularizers: Mapping, fit: object = None, num_iters: int = 1) -> None:
        self.regularizers, self.fit, self.num_iters = regularizers, fit, num_iters

    def at(self, step: int) -> dict[str, float]:
        """Names of those that are active at ``step``, each with its number."""
        return {name: r.push(step, self.num_iters) for name, r in self.regularizers.items()
                if r.active(step, self.num_iters)}

    def announce(self, pushes: Mapping) -> None:
        """Before the unit runs."""
        for name, push in pushes.items():
            self.regularizers[name].announce(self.fit, push)

    def add_to(self, loss: torch.Tensor, pushes: Mapping) -> torch.Tensor:
        """``loss`` with the weighted penalties."""
        for name, push in pushes.items():
            regularizer = self.regularizers[name]
            loss = loss + regularizer.weight * regularizer.penalty(self.fit, push)
        return loss


def make_update(problem: Problem, optimizers: Sequence[torch.optim.Optimizer], pushes: Pushes,
                batch_size: int) -> Callable:
    """One training step as ``update(rows, {name of an active regularizer: its number})`` -> loss without penalties."""

    def clear():
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)

    def step(rows, active):
        pushes.announce(active)
        loss = problem.loss_on(rows)
        pushes.add_to(loss, active).backward()
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
        after_step (Callable | None): ``after_step(step)`` runs after each update; what it returns, if it is not None,
            are the groups that train from now on, with optimizers that begin anew.
        report (Callable | None): ``report(step, loss)`` now and then.

    Raises:
        FloatingPointError: If the loss is NaN or infinite.
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
                raise FloatingPointError(f'the reconstruction loss became {value} at step {step} of {num_iters}; lower '
                                         'the learning rate, or switch --amp off')
            report(step + 1, value)
        changed = after_step(step) if after_step else None
        if changed is not None:
            optimizers, update = begin(changed)
    return (recent / max(1, count)).item()
