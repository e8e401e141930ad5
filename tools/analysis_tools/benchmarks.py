"""Tables of the benchmark scripts: printed, and on request added to the file that their page in the docs shows."""
from __future__ import annotations

import argparse
import os.path as osp
import shlex
import sys
from collections.abc import Sequence

import torch

from mmquant.utils.files import read_json
from mmquant.utils.hardware import device_name
from mmquant.utils.tables import cell, render

sys.path.append(osp.dirname(osp.dirname(osp.abspath(__file__))))  # for model_zoo, in tools
from model_zoo.results import write_json

FILE = 'docs/en/notes/benchmarks.json'


def add_out_argument(parser: argparse.ArgumentParser) -> None:
    """``--out``, of every benchmark script."""
    parser.add_argument('--out', metavar='FILE', type=_table_file,
                        help=f'add the tables to this JSON file, too; the documentation reads {FILE}')


def _table_file(path: str) -> str:
    """``path``, if tables can be added there: told before anything is measured."""
    if osp.exists(path):
        try:
            read_json(path)
        except (OSError, ValueError) as error:
            raise argparse.ArgumentTypeError(f'{path} holds no tables of benchmarks ({error}); remove it or name '
                                             'another file') from error
    return path


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence], device: torch.device, out: str | None) -> str:
    """A table as text, added to ``out`` together with the command and what it ran on.

    Args:
        title (str): Tables of one script that have the same title replace each other.
        columns, rows (Sequence): Names and values.
        device (torch.device): Where it was measured.
        out (str | None): JSON file, made if it is not there; None: nothing is written.
    """
    if out:
        known = read_json(out) if osp.exists(out) else {}
        known.setdefault(osp.basename(sys.argv[0]), {})[title] = dict(
            command=command(), device=device_name(device), torch=torch.__version__, columns=list(columns),
            rows=[list(row) for row in rows])
        write_json(out, known)
    return render(title, columns, rows)


def command() -> str:
    """The command line of this script without the paths of this machine, ``--out`` and ``--work-dir``."""
    arguments = [a for a in sys.argv[1:] if not a.startswith(('--out=', '--work-dir='))]
    for option in {'--out', '--work-dir'} & set(arguments):
        place = arguments.index(option)
        del arguments[place:place + 2]
    return shlex.join(['python', f'tools/analysis_tools/{osp.basename(sys.argv[0])}', *arguments])


def as_markdown(tables: dict[str, dict]) -> str:
    """A script's tables, by title, as Markdown, with the commands that made them."""
    parts, shown = [], None
    for title, table in tables.items():
        if table['command'] != shown:
            shown = table['command']
            parts.append(f'```bash\n{shown}\n```\n')
        lines = [table['columns'], ['--:'] * len(table['columns']), *([cell(x) for x in row] for row in table['rows'])]
        parts.append(f'**{title}** ({table["device"]}, torch {table["torch"]})\n')
        parts.append('\n'.join(f'| {" | ".join(line)} |' for line in lines) + '\n')
    return '\n'.join(parts)
