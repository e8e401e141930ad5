"""The pictures of the concepts page, drawn with mmquant's own quantizers."""
from pathlib import Path

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from mmquant.quantizers import UniformAffineQuantizer
from mmquant.visualization.figures import ACTIVATIONS, ALARM, FAINT, INK, STYLE, WEIGHTS


def draw_all(folder: Path) -> None:
    """Write every picture as SVG."""
    for name, draw in (('grid', grid), ('points', points), ('steps', steps)):
        with rc_context(STYLE):
            draw().savefig(folder / f'{name}.svg', metadata={'Date': None})


def grid() -> Figure:
    """What a 3-bit affine quantizer makes of numbers."""
    quantizer = UniformAffineQuantizer(bits=3)
    quantizer.set_range(torch.tensor(-1.0), torch.tensor(2.5))
    x = torch.linspace(-2, 4, 1200)
    figure = Figure(figsize=(7.5, 3.4), layout='constrained')
    axes = figure.add_subplot()
    axes.plot(x, x, color=FAINT, lw=1, ls='--', label='x')
    axes.plot(x, quantizer(x), color=WEIGHTS, lw=1.8, label='quantizer(x), 3 bits')
    levels = quantizer.decode(torch.arange(8))
    axes.plot(levels, levels, 'o', color=INK, ms=4, label='levels: scale * (code - zero_point)')
    for end in (levels[0] - quantizer.scale / 2, levels[-1] + quantizer.scale / 2):
        axes.axvline(end, color=ALARM, lw=1, ls=(0, (3, 2)))
    axes.text(levels[-1] + quantizer.scale / 2 + 0.06, 3.6, 'clipped', color=ALARM)
    axes.set(xlabel='x', xlim=(-2, 4), ylim=(-2, 4))
    axes.legend(loc='lower right')
    return figure


def _box(axes, x, y, text, color, width=1.1):
    axes.add_patch(FancyBboxPatch((x - width / 2, y - 0.22), width, 0.44, boxstyle='round,pad=0.02,rounding_size=0.08',
                                  fc='white', ec=color, lw=1.5))
    axes.text(x, y, text, ha='center', va='center', fontsize=9, color=INK)


def _arrow(axes, a, b, bend=0.0):
    axes.add_patch(FancyArrowPatch(a, b, arrowstyle='-|>', mutation_scale=9, color=FAINT, lw=1.3, shrinkA=0, shrinkB=0,
                                   connectionstyle=f'arc3,rad={bend}'))


def points() -> Figure:
    """A residual block: one unit; where its activation quantizers sit."""
    figure = Figure(figsize=(9, 2.5), layout='constrained')
    axes = figure.add_subplot()
    names = ['conv1', 'ReLU', 'conv2', 'add', 'ReLU']
    xs = [1.6, 3.1, 4.6, 6.1, 7.6]
    for x, name in zip(xs, names):
        _box(axes, x, 1, name, WEIGHTS if name.startswith('conv') else FAINT)
    for a, b in zip(xs, xs[1:]):
        _arrow(axes, (a + 0.58, 1), (b - 0.58, 1))
    _arrow(axes, (0.1, 1), (1.02, 1))
    _arrow(axes, (8.18, 1), (9.2, 1))
    _arrow(axes, (0.5, 1.05), (6.1, 1.26), -0.32)
    for x in (0.42, 3.85, 8.72):
        axes.plot(x, 1, 'o', color=ACTIVATIONS, ms=11)
        axes.text(x, 0.62, 'A', ha='center', va='center', color=ACTIVATIONS, fontsize=10)
    for x in (1.6, 4.6):
        axes.text(x, 0.62, 'W', ha='center', va='center', color=WEIGHTS, fontsize=10)
    axes.add_patch(FancyBboxPatch((0.82, 0.4), 7.5, 1.75, boxstyle='round,pad=0.02,rounding_size=0.1', fc='none',
                                  ec=FAINT, ls='--'))
    axes.text(0.95, 2.0, 'one unit: a block, fitted to its float output', fontsize=9, va='center')
    axes.set(xlim=(0, 9.3), ylim=(0.3, 2.3))
    axes.axis('off')
    return figure


def steps() -> Figure:
    """From the float model to the checkpoint."""
    figure = Figure(figsize=(9, 1.5), layout='constrained')
    axes = figure.add_subplot()
    names = ['float\nmodel', 'fold\nBatchNorm', 'insert\nquantizers', 'ranges', 'reconstruct\nweights',
             'reconstruct\nactivations', 'quantized.pth\nreport.html']
    for i, name in enumerate(names):
        color = INK if i in (0, len(names) - 1) else ACTIVATIONS if 'activations' in name else WEIGHTS
        axes.add_patch(FancyBboxPatch((1.5 * i - 0.58, 0.6), 1.16, 0.8, boxstyle='round,pad=0.02,rounding_size=0.08',
                                      fc='white', ec=color, lw=1.5))
        axes.text(1.5 * i, 1, name, ha='center', va='center', fontsize=9)
        if i:
            _arrow(axes, (1.5 * i - 0.88, 1), (1.5 * i - 0.62, 1))
    axes.set(xlim=(-0.7, 9.7), ylim=(0.45, 1.55))
    axes.axis('off')
    return figure
