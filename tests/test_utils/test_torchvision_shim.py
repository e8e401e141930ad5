"""``import torchvision`` after ``import mmquant``, with and without a compiled part that loads; in fresh processes."""
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# A package that does what torchvision does when it is imported.
FAKE_TORCHVISION = '''
import torch

@torch.library.register_fake('torchvision::nms')
def nms(dets, scores, iou_threshold):
    return dets.new_empty(0, dtype=torch.long)

@torch.library.register_fake('torchvision::qnms')
def qnms(dets, scores, iou_threshold):
    return dets.new_empty(0, dtype=torch.long)
'''


def run(code, *path):
    """Run ``code`` in a fresh process with the folders ``path`` first on the import path."""
    pythonpath = [str(p) for p in path] + [str(ROOT)]
    code = f'import sys; sys.path[:0] = {pythonpath!r}\n{code}'
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def fake_torchvision(tmp_path):
    (tmp_path / 'torchvision').mkdir()
    (tmp_path / 'torchvision' / '__init__.py').write_text(FAKE_TORCHVISION)
    return tmp_path


def test_without_the_shim_the_import_fails(fake_torchvision):
    result = run('import torchvision', fake_torchvision)
    assert 'operator torchvision::nms does not exist' in result.stderr


def test_schemas_are_defined_when_the_compiled_part_is_missing(fake_torchvision):
    result = run('import mmquant, torchvision, torch; print(torch.ops.torchvision.nms.default)', fake_torchvision)
    assert result.returncode == 0, result.stderr
    assert 'torchvision.nms.default' in result.stdout


def test_schemas_are_defined_when_the_compiled_part_does_not_load(fake_torchvision):
    (fake_torchvision / 'torchvision' / f'_C{EXTENSION_SUFFIXES[-1]}').write_bytes(b'no library')
    result = run('import mmquant, torchvision', fake_torchvision)
    assert result.returncode == 0, result.stderr


def test_import_of_mmquant_is_light():
    result = run('import mmquant; print(sorted({"torch", "torchvision", "mmengine", "mmcv"} & set(sys.modules)))')
    assert result.stdout.strip() == '[]', result.stderr
    result = run('import mmquant; print("quantize" in dir(mmquant)); mmquant.nothing')
    assert result.stdout.strip() == 'True'
    assert "module 'mmquant' has no attribute 'nothing'" in result.stderr


def test_installed_torchvision_imports_and_keeps_its_operators():
    if find_spec('torchvision') is None or find_spec('mmpretrain') is None:
        pytest.skip('needs torchvision and mmpretrain')
    result = run('import mmquant, torchvision, torch\n'
                 'from mmquant.utils import torchvision_shim as shim\n'
                 'assert torchvision.extension._has_ops() != bool(shim.define_schemas.cache_info().currsize)\n'
                 'import mmpretrain')
    assert result.returncode == 0, result.stderr
