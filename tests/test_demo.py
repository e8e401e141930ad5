"""The notebooks run from the first cell to the last."""
import json
import os

import pytest
from tools_for_tests import ROOT

NOTEBOOKS = sorted((ROOT / 'demo').glob('*.ipynb'))


def code_of(notebook) -> list[str]:
    cells = json.loads(notebook.read_text(encoding='utf-8'))['cells']
    return [''.join(c['source']) for c in cells if c['cell_type'] == 'code']


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda p: p.stem)
def test_stored_without_outputs(notebook):
    cells = json.loads(notebook.read_text(encoding='utf-8'))['cells']
    assert not any(c.get('outputs') or c.get('execution_count') for c in cells) and len(cells) > 4


@pytest.mark.slow
def test_classification(monkeypatch):
    monkeypatch.chdir(ROOT / 'demo')
    space: dict = {}
    for number, code in enumerate(code_of(ROOT / 'demo/classification.ipynb')):
        exec(compile(code, f'cell {number}', 'exec'), space)
    found = space['found']
    assert found['float'] > 98 and found['W2A4 BRECQ'] > found['W2A4 nearest'] + 20 and found['W4A4 BRECQ'] > 95
    assert os.getcwd() == str(ROOT)
