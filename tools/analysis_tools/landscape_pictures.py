"""Pictures of the loss over clips, as PNG files."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure


def _save(figure: Figure, path: str) -> str:
    figure.savefig(path, dpi=120, bbox_inches='tight')
    return path


def plot_norms(path: str, ps: Sequence[float], losses: Sequence[float], coefficients: Sequence[float] | None,
               vertex: float | None, title: str) -> str:
    """Loss against p with the fitted parabola and its vertex; returns the path."""
    figure = Figure(figsize=(5, 4))
    axes = figure.subplots()
    axes.plot(ps, losses, 'o', label='layer-wise optima')
    if coefficients is not None:
        grid = np.linspace(min(ps), max(ps), 100)
        axes.plot(grid, np.polyval(coefficients, grid), label='quadratic fit')
    if vertex is not None:
        axes.axvline(vertex, linestyle='--', color='grey', label=f'p* = {vertex:.2f}')
    axes.set(xlabel='p', ylabel='calibration loss', title=title)
    axes.legend()
    return _save(figure, path)


def plot_surface(path: str, axis: np.ndarray, losses: np.ndarray, names: tuple[str, str], title: str) -> str:
    """Contour and 3-D view of the loss over two clips; returns the path.

    Args:
        path (str): PNG file.
        axis (ndarray): Logarithms of the clips' factors, shape (n,).
        losses (ndarray): Shape (n, n), rows are the first clip; infinite values are left white.
        names (tuple[str, str]): The two clips.
        title (str): Above the picture.
    """
    shown = np.where(np.isfinite(losses), losses, np.nan)
    x, y = np.meshgrid(np.exp(axis), np.exp(axis), indexing='ij')
    figure = Figure(figsize=(11, 4.5))
    flat, solid = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2, projection='3d')
    figure.colorbar(flat.contourf(x, y, shown, levels=25), ax=flat)
    flat.plot([1], [1], 'r+')
    solid.plot_surface(x, y, shown, cmap='viridis')
    solid.set_zlabel('calibration loss')
    for axes in (flat, solid):
        axes.set(xlabel=f'factor, {names[0]}', ylabel=f'factor, {names[1]}')
    figure.suptitle(title)
    return _save(figure, path)


def plot_hessian(path: str, hessian: np.ndarray, names: Sequence[str], title: str) -> str:
    """Absolute entries of a Hessian (n, n) on a logarithmic scale; returns the path."""
    side = 3 + 0.35 * len(names)
    figure = Figure(figsize=(side + 1, side))
    axes = figure.subplots()
    image = axes.imshow(np.log10(np.abs(hessian) + 1e-12))
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
    axes.set_yticks(range(len(names)), names, fontsize=6)
    axes.set_title(title)
    figure.colorbar(image, ax=axes, label='log10 |H|')
    return _save(figure, path)
