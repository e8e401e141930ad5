"""Pages and pictures of the documentation that come from the repository itself."""
from __future__ import annotations

import ast
import inspect
import json
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]
KINDS = [('STEPS', 'Steps', '`train_cfg.steps`'),
         ('SOURCES', 'Sources of calibration images', '`train_cfg.source`'),
         ('QUANTIZERS', 'Quantizers', '`quantizer.weight`, `quantizer.activation`'),
         ('OBSERVERS', 'Observers', '`observer` of the steps that set ranges'),
         ('ROUNDINGS', 'Roundings', '`rounding` of a reconstruction'),
         ('SOLVERS', 'Solvers', '`solver` of the step `SolveWeights`'),
         ('TERMS', 'Terms', '`terms` of a reconstruction'), ('MIXERS', 'Mixers', '`inputs` of a reconstruction'),
         ('FIT_HOOKS', 'Hooks of a fit', '`hooks` of a reconstruction'),
         ('OBJECTIVES', 'Objectives', '`objective` of a search'),
         ('SEARCHERS', 'Searchers', '`searcher` of `JointSearch`'),
         ('LOOPS', 'Loops', '`train_cfg`'),
         ('HOOKS', 'Hooks', '`custom_hooks`'), ('MODELS', 'Models', '`model`'),
         ('DATASETS', 'Data sets', '`dataset` of a data loader'),
         ('TRANSFORMS', 'Transforms', '`pipeline` of a data set')]
SECTION = re.compile(r'^(Args|Attributes|Returns|Raises|Source):(.*)$')


def generate(folder: Path) -> None:
    """Write everything into ``folder``."""
    from pictures import draw_all
    folder.mkdir(exist_ok=True)
    for name, text in (('reference', reference()), ('model_zoo', model_zoo()), ('benchmarks', benchmarks())):
        (folder / f'{name}.md').write_text(text, encoding='utf-8')
    draw_all(folder)


# ---- reference -----------------------------------------------------------------------------------------------------
def reference() -> str:
    """Every type of mmquant that a config may name, from its docstring."""
    import mmquant.registry as registries
    parts = ['# Config reference\n\nMade from the docstrings. A type is written `mmquant.<Name>`; keys that are not '
             'listed are refused, with the closest valid one in the error.\n']
    for attribute, title, where in KINDS:
        registry = getattr(registries, attribute)
        registry.import_from_location()
        own = {n: c for n, c in registry.module_dict.items() if c.__module__.startswith('mmquant.')}
        if own:
            parts.append(f'## {title}\n\nStands in: {where}.\n')
            parts += [entry(name, own[name]) for name in sorted(own)]
    return '\n'.join(parts)


def entry(name: str, cls: type) -> str:
    """One type: signature, text, arguments."""
    signature = ', '.join(f'{p.name}={p.default!r}' if p.default is not p.empty else p.name
                          for p in inspect.signature(cls).parameters.values() if p.kind not in (p.VAR_POSITIONAL,
                                                                                                p.VAR_KEYWORD))
    call = f'mmquant.{name}({signature})'
    if len(call) > 95:
        call = f'mmquant.{name}(\n    ' + textwrap.fill(signature, 90, subsequent_indent='    ') + ')'
    return f'### {name}\n\n```python\n{call}\n```\n\n{markdown(inspect.getdoc(cls) or "")}\n'


def markdown(doc: str) -> str:
    """A docstring of our style as Markdown."""
    lines, out, section = doc.splitlines(), [], None
    for line in lines:
        found = SECTION.match(line)
        if found:
            section = found.group(1)
            out += ['', f'**{section}**', '', *([inline(found.group(2).strip())] if found.group(2).strip() else [])]
            continue
        indent = len(line) - len(line.lstrip())
        item = re.match(r'^([\w, *]+?)( \([^)]*\))?: (.*)$', line.strip()) if section and indent == 4 else None
        if item and section != 'Returns':
            kind = inline(item.group(2) or '')
            out.append(f'- `{item.group(1)}`{kind}: {inline(item.group(3))}')
        elif section is None and indent >= 4:
            out.append(f'    {line.strip()}')  # a formula
        else:
            out.append(('  ' if section and line.strip() else '') + inline(line.strip()))
    return '\n'.join(out).strip()


