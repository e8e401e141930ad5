"""The quadratic fit of loss against p, and when its vertex may be trusted."""
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Parabola:
    """A least-squares parabola through (p, loss)."""
    coefficients: tuple[float, ...] | None  # of p^2, p and 1; None where no fit was possible
    vertex: float | None  # its minimum, None where it must not be used
    branch: str  # 'vertex', or why there is none: 'concave', 'outside', 'too few values'


def fit_parabola(ps: Sequence[float], losses: Sequence[float]) -> Parabola:
    """Fit loss against p; samples whose loss is not finite are left out.

    The vertex is used only if the parabola opens upwards and the vertex lies between the smallest and the largest
    sampled p; at least three different values of p are needed.
    """
    kept = sorted({float(p): float(loss) for p, loss in zip(ps, losses, strict=True) if math.isfinite(loss)}.items())
    if len(kept) < 3:
        return Parabola(None, None, 'too few values')
    x, y = np.array(kept).T
    a, b, c = (float(v) for v in np.polyfit(x, y, 2))
    if a <= 0:
        return Parabola((a, b, c), None, 'concave')
    vertex = -b / (2 * a)
    within = x[0] <= vertex <= x[-1]
    return Parabola((a, b, c), vertex if within else None, 'vertex' if within else 'outside')
