"""The report page of a run: one HTML file that needs no network."""
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from matplotlib import rc_context
from matplotlib.figure import Figure

from mmquant.analysis.inspection import Inspection
from mmquant.analysis.sensitivity import LayerSensitivity
from mmquant.analysis.tables import bits_text, stage_rows
from mmquant.models.cost import FLOAT_BITS, ModelCost
from mmquant.reconstruction.undecided import undecided_text
from mmquant.utils.files import write_text
from mmquant.utils.tables import cell
from mmquant.visualization import figures as draw

CSS = '''
:root { --ink: #22303c; --faint: #6b7883; --line: #dfe4e8; --accent: #2b6c99; --ground: #f5f7f8; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
header { background: #22303c; color: #fff; padding: 26px 0 22px; }
header h1 { margin: 0; font-size: 25px; font-weight: 600; } header p { margin: 5px 0 0; color: #c5ced5; }
.page { max-width: 1120px; margin: 0 auto; padding: 0 24px; }
nav { position: sticky; top: 0; background: #fff; border-bottom: 1px solid var(--line); z-index: 2; }
nav a { display: inline-block; padding: 10px 16px 10px 0; color: var(--accent); text-decoration: none;
        font-size: 14px; }
section { background: #fff; border: 1px solid var(--line); border-radius: 8px; margin: 20px 0; padding: 18px 22px 20px;
          scroll-margin-top: 52px; }
h2 { font-size: 18px; margin: 0 0 4px; }
p.bad { color: #b3261e; margin: 0 0 12px; max-width: 85ch; }
.note { color: var(--faint); margin: 0 0 12px; max-width: 85ch; font-size: 14px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); gap: 12px; margin: 20px 0; }
.tile { background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: 12px 16px; }
.tile b { display: block; font-size: 23px; font-weight: 600; font-variant-numeric: tabular-nums; }
.tile span { color: var(--faint); font-size: 13px; }
svg { width: 100%; height: auto; display: block; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--faint); font-weight: 500; border-bottom: 1px solid var(--line);
     white-space: nowrap; }
th, td { padding: 5px 12px 5px 0; vertical-align: top; } tr + tr td { border-top: 1px solid #eef1f3; }
td.n, th.n { text-align: right; } td.bad { color: #b3261e; font-weight: 600; }
details summary { cursor: pointer; color: var(--accent); } pre { overflow-x: auto; font-size: 12.5px; }
'''

# Sections that tools fill later: name -> the command that does.
LATER = {'sensitivity': 'python tools/analysis_tools/sensitivity.py CONFIG WORK_DIR/quantized.pth',
         'deployed': 'python tools/export.py CONFIG WORK_DIR/quantized.pth --work-dir WORK_DIR --verify'}


@dataclass(frozen=True)
class Run:
    """What a report tells of."""
    title: str  # name of the config
    facts: dict  # text by label, for the lines below the title: device, versions, seed
    stages: list[dict]  # name, metrics, seconds of each evaluated step
    records: list[dict]  # what the steps reported
    cost: ModelCost
    inspection: Inspection
    seconds: float  # of the steps
    peak_memory_bytes: int  # of the process, or of the GPU
    config: str  # the whole config, as text

    @property
    def units(self) -> list[dict]:
        """Records of reconstructed units."""
        return [r for r in self.records if r.get('kind') == 'unit']


def figures_of(run: Run) -> dict[str, Figure]:
    """The figures that a run has something to show in, by name."""
    curves = [u for u in run.units if u.get('curve')]
    flipped = [u for u in run.units if u.get('flipped') is not None]
    look = run.inspection
    made = {
        'accuracy': stage_rows(run.stages)[0] and draw.accuracy_figure(run.stages),
        'layer_errors': look.output_sqnr and draw.error_figure(look),
        'flipped_roundings': flipped and draw.flipped_figure(flipped),
        'losses': curves and draw.loss_figure(curves),
        'cost': run.cost.layers and draw.cost_figure(run.cost),
        'weight_histograms': look.weights and draw.histogram_figure(look.weights, draw.WEIGHTS),
        'activation_histograms': look.activations and draw.histogram_figure(look.activations, draw.ACTIVATIONS)}
    return {name: figure for name, figure in made.items() if figure}


