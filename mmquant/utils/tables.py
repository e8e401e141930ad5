"""Tables for the console and the log."""
import io
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table


def render(title: str, columns: Sequence[str], rows: Sequence[Sequence]) -> str:
    """A table as text; numbers are right-aligned, None becomes a dash."""
    table = Table(title=title, title_justify='left')
    for i, column in enumerate(columns):
        numeric = all(isinstance(r[i], (int, float, type(None))) for r in rows)
        table.add_column(column, justify='right' if numeric else 'left', no_wrap=True)
    for row in rows:
        table.add_row(*(cell(x) for x in row))
    buffer = io.StringIO()
    Console(file=buffer, width=200).print(table)
    return buffer.getvalue()


def cell(x) -> str:
    """One value as text."""
    if x is None:
        return '-'
    return f'{x:,.4g}' if isinstance(x, float) and abs(x) < 1e-2 else f'{x:.2f}' if isinstance(x, float) else str(x)
