"""tools/setup_env.sh: what it refuses, and that it does nothing when nothing changed."""
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def copy(tmp_path):
    """A folder with what the script reads, and nothing installed."""
    shutil.copytree(ROOT / 'requirements', tmp_path / 'requirements')
    (tmp_path / 'tools').mkdir()
    shutil.copy(ROOT / 'tools' / 'setup_env.sh', tmp_path / 'tools')
    shutil.copy(ROOT / 'setup.py', tmp_path)
    return tmp_path


def setup_env(folder, *arguments, **environment):
    return subprocess.run(['bash', str(folder / 'tools' / 'setup_env.sh'), *arguments], capture_output=True, text=True,
                          timeout=60, check=False, env={'PATH': '/usr/bin:/bin', 'HOME': str(folder), **environment})


def test_unknown_mode(copy):
    result = setup_env(copy, 'everything')
    assert result.returncode == 1
    assert "mode must be run or test, not 'everything'" in result.stderr


def test_no_usable_python(copy):
    result = setup_env(copy, PYTHON='no-such-python')
    assert result.returncode == 1
    assert 'no Python 3.10 to 3.12 among: no-such-python; name one' in result.stderr


def test_originals_in_the_environment_are_refused(copy):
    (copy / '.venv' / 'bin').mkdir(parents=True)
    python = copy / '.venv' / 'bin' / 'python'
    python.write_text('#!/bin/sh\ncase "$*" in *" mmcv") echo 2.2.0 ;; esac\n')
    python.chmod(0o755)
    result = setup_env(copy)
    assert result.returncode == 1
    assert 'mmcv is in .venv, where its onedl- fork is going to be installed' in result.stderr


def test_pins_are_unique():
    names = [line.split('==')[0] for file in (ROOT / 'requirements').glob('*.txt')
             for line in file.read_text().splitlines() if line.startswith(('torch', 'onedl-', 'imaug'))]
    assert sorted(names) == ['imaug', 'onedl-mmcv', 'onedl-mmdetection', 'onedl-mmengine', 'onedl-mmpretrain', 'torch',
                             'torchvision']


@pytest.mark.parametrize('given, passed_on, folder', [
    ('', '', 'work_dirs/resnet18_w2a4_digits'),
    ('--work-dir x --num-iters 5 --cfg-options a=1 b=2 --amp', ' --work-dir x --cfg-options a=1 b=2', 'x'),
    ('--resume --work-dir=y --seed 3', ' --work-dir=y --seed 3', 'y'), ('--work-dir z --dry-run', None, None)])
def test_the_quick_start_exports_what_it_made(tmp_path, given, passed_on, folder):
    """With programs that only print what they are given."""
    for name, text in (('tools/setup_env.sh', ''), ('.venv/bin/python', '#!/bin/sh\necho "$@"\n')):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    (tmp_path / '.venv/bin/python').chmod(0o755)
    shutil.copy(ROOT / 'quickstart.sh', tmp_path)
    done = subprocess.run(['bash', str(tmp_path / 'quickstart.sh'), *given.split()], capture_output=True, text=True)
    config = 'configs/brecq/resnet18_w2a4_digits.py'
    lines = [f'tools/ptq.py {config} {given}'.strip()]
    if folder:
        lines.append(f'tools/export.py {config} {folder}/quantized.pth --verify{passed_on}')
    assert done.returncode == 0 and done.stdout.splitlines() == lines, done