def scalars_of(run: Run) -> dict[str, float]:
    """Numbers of the report by name, for visualizers."""
    found = {'report/size_mb': run.cost.size_mb, 'report/bops': float(run.cost.bops), 'report/seconds': run.seconds}
    for part in ('weight_sqnr', 'output_sqnr'):
        found |= {f'{part}/{n}': v for n, v in getattr(run.inspection, part).items() if v is not None}
    return found | {f'flipped/{u["unit"] or "net"}': u['flipped'] for u in run.units if 'flipped' in u}


def write_report(path: str, run: Run, figures: dict[str, Figure]) -> str:
    """Write the page; returns the path."""
    sections = [s for s in _sections(run, {name: svg(f) for name, f in figures.items()}) if s[3]]
    parts = [_section(*s) for s in sections]
    links = ''.join(f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title, *_ in sections)
    facts = ' · '.join(f'{escape(k)} {escape(str(v))}' for k, v in run.facts.items())
    page = (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(run.title)}</title>'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{CSS}</style></head><body>'
            f'<header><div class="page"><h1>{escape(run.title)}</h1><p>{facts}</p></div></header>'
            f'<nav><div class="page">{links}</div></nav><main class="page">{_tiles(run)}{"".join(parts)}</main>'
            '</body></html>\n')
    return write_text(path, page)


def fill(path: str, section: str, body: str) -> bool:
    """Put HTML into one of the sections ``LATER`` of a page of :func:`write_report`; whether it has a place for it."""
    with open(path, encoding='utf-8') as f:
        page = f.read()
    page, found = re.subn(f'<!-- {section} -->.*?<!-- /{section} -->', lambda _: _marked(section, body), page, count=1,
                          flags=re.S)
    write_text(path, page)
    return bool(found)


def _marked(section: str, body: str) -> str:
    return f'<!-- {section} -->{body}<!-- /{section} -->'


def _later(section: str) -> str:
    return _marked(section, f'<p>Not measured yet; this adds it: <code>{LATER[section]}</code></p>')


def add_sensitivity(path: str, rows: Sequence[LayerSensitivity]) -> bool:
    """Put layers, the most sensitive first, into a page of :func:`write_report`; whether it has a place for them."""
    keys = ('w_bits', 'a_bits', 'sqnr', *(k for k in ('drop', 'gain') if any(getattr(r, k) is not None for r in rows)))
    titles = dict(w_bits='W bits', a_bits='input bits', sqnr='SQNR (dB)', drop='drop', gain='gain')
    table = html_table(('layer', *map(titles.get, keys)), [(r.name, *(getattr(r, k) for k in keys)) for r in rows])
    return fill(path, 'sensitivity', f'{svg(draw.sensitivity_figure(rows))}<div class="scroll">{table}</div>')


def _sections(run: Run, figures: dict) -> list[tuple[str, str, str, str]]:
    """(anchor, title, explanation, body); those without a body are left out."""
    get = figures.get
    metrics, rows = stage_rows(run.stages)
    return [
        ('accuracy', 'Accuracy', 'After each step, on the validation set of the config. Bars: the first metric; grey: '
         'the float model.',
         get('accuracy', '') + html_table(('step', *metrics, 'seconds'), rows) if run.stages else ''),
        ('layers', 'Layers', 'SQNR is the ratio of signal to quantization noise: of the weights alone, and of the '
         "layer's output, where the noise of all layers before it adds up. Red: the lowest of a column. A layer whose "
         'curve drops far below its neighbours is the one to give more bits.',
         f'{get("layer_errors", "")}<div class="scroll">{_layer_table(run)}</div>'),
        ('sensitivity', 'Sensitivity', 'Each layer alone: the error of its output when only its weights and its input '
         'are quantized; the metric that is lost when only it is quantized, and won when only it stays float. The '
         'layers that come first are those to give more bits.', _later('sensitivity')),
        ('deployed', 'Deployed', 'The exported files in a runtime: whether they compute what this page measured, how '
         'much of the work is integer, sizes and latency.', _later('deployed')),
        ('roundings', 'Roundings', 'Share of weights that reconstruction rounded away from the nearest level. Grey: '
         'nearest rounding was better on held-out images and was kept.',
         _warning(undecided_text(run.units)) + get('flipped_roundings', '')),
        ('losses', 'Losses', 'Reconstruction loss on the training batches of each unit, from the first unit (dark) to '
         'the last (bright).', get('losses', '')),
        ('weights', 'Weights', 'Distribution of the weights in steps of their grid, each channel in its own. Dashed: '
         'where the grid ends; ticks: its levels.', get('weight_histograms', '')),
        ('activations', 'Activations', 'What the activation quantizers meet in the quantized model, in steps of their '
         'grid. A single bar far above all others (mostly the zeros behind a ReLU) is cut off at the top.',
         get('activation_histograms', '')),
        ('cost', 'Cost', f'{run.cost.params:,} parameters, {run.cost.macs:,} multiply-accumulates and '
         f'{run.cost.bops:,} bit operations for one image.', get('cost', '')),
        ('config', 'Config', '',
         f'<details><summary>the whole config</summary><pre>{escape(run.config)}</pre></details>'),
    ]