def inline(text: str) -> str:
    """RST's inline markup as Markdown's."""
    text = re.sub(r':\w+:`~?([^`]+)`', r'`\1`', text)
    parts = re.split(r'(``.+?``|`[^`]+`)', text)
    return ''.join('`' + p.strip('`') + '`' if p.startswith('`') else re.sub(r'([*_<>$|])', r'\\\1', p) for p in parts)


# ---- model zoo -----------------------------------------------------------------------------------------------------
def model_zoo() -> str:
    """The tables of all config folders, under one roof."""
    parts = ['# Model zoo\n\nEvery number comes from a record that `tools/test.py` wrote for a saved checkpoint; `-` '
             'means: not measured, or not published. Change is the difference to the float model on the same images.\n']
    for readme in sorted((ROOT / 'configs').glob('*/README.md')):
        text = readme.read_text(encoding='utf-8')
        folder = readme.parent.name
        section = re.search(r'## Results and models\n(.*?)\n## ', text, re.S).group(1)
        section = re.sub(r'<!--.*?-->\n?', '', section)
        # links that lead out of the documentation would break
        section = re.sub(r'\[config\]\(\./([^)]+)\.py\)', rf'`configs/{folder}/\1.py`', section)
        section = re.sub(r'\[(W\d+A\d+)\]\(\./([^)]+)\.py\)', rf'\1 `configs/{folder}/\2.py`', section)
        section = re.sub(r'\[([^\]]+)\]\((?!https?://)[^)]+\)', r'\1', section)
        title = text.splitlines()[0].removeprefix('# ')
        parts.append(f'## {title}\n\n{section.strip()}\n')
    return '\n'.join(parts)


# ---- benchmarks ----------------------------------------------------------------------------------------------------
def benchmarks() -> str:
    """What the benchmark scripts measure and measured, and the times in the published records."""
    from benchmarks import FILE, as_markdown
    parts = ['# Benchmarks\n\nSpeed depends on the machine, so run these on yours.\n']
    measured = json.loads((ROOT / FILE).read_text(encoding='utf-8'))
    for script in sorted((ROOT / 'tools').rglob('benchmark_*.py')):
        doc = ast.get_docstring(ast.parse(script.read_text(encoding='utf-8')))
        parts.append(f'## {doc.splitlines()[0].rstrip(".")}\n\n{doc.partition(chr(10))[2].strip()}\n')
        parts.append(as_markdown(measured.get(script.name, {})))
    rows = list(timed())
    if rows:
        parts += ['## Times of published runs\n\nSteps only, without evaluation; mean over the seeds.\n',
                  '| Config | Device | Minutes | Peak memory (GiB) |', '| --- | --- | --: | --: |', *rows, '']
    return '\n'.join(parts)


def timed():
    """A table row for each config with records."""
    from model_zoo.results import read_records
    for config in sorted((ROOT / 'configs').glob('*/*.py')):
        records = read_records(str(config))
        if records:
            minutes = sum(r['minutes'] for r in records) / len(records)
            memory = max(r['peak_memory_bytes'] for r in records) / 2**30
            devices = ', '.join(sorted({r['device'] for r in records}))
            yield f'| `{config.relative_to(ROOT)}` | {devices} | {minutes:.1f} | {memory:.2f} |'


if __name__ == '__main__':
    sys.path[:0] = [str(Path(__file__).parent), str(ROOT), str(ROOT / 'tools'), str(ROOT / 'tools/analysis_tools')]
    generate(Path(sys.argv[1]))
