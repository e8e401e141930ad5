"""Replay of a training step as a CUDA graph: a step of hundreds of small kernels becomes one launch."""
import logging
from collections import Counter
from collections.abc import Callable, Mapping

import torch
from mmengine.logging import print_log

WARMUP = 3


class GraphedUpdate:
    """``update(rows, pushes)`` on a GPU; after a few ordinary calls, a replay of the captured one.

    Each set of active regularizers is a graph of its own. Where capturing fails, all calls stay ordinary.

    ``update`` computes gradients from ``batch_size`` rows (int64) and the active regularizers' parameters (name ->
    scalar tensor), changes what trains, and returns the loss; ``clear()`` drops all gradients.
    """

    def __init__(self, update: Callable, clear: Callable, batch_size: int, device: torch.device) -> None:
        self.update, self.clear, self.device = update, clear, device
        self.rows = torch.zeros(batch_size, dtype=torch.long, device=device)
        self.scalars: dict[str, torch.Tensor] = {}
        self.stream = torch.cuda.Stream(device)
        self.calls: Counter = Counter()
        self.graphs: dict[tuple, tuple] = {}
        self.usable = True

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
            graph, loss = self.graphs[active]
            graph.replay()
            return loss
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