def _section(anchor: str, title: str, note: str, body: str) -> str:
    note = f'<p class="note">{escape(note)}</p>' if note else ''
    return f'<section id="{anchor}"><h2>{escape(title)}</h2>{note}{body}</section>'


def _warning(text: str) -> str:
    return f'<p class="bad">{escape(text)}</p>' if text else ''


def _tiles(run: Run) -> str:
    stages = {s['name']: s['metrics'] for s in run.stages}
    key = next(iter(stage_rows(run.stages)[0]), None)
    quantized = sum(x.w_bits != FLOAT_BITS for x in run.cost.layers)
    tiles = [(cell(stages[n].get(key, 'nothing found')), f'{key or "no metric"}, {n}')
             for n in ('float', 'nearest', 'final') if n in stages]
    tiles += [(f'{run.cost.size_mb:.2f} MB', f'packed; float {run.cost.float_size_mb:.2f} MB'),
              (f'{run.cost.bops / 1e9:.2f} G', 'bit operations an image'),
              (f'{quantized} of {len(run.cost.layers)}', 'layers quantized'),
              (f'{run.seconds / 60:.1f} min', 'for all steps'),
              (f'{run.peak_memory_bytes / 2**30:.2f} GiB', 'peak memory')]
    return '<div class="tiles">' + ''.join(f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
                                           for value, label in tiles) + '</div>'


def _layer_table(run: Run) -> str:
    """Coverage and errors, one row a layer."""
    errors = run.inspection
    worst = [min((k for k, v in sqnr.items() if v is not None), key=sqnr.get, default=None)
             for sqnr in (errors.weight_sqnr, errors.output_sqnr)]
    rows = [(x.name, bits_text(x.w_bits), bits_text(x.a_bits), f'{x.params:,}', f'{x.macs / 1e6:,.2f}',
             errors.weight_sqnr.get(x.name), errors.output_sqnr.get(x.name), x.note) for x in run.cost.layers]
    bad = {(i, 5 + k) for k, name in enumerate(worst) for i, row in enumerate(rows) if row[0] == name}
    return html_table(('layer', 'W bits', 'input bits', 'params', 'MACs (M)', 'weight SQNR (dB)', 'output SQNR (dB)',
                   'note'), rows, bad, numeric=range(1, 7))


def html_table(columns: Sequence[str], rows: Sequence[Sequence], bad=(), numeric: Sequence[int] | None = None) -> str:
    """A table; ``bad``: (row, column) of red cells, ``numeric``: columns to align right, default all but the first."""
    numeric = range(1, len(columns)) if numeric is None else numeric
    head = ''.join(f'<th{" class=n" if i in numeric else ""}>{escape(c)}</th>' for i, c in enumerate(columns))
    body = ''.join('<tr>' + ''.join(_cell(x, i in numeric, (k, i) in bad) for i, x in enumerate(row)) + '</tr>'
                   for k, row in enumerate(rows))
    return f'<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _cell(x, numeric: bool, bad: bool) -> str:
    classes = ' '.join(n for n, on in (('n', numeric), ('bad', bad)) if on)
    attribute = f' class="{classes}"' if classes else ''
    return f'<td{attribute}>{escape(cell(x))}</td>'


def svg(figure: Figure) -> str:
    """A figure as SVG text."""
    buffer = io.StringIO()
    with rc_context(draw.STYLE):
        figure.savefig(buffer, format='svg', transparent=True, metadata={'Date': None, 'Creator': None})
    text = buffer.getvalue()
    return text[text.index('<svg'):]
