"""Figures of a finished run, for the report and for visualizers. Plain matplotlib, without its global state."""
import contextlib
import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure

from mmquant.analysis.inspection import Histogram, Inspection
from mmquant.analysis.sensitivity import LayerSensitivity
from mmquant.models.cost import ModelCost

WEIGHTS, ACTIVATIONS, INK, FAINT, ALARM = '#2b6c99', '#c8702a', '#22303c', '#aab4bd', '#b3261e'
STYLE = {'font.size': 9, 'axes.spines.top': False, 'axes.spines.right': False, 'axes.edgecolor': FAINT,
         'axes.labelcolor': INK, 'text.color': INK, 'xtick.color': INK, 'ytick.color': INK, 'svg.fonttype': 'none',
         'font.family': 'sans-serif', 'legend.frameon': False, 'svg.hashsalt': 'mmquant', 'axes.titlelocation': 'left',
         'axes.titlesize': 10}
WIDTH = 10.5  # inches
COLUMNS = 6  # of small histograms
CUT = 2.0  # a bar of a small histogram is at most so many times as high as the second highest
ABOVE = dict(loc='lower left', bbox_to_anchor=(0, 1))  # of a legend
NAMED = 40  # layers whose names fit below a figure


@contextlib.contextmanager
def drawing(height: float, panels: int = 0, **shared):
    """A figure of the common width and its axes (of a row of panels, if asked for), while the common style holds."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout='constrained')
        FigureCanvasAgg(figure)
        yield figure, figure.subplots(1, panels, squeeze=False, **shared)[0] if panels else figure.add_subplot()


def to_array(figure: Figure) -> np.ndarray:
    """Pixels (height, width, 3), uint8, RGB."""
    with rc_context(STYLE):
        figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def accuracy_figure(stages: list[dict]) -> Figure:
    """The first metric after each evaluated step; the float model as a line."""
    key = next(k for s in stages for k in s['metrics'])
    names, values = [s['name'] for s in stages], [s['metrics'].get(key, 0.0) for s in stages]
    shown = [v if math.isfinite(v) else 0.0 for v in values]
    with drawing(2.9) as (figure, axes):
        colors = [FAINT if n == 'float' else WEIGHTS if n != 'final' else INK for n in names]
        bars = axes.bar(names, shown, color=colors, width=0.62)
        digits = 2 if max(shown) > 1 else 3
        labels = [f'{v:.{digits}f}' if key in s['metrics'] else 'nothing found' for s, v in zip(stages, values)]
        axes.bar_label(bars, labels, padding=2)
        if 'float' in names:
            axes.axhline(shown[names.index('float')], color=FAINT, lw=1, ls='--', zorder=0)
        axes.set_ylabel(key)
        axes.set_ylim(min(0, *shown), max(shown) * 1.15 if max(shown) > 0 else 1)
    return figure


def error_figure(inspection: Inspection) -> Figure:
    """Signal-to-noise ratio of weights and of outputs, by layer in execution order."""
    names = list(dict.fromkeys([*inspection.output_sqnr, *inspection.weight_sqnr]))
    with drawing(3.9 if len(names) <= NAMED else 3.1) as (figure, axes):
        for values, color, label in ((inspection.weight_sqnr, WEIGHTS, 'weights'),
                                     (inspection.output_sqnr, ACTIVATIONS, 'outputs (quantized model against float)')):
            ys = [math.nan if values.get(n) is None else values[n] for n in names]
            axes.plot(range(len(names)), ys, 'o-', ms=3.5, lw=1.2, color=color, label=label)
        _name_layers(axes, names)
        axes.set_ylabel('SQNR (dB), higher is better')
        axes.grid(axis='y', color=FAINT, alpha=0.35, lw=0.6)
        axes.legend(**ABOVE, ncols=2)
    return figure


def _name_layers(axes, names: Sequence[str]) -> None:
    if len(names) <= NAMED:
        axes.set_xticks(range(len(names)), [_short(n, 28) for n in names], rotation=90, fontsize=7.5)
    else:
        axes.set_xlabel('layer, in execution order')
    axes.set_xlim(-0.8, len(names) - 0.2)


def _short(name: str, length: int) -> str:
    return name if len(name) <= length else '…' + name[1 - length:]


def flipped_figure(units: list[dict]) -> Figure:
    """Share of weights that do not round to nearest, by unit; pale where nearest rounding was kept."""
    with drawing(3.3 if len(units) <= NAMED else 2.8) as (figure, axes):
        share = [100 * u['flipped'] for u in units]
        kept = [FAINT if u.get('kept') == 'nearest' else WEIGHTS for u in units]
        axes.bar(range(len(units)), share, color=kept, width=0.7)
        undecided = [100 * u.get('undecided', 0.0) for u in units]
        if any(undecided):
            axes.plot(range(len(units)), undecided, '_', color=ALARM, ms=9, mew=1.6, label='undecided at the end')
            axes.legend(**ABOVE)
        _name_layers(axes, [u['unit'] or '(net)' for u in units])
        axes.set_ylabel('flipped roundings (%)')
        axes.set_ylim(0, max([1.0, *share, *undecided]) * 1.15)
    return figure


def loss_figure(units: list[dict]) -> Figure:
    """Reconstruction loss of each unit over its steps, relative to its first value; one panel a stage."""
    stages = list(dict.fromkeys(u['step'] for u in units))
    with drawing(3.2, len(stages)) as (figure, panels):
        for axes, stage in zip(panels, stages):
            own = [u for u in units if u['step'] == stage]
            lowest = 1.0
            for index, unit in enumerate(own):
                steps, losses = zip(*unit['curve'])
                label = (unit['unit'] or '(net)') if index in (0, len(own) - 1) else None
                relative = [max(y / (losses[0] or 1.0), 1e-9) for y in losses]
                lowest = min(lowest, *relative)
                axes.plot(steps, relative, lw=1.1, label=label,
                          color=colormaps['viridis'](0.05 + 0.85 * index / max(1, len(own) - 1)))
            if lowest < 0.1:
                axes.set_yscale('log')
            else:
                axes.set_ylim(bottom=0)
            axes.set_title(stage)
            axes.set_xlabel('step')
            axes.grid(axis='y', color=FAINT, alpha=0.35, lw=0.6)
            axes.legend(title='first and last unit', fontsize=7.5, title_fontsize=7.5)
        panels[0].set_ylabel('loss / first loss')
    return figure


def cost_figure(cost: ModelCost) -> Figure:
    """Each layer's share of the weights' bits and of the bit operations."""
    bits = np.array([x.params * x.w_bits for x in cost.layers], dtype=float)
    bops = np.array([x.bops for x in cost.layers], dtype=float)
    with drawing(3.6 if len(cost.layers) <= NAMED else 2.8) as (figure, axes):
        x = np.arange(len(cost.layers))
        axes.bar(x - 0.2, 100 * bits / max(bits.sum(), 1), 0.4, color=WEIGHTS, label='bits of the weights')
        axes.bar(x + 0.2, 100 * bops / max(bops.sum(), 1), 0.4, color=ACTIVATIONS, label='bit operations')
        _name_layers(axes, [layer.name for layer in cost.layers])
        axes.set_ylabel('share (%)')
        axes.legend(**ABOVE, ncols=2)
    return figure


def sensitivity_figure(rows: Sequence[LayerSensitivity]) -> Figure:
    """Bars of the most sensitive layers: SQNR, and both changes of the metric where they were measured."""
    rows = list(rows)[:NAMED][::-1]
    panels = [('sqnr', 'SQNR of the output (dB)', WEIGHTS)]
    if any(row.drop is not None for row in rows):
        panels += [('drop', 'drop, only this layer quantized', ACTIVATIONS),
                   ('gain', 'gain, only this layer float', ACTIVATIONS)]
    with drawing(0.8 + 0.19 * len(rows), len(panels), sharey=True) as (figure, every):
        for axes, (key, title, color) in zip(every, panels):
            values = [getattr(row, key) for row in rows]
            axes.barh(range(len(rows)), [math.nan if v is None else v for v in values], color=color, height=0.7)
            axes.set_title(title)
            axes.locator_params(axis='x', nbins=5)
            axes.grid(axis='x', color=FAINT, alpha=0.35, lw=0.6)
        every[0].set_yticks(range(len(rows)), [_short(row.name, 36) for row in rows], fontsize=7.5)
        every[0].set_ylim(-0.7, len(rows) - 0.3)
    return figure


def histogram_figure(histograms: Sequence[Histogram], color: str) -> Figure:
    """Small histograms in rows; dashed lines: clip limits; ticks: levels of grids with at most 16 of them."""
    rows = math.ceil(len(histograms) / COLUMNS)
    shapes, clips, ticks, floors = [], [], [], []
    with drawing(0.15 + 1.12 * rows) as (figure, axes):
        for index, h in enumerate(histograms):
            left, bottom = index % COLUMNS + 0.05, -(index // COLUMNS) - 1 + 0.1

            def at(level, h=h, left=left):
                return left + 0.9 * (level - h.edges[0]) / (h.edges[-1] - h.edges[0])

            edges = at(np.array(h.edges))
            top = min(max(h.counts), CUT * sorted(h.counts)[-2] or 1.0)
            heights = bottom + 0.58 * np.minimum(h.counts, top) / top
            shapes.append(np.column_stack([np.repeat(edges, 2), [bottom, *np.repeat(heights, 2), bottom]]))
            clips += [[(at(x), bottom), (at(x), bottom + 0.62)] for x in (h.low, h.high)]
            levels = np.arange(h.low + 0.5, h.high)
            ticks += [[(at(x), bottom - 0.035), (at(x), bottom)] for x in levels] if len(levels) <= 16 else []
            floors.append([(left, bottom), (left + 0.9, bottom)])
            axes.text(left, bottom + 0.77, _short(h.name, 24), fontsize=7.2, va='center')
            axes.text(left, bottom + 0.67, f'{h.bits} bit, {h.clipped:.1%} clipped', fontsize=6.4, va='center',
                      alpha=0.75)
        axes.add_collection(PolyCollection(shapes, facecolors=color, edgecolors='none', alpha=0.85))
        axes.add_collection(LineCollection(floors, colors=FAINT, lw=0.8))
        axes.add_collection(LineCollection(ticks, colors=INK, lw=0.7))
        axes.add_collection(LineCollection(clips, colors=ALARM, lw=0.9, ls=(0, (3, 2))))
        axes.set(xlim=(0, COLUMNS), ylim=(-rows, 0))
        axes.axis('off')
    return figure
