"""Float baselines of one table: a model has one figure there, or a note names all and whose they are.

The same float network gives figures a little apart on different machines (other kernels, TF32), and a row's change is
against the one that its own run measured. Rows whose baselines differ cannot be compared by the metric alone.
"""
from __future__ import annotations

from collections.abc import Iterable

from .results import values_of

MARK = '†'


def float_figures(records: Iterable[dict], key: str, factor: float) -> dict[str, set[str]]:
    """Figure as a table shows it -> machines that measured it, each with its torch where one machine gave several."""
    found: dict[str, dict[str, set[str]]] = {}
    for record in records:
        for value in values_of([record], key, 'float'):
            torch = record.get('versions', {}).get('quantized', {}).get('torch')
            found.setdefault(f'{value * factor:.2f}', {}).setdefault(record['device'], set()).add(
                f'torch {torch}' if torch else 'an unknown torch')
    machines = [m for by_machine in found.values() for m in by_machine]
    named = {}
    for figure, by_machine in sorted(found.items(), key=lambda item: float(item[0])):
        several = {m for m in by_machine if machines.count(m) > 1}
        named[figure] = {m for m in by_machine if m not in several} | {
            f'{m} with {torch}' for m in several for torch in by_machine[m]}
    return named


def float_cell(records: list[dict], key: str, factor: float, marked: bool) -> str:
    """The float figure of a row, all of them where its seeds differ; ``'-'`` if a record lacks it."""
    if not values_of(records, key, 'float'):
        return '-'
    return ' / '.join(float_figures(records, key, factor)) + (f' {MARK}' if marked else '')


def float_note(name: str, figures: dict[str, set[str]], title: str) -> str:
    """The footnote of a model with several figures."""
    each = ' and '.join(f'{figure} on {", ".join(sorted(machines))}' for figure, machines in figures.items())
    return (f'{MARK} {name}, {title} of the float model: {each}. The change of a row is against its own run\'s; '
            'compare rows with different ones by their change.')
