"""The notebooks run from the first cell to the last."""
import json
import os

import matplotlib
import pytest
from detectors_for_tests import needs_detectors
from tools_for_tests import ROOT

NOTEBOOKS = sorted((ROOT / 'demo').glob('*.ipynb'))


def code_of(notebook) -> list[str]:
    cells = json.loads(notebook.read_text(encoding='utf-8'))['cells']
    return [''.join(c['source']) for c in cells if c['cell_type'] == 'code']


def executed(notebook: str, monkeypatch) -> dict:
    """The names that a notebook leaves behind when its cells run one after another."""
    monkeypatch.chdir(ROOT / 'demo')
    matplotlib.use('Agg')
    space: dict = {}
    for number, code in enumerate(code_of(ROOT / 'demo' / notebook)):
        exec(compile(code, f'cell {number}', 'exec'), space)
    assert os.getcwd() == str(ROOT)
    return space


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda p: p.stem)
def test_stored_without_outputs(notebook):
    cells = json.loads(notebook.read_text(encoding='utf-8'))['cells']
    assert not any(c.get('outputs') or c.get('execution_count') for c in cells) and len(cells) > 4


@pytest.mark.slow
def test_classification(monkeypatch):
    found = executed('classification.ipynb', monkeypatch)['found']
    assert found['float'] > 98 and found['W2A4 BRECQ'] > found['W2A4 nearest'] + 20 and found['W4A4 BRECQ'] > 95


@pytest.mark.slow
@needs_detectors
def test_detection(monkeypatch):
    """Average precision, and as many boxes drawn as found."""
    space = executed('detection.ipynb', monkeypatch)
    found = space['found']
    assert list(found) == ['float', 'nearest', 'final']
    assert found['float'] > 0.5 and found['final'] > 0.8 * found['float']
    drawn = [len(axis.patches) for axis in space['figure'].axes]
    assert len(drawn) == 8 and drawn[:4] == [len(space['boxes'](space['float_model'], b)) for b in space['batches']]
    assert sum(drawn[:4]) > 4 and abs(sum(drawn[4:]) - sum(drawn[:4])) <= sum(drawn[:4]) / 2
