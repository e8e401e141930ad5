"""The shape of the loss over clips (LAPQ, section 3): curves, surfaces, Hessian, Gaussian curvature, separability."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmquant.search import ClipProblem


@dataclass(frozen=True)
class Curvature:
    """Second-order picture of the loss at one point, over the logarithms of some clips.

    Attributes:
        names (tuple[str, ...]): The clips.
        loss (float): Loss at the point.
        gradient (np.ndarray): Shape (n,).
        hessian (np.ndarray): Shape (n, n), symmetric.
    """
    names: tuple[str, ...]
    loss: float
    gradient: np.ndarray
    hessian: np.ndarray

    @property
    def gaussian(self) -> tuple[float, float]:
        """Gaussian curvature of the graph of the loss, ``det(H) / (1 + |g|^2)^((n + 2) / 2)``: (sign, log10 of |K|)."""
        sign, log_det = np.linalg.slogdet(self.hessian)
        n = len(self.gradient)
        log_k = log_det - (n + 2) / 2 * np.log1p(self.gradient @ self.gradient)
        return float(sign), float(log_k / np.log(10))

    @property
    def coupling(self) -> float:
        """Share of the Hessian's squared entries off its diagonal, in 0..1: 0 for a separable loss."""
        total = np.square(self.hessian).sum()
        return float(1 - np.square(np.diag(self.hessian)).sum() / total) if total > 0 else 0.0


def chosen_clips(size: int, count: int) -> list[int]:
    """``count`` coordinates spread evenly over ``size``."""
    count = min(count, size)
    return [round(k * (size - 1) / max(1, count - 1)) for k in range(count)]


def surface(problem: ClipProblem, i: int, j: int, span: float, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Loss over two clips around the origin.

    Args:
        problem (ClipProblem): Entered.
        i, j (int): The coordinates.
        span (float): From ``-span`` to ``span``, in log clip.
        points (int): Along each axis.

    Returns:
        The axis, shape (points,), and losses of shape (points, points); rows are coordinate ``i``.
    """
    axis = np.linspace(-span, span, points)
    values = np.empty((points, points))
    first, second = sorted((i, j))
    for a, u in enumerate(axis):
        for b, v in enumerate(axis):
            values[a, b] = problem.loss(_point(problem.size, {first: u, second: v}))
    return axis, values if i <= j else values.T


def curvature(problem: ClipProblem, clips: Sequence[int], step: float) -> Curvature:
    """Gradient and Hessian at the origin by central differences, over some clips.

    Rounding makes the loss a staircase at small scale: the step has to span many stairs.

    Args:
        problem (ClipProblem): Entered.
        clips (Sequence[int]): Coordinates, without repetition.
        step (float): In log clip, > 0.
    """
    n, size = len(clips), problem.size
    centre = problem.loss(_point(size, {}))
    plus, minus = (np.array([problem.loss(_point(size, {i: s})) for i in clips]) for s in (step, -step))
    gradient = (plus - minus) / (2 * step)
    hessian = np.diag((plus - 2 * centre + minus) / step**2)
    for a in range(n):
        for b in range(a + 1, n):
            i, j = clips[a], clips[b]
            mixed = [problem.loss(_point(size, {i: s * step, j: t * step})) for s in (1, -1) for t in (1, -1)]
            hessian[a, b] = hessian[b, a] = (mixed[0] - mixed[1] - mixed[2] + mixed[3]) / (4 * step**2)
    return Curvature(tuple(problem.clips[i].name for i in clips), centre, gradient, hessian)


def _point(size: int, moves: dict[int, float]) -> list[float]:
    return [moves.get(k, 0.0) for k in range(size)]
