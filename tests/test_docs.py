"""The documentation: it builds without warnings, its walk works, the errors it explains exist."""
import ast
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from tools_for_tests import ROOT, TINY, results_of, run_tool

DOCS = ROOT / 'docs' / 'en'
PAGES = sorted(p for p in DOCS.rglob('*.md') if '_generated' not in p.parts and '_build' not in p.parts)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf'```{language}\n(.*?)```', (DOCS / page).read_text(), re.S)


def test_first_extension_of_get_started(tmp_path, monkeypatch):
    """The walk, as written: two files of the reader's own, under 40 lines, and the command."""
    files = {m.group(1): text for text in blocks('get_started.md', 'python')
             if (m := re.match(r'# (my_project/\S+)\n', text))}
    assert list(files) == ['my_project/my_rounding.py', 'my_project/resnet18_stochastic.py']
    assert sum(len(text.strip().splitlines()) for text in files.values()) < 40
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    (tmp_path / 'my_project').mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert 'PYTHONPATH=. python tools/ptq.py my_project/resnet18_stochastic.py\n' in blocks('get_started.md', 'bash')
    monkeypatch.syspath_prepend(str(tmp_path))  # what PYTHONPATH=. does
    run_tool('ptq.py', tmp_path / 'my_project/resnet18_stochastic.py', '--work-dir', tmp_path / 'run', '--no-report',
             '--cfg-options', *TINY)
    units = [r for r in results_of(tmp_path / 'run')['records'] if r.get('step') == 'weights']
    assert len(units) == 9 and all(0.02 < u['flipped'] < 0.9 for u in units)
    assert 'StochasticRounding' in (tmp_path / 'run/resnet18_stochastic.py').read_text()


def texts_of(path: Path):
    """Constant parts of every string of a file, adjacent literals and parts of f-strings joined."""
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.JoinedStr):
            yield ''.join(v.value if isinstance(v, ast.Constant) else '{}' for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_explained_errors_exist():
    known = [text for path in (ROOT / 'mmquant').rglob('*.py') for text in texts_of(path)]
    headings = re.findall(r'^### `(.+)`$', (DOCS / 'troubleshooting.md').read_text(), re.M)
    assert len(headings) > 12
    for heading in headings:
        if 'mmcv._ext' not in heading:  # of mmcv itself
            assert any(heading in text for text in known), heading


def test_named_files_and_options_exist():
    """Paths and options in code are those of the repository."""
    helps = ''.join(p.read_text() for p in [*ROOT.glob('tools/**/*.py'), ROOT / 'mmquant/apis/cli.py'])
    for page in [*PAGES, ROOT / 'README.md', *ROOT.glob('projects/*/README.md')]:
        text = page.read_text()
        for path in re.findall(r'(?<![\w/.])((?:tools|configs|projects|tests|demo)/[\w./-]*\w)', text):
            assert (ROOT / path).exists() or path.startswith('tests/test_tools/') or '<' in path, (page, path)
        for option in re.findall(r'(?<=[\s`])(--[a-z][a-z-]+)', re.sub(r'pip [^\n]*', '', text)):
            assert f"'{option}'" in helps or option in ('--help', '--no-cache-dir'), (page, option)


def test_every_page_is_in_the_index():
    listed = re.findall(r'^(?!_generated)(?:\w+/)?\w+$', (DOCS / 'index.md').read_text(), re.M)
    assert {str(p.relative_to(DOCS))[:-3] for p in PAGES} == {*listed, 'index'}


def test_generated_pages(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    from generate import benchmarks, markdown, model_zoo, reference
    text = reference()
    assert 'mmquant.OutputDivergence()' in text and 'kwargs' not in text
    assert '### PatternSearch' in text and '### OutputDivergence' in text and '### ElementMix' in text
    assert '### Reconstruction' in text and '- `num_iters` (int)' in text and '### ReportHook' in text
    assert markdown('Text ``a*b`` and *c*.\n\nArgs:\n    x (int): One of :class:`Y`.\n        More.') == (
        'Text `a*b` and \\*c\\*.\n\n\n**Args**\n\n- `x` (int): One of `Y`.\n  More.')
    zoo = model_zoo()
    assert '## BRECQ' in zoo and '`configs/brecq/resnet18_w2a4_digits.py`' in zoo and '](./' not in zoo
    page = benchmarks()
    assert all(f'tools/analysis_tools/benchmark_{name}.py' in page for name in ('memory', 'reconstruction', 'search'))


@pytest.mark.slow
@pytest.mark.skipif(find_spec('sphinx') is None or find_spec('myst_parser') is None or find_spec('sphinx_copybutton')
                    is None, reason='Sphinx is not installed (requirements/docs.txt)')
def test_build_without_warnings(tmp_path):
    command = [sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q', '-b', 'html', str(DOCS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / 'index.html').exists() and (tmp_path / '_images' / 'grid.svg').exists()
