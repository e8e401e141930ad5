"""Replay of a training step as a CUDA graph: a step of hundreds of small kernels becomes one launch."""
from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

import torch
from mmengine.logging import print_log

WARMUP = 3


class GraphedUpdate:
    """``update(rows, beta)`` on a GPU; after a few ordinary calls, a replay of the captured one.

    With and without a regularizer (``beta`` None) are two graphs. Where capturing fails, all calls stay ordinary.

    Args:
        update (Callable): ``update(rows, beta)`` computes gradients from rows (int64) and the exponent (a scalar tensor
            or None), changes the parameters, and returns the loss.
        clear (Callable): Drops all gradients.
        batch_size (int): Rows a step.
        device (torch.device): A CUDA device.
    """

    def __init__(self, update: Callable, clear: Callable, batch_size: int, device: torch.device) -> None:
        self.update, self.clear = update, clear
        self.rows = torch.zeros(batch_size, dtype=torch.long, device=device)
        self.beta = torch.ones((), device=device)
        self.stream = torch.cuda.Stream(device)
        self.calls: Counter = Counter()
        self.graphs: dict[bool, tuple] = {}
        self.usable = True

    def __call__(self, rows: torch.Tensor, beta: float | None) -> torch.Tensor:
        """One step; the returned loss is overwritten by the next one."""
        regularized = beta is not None
        self.rows.copy_(rows, non_blocking=True)
        if regularized:
            self.beta.fill_(beta)
        self.calls[regularized] += 1
        if self.usable and self.calls[regularized] > WARMUP:
            if regularized not in self.graphs:
                self._capture(regularized)
            if self.usable:
                graph, loss = self.graphs[regularized]
                graph.replay()
                return loss
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            self.clear()
            loss = self.update(self.rows, self.beta if regularized else None)
        torch.cuda.current_stream().wait_stream(self.stream)
        return loss

    def _capture(self, regularized: bool) -> None:
        graph = torch.cuda.CUDAGraph()
        self.clear()
        try:
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode='thread_local'):
                loss = self.update(self.rows, self.beta if regularized else None)
        except RuntimeError as error:
            self.usable = False
            print_log(f'reconstruction runs without CUDA graphs, several times slower for small units, because '
                      f'this unit cannot be captured: {str(error).splitlines()[0]}', 'current', logging.WARNING)
        else:
            self.graphs[regularized] = graph, loss
