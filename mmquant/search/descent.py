"""Gradient descent on the logarithms of all clips."""
from __future__ import annotations

import math

import torch

from mmquant.search.problem import ClipProblem
from mmquant.utils.distributed import share


def minibatches(sizes: list[int], batch_size: int, generator: torch.Generator):
    """Endless (chunk, rows): each image once a round, in random order, a batch from one chunk."""
    while True:
        batches = [(chunk, rows) for chunk, size in enumerate(sizes)
                   for rows in torch.randperm(size, generator=generator).split(batch_size)]
        for i in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[i]


def descend(problem: ClipProblem, num_steps: int, batch_size: int, lr: float, num_checks: int, seed: int) -> None:
    """Adam from the origin with a cosine decay of its rate; evaluates the whole loss ``num_checks`` times.

    Steps whose gradient is not finite are skipped.

    Args:
        problem (ClipProblem): Entered.
        num_steps, batch_size (int): Steps, and images a step in all processes.
        lr (float): Rate at the start, in log clip.
        num_checks (int): Looks at the whole loss, the last one at the end.
        seed (int): Of the order of images.
    """
    x = torch.zeros(problem.size, dtype=torch.float64)
    optimizer = torch.optim.Adam([x], lr=lr, betas=(0.9, 0.99))
    batches = minibatches(problem.context.sizes, share(batch_size), torch.Generator().manual_seed(seed))
    checks = {round(num_steps * (k + 1) / num_checks) for k in range(num_checks)}
    for step in range(num_steps):
        _, slopes = problem.gradient(x.tolist(), *next(batches))
        x.grad = torch.tensor(slopes, dtype=torch.float64)
        if torch.isfinite(x.grad).all():
            optimizer.param_groups[0]['lr'] = lr * 0.5 * (1 + math.cos(math.pi * step / num_steps))
            optimizer.step()
        if step + 1 in checks:
            problem.loss(x.tolist())
