"""The benchmark scripts run; their figures are not judged here."""
import subprocess
import sys

import pytest
from tools_for_tests import ROOT


@pytest.mark.slow
@pytest.mark.parametrize('script, arguments, titles', [
    ('benchmark_reconstruction.py', ['--batch-size', '1', '--repeats', '1', '--depths', '2'],
     ('One step, ms (medians)', 'Caching 256 images')),
    ('benchmark_solvers.py', ['--layers', 'dw4x3', '8x16', '8x4x3', '--images', '1'], ('Solvers, 4 bits', '8x4x3')),
])
def test_benchmark_prints_its_tables(script, arguments, titles):
    done = subprocess.run([sys.executable, f'tools/analysis_tools/{script}', *arguments], cwd=ROOT, text=True,
                          capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(title in done.stdout for title in titles)
