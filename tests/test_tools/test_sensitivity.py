"""The sensitivity of layers on the command line: files, and a section of the run's report."""
import csv

import pytest
from tools_for_tests import CONFIG, run_tool, runner_of

HOOKS = [dict(type='mmquant.ReportHook', num_images=4)]


@pytest.fixture(scope='module')
def work_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')
    runner_of(folder, hooks=HOOKS).train()
    return folder


def measure(work_dir, out, *args):
    run_tool('analysis_tools/sensitivity.py', CONFIG, work_dir / 'quantized.pth', '--work-dir', out, '--images', 10,
             '--batches', 1, *args)
    with open(out / 'sensitivity.csv', newline='') as f:
        return list(csv.DictReader(f))


def test_files_and_report(work_dir, tmp_path):
    page = work_dir / 'report.html'
    assert 'Not measured yet' in page.read_text()
    rows = measure(work_dir, tmp_path, '--layers', 'fc|layer4.1.conv2')
    names = [row['name'] for row in rows]
    assert sorted(names) == ['backbone.layer4.1.conv2', 'head.fc']
    drops = [float(row['drop']) for row in rows]
    assert drops == sorted(drops, reverse=True) and all(row['gain'] and row['sqnr'] for row in rows)
    text = page.read_text()
    section = text[text.index('<section id="sensitivity">'):text.index('<section id="deployed">')]
    assert 'Not measured yet' not in section and '>drop<' in section
    assert all(f'<td>{name}</td>' in section for name in names)
    assert (tmp_path / 'sensitivity.png').stat().st_size > 5000


def test_without_evaluations_or_a_report(work_dir, tmp_path):
    (work_dir / 'report.html').unlink()
    rows = measure(work_dir, tmp_path, '--sqnr-only')
    assert len(rows) > 15 and {row['drop'] for row in rows} == {''}
    values = [float(row['sqnr']) for row in rows]
    assert values == sorted(values)
