"""Tables of the benchmark scripts in the file that the documentation reads."""
import argparse
import json
import sys

import pytest
import torch
from benchmarks import add_out_argument, as_markdown, show

CPU = torch.device('cpu')


def test_tables_are_added_and_replaced_with_the_command_that_made_them(tmp_path, monkeypatch):
    out = str(tmp_path / 'notes' / 'benchmarks.json')
    script = 'tools/analysis_tools/benchmark_memory.py'
    monkeypatch.setattr(sys, 'argv', [script, '--budget', '2GiB', '--out', out, '--units', '3', '--work-dir=here'])
    assert '1.50' in show('first', ('step', 'GiB'), [('weights', 1.0), ('ranges', 1.5)], CPU, out)
    show('second', ('step', ), [('a', )], CPU, out)
    show('first', ('step', 'GiB'), [('weights', 1.75)], CPU, out)
    known = json.loads((tmp_path / 'notes' / 'benchmarks.json').read_text())
    tables = known['benchmark_memory.py']
    assert set(known) == {'benchmark_memory.py'} and set(tables) == {'first', 'second'}
    assert tables['first']['rows'] == [['weights', 1.75]]
    assert tables['first']['command'] == 'python tools/analysis_tools/benchmark_memory.py --budget 2GiB --units 3'
    text = as_markdown(tables)
    assert '| step | GiB |\n| --: | --: |\n| weights | 1.75 |\n' in text and tables['first']['device'] in text
    assert text.count('```bash') == 1 and text.count('**') == 4


def test_without_a_file_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert 'weights' in show('first', ('step', ), [('weights', )], CPU, None)
    assert not list(tmp_path.iterdir())


def test_a_file_that_holds_no_tables_is_told_at_once(tmp_path, capsys):
    path = tmp_path / 'broken.json'
    path.write_text('{"benchmark')
    parser = argparse.ArgumentParser()
    add_out_argument(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(['--out', str(path)])
    assert 'broken.json holds no tables of benchmarks' in capsys.readouterr().err
    assert parser.parse_args(['--out', str(tmp_path / 'new.json')]).out == str(tmp_path / 'new.json')
