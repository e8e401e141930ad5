"""The section of a report about exported files: verdict, sizes, latency, and where floats are."""
from html import escape

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mmquant.visualization.figures import ABOVE, ACTIVATIONS, WEIGHTS, drawing
from mmquant.visualization.report import fill, html_table, svg


def add_deployed(path: str, found: dict) -> bool:
    """Put ``deployed`` of a ``results.json`` into the report beside it; whether the page has a place for it."""
    gates = [('G1: codes of the runtime that are not those of the executor',
              f'{found["codes_differing"]} of {found["codes"]}'),
             ('G2: largest share of a tensor that an operation alone gets wrong', f'{found["worst_share"]:.4%}'),
             ('G2: by how many codes', found['largest_step'])]
    if found['agreement'] is not None:
        gates.append(('G3: arg max agrees with the simulation', f'{found["agreement"]:.2%}'))
    gates += [(f'G3: {name}, simulation / runtime', f'{a:.4f} / {b:.4f}') for name, (a, b) in found['metrics'].items()]
    gates += [('multiplications in integers', f'{found["integer_share"]:.2%}'),
              ('latency of one image, one thread (ms)', f'{found["latency_ms"]:.2f}'),
              *((f'{name} (MB)', f'{size / 1e6:.3f}') for name, size in found['bytes'].items())]
    verdict = '; '.join(found['failures'])
    head = f'<p class="bad">{escape(verdict)}</p>' if verdict else '<p>All gates are passed.</p>'
    islands = [(op, why) for op, why in found['islands']]
    body = head + html_table(('', 'value'), gates) + svg(strip_figure(found['nodes']))
    if islands:
        body += '<div class="scroll">' + html_table(('float operator', 'reason'), islands, numeric=()) + '</div>'
    return fill(path, 'deployed', body)


def strip_figure(nodes: list) -> Figure:
    """Operators (name, operator, whether integer) as stripes in the order in which they run."""
    with drawing(0.9) as (figure, axes):
        for integer, color in ((True, WEIGHTS), (False, ACTIVATIONS)):
            at = [i for i, node in enumerate(nodes) if bool(node[2]) == integer]
            axes.bar(at, [1] * len(at), width=0.9, color=color)
        axes.set(yticks=[], xlim=(-1, max(len(nodes), 1)), xlabel='operators in the order in which they run')
        axes.legend(handles=[Patch(color=WEIGHTS, label='integer'), Patch(color=ACTIVATIONS, label='float')], ncol=2,
                    **ABOVE)
    return figure
