"""The cache of compiled kernels: checked before it is loaded, and repaired."""
import ctypes
import os
import shutil
import stat
import subprocess

import pytest

from mmquant.ops import c_kernels

pytestmark = pytest.mark.skipif(c_kernels.library() is None, reason='no compiler')


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cache folder with an intact library."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    own = c_kernels._own_folder()
    assert own == tmp_path / 'mmquant' / 'kernels' and stat.S_IMODE(own.stat().st_mode) == 0o700
    c_kernels._compile(shutil.which('cc') or shutil.which('gcc'), own / 'kernels-1.so')
    return own


def test_what_is_damaged_is_built_anew(folder, monkeypatch):
    path, built = folder / 'kernels-1.so', []
    whole = path.read_bytes()
    real = c_kernels._compile
    monkeypatch.setattr(c_kernels, '_compile', lambda *args: (built.append(1), real(*args)))
    compiler = shutil.which('cc') or shutil.which('gcc')
    assert c_kernels._load(compiler, path) is not None and not built
    flipped = bytearray(whole)
    flipped[len(whole) // 4] ^= 16
    for number, content in enumerate((b'', whole[:8192], bytes(flipped), whole[:-64]), 1):
        path.unlink()
        path.write_bytes(content)
        path.chmod(0o700)
        if number == 1:
            assert c_kernels._load(None, path) is None  # without a compiler, it is not loaded either
        assert isinstance(c_kernels._load(compiler, path), ctypes.CDLL) and len(built) == number
        assert c_kernels._intact(path) and len(path.read_bytes()) == len(whole)


def test_what_others_may_write_is_not_loaded(folder):
    path = folder / 'kernels-1.so'
    path.chmod(0o722)
    assert not c_kernels._intact(path)
    path.chmod(0o700)
    path.rename(folder / 'other.so')
    path.symlink_to(folder / 'other.so')
    assert not c_kernels._intact(path)
    folder.chmod(0o777)
    with pytest.warns(UserWarning, match='kernels was writable by others; it is closed to them'):
        assert c_kernels._own_folder() == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755 and not os.path.lexists(path)


def test_the_folder_of_another_user(folder, monkeypatch):
    monkeypatch.setattr(os, 'geteuid', lambda: 12345)
    with pytest.warns(UserWarning, match='is not a folder of this user; kernels are compiled for this process alone'):
        assert c_kernels._own_folder() is None
    c_kernels.library.cache_clear()
    try:
        with pytest.warns(UserWarning):
            assert c_kernels.library() is not None
        assert not list(folder.glob('kernels-[!1]*'))
    finally:
        c_kernels.library.cache_clear()


def test_foreign_code_in_an_open_folder_does_not_run(folder, tmp_path):
    source, mark = tmp_path / 'e.c', tmp_path / 'ran'
    source.write_text(f'#include <stdio.h>\n__attribute__((constructor)) static void go(void)'
                      f'{{ fclose(fopen("{mark}", "w")); }}\n')
    path = folder / 'kernels-1.so'
    subprocess.run([shutil.which('cc') or shutil.which('gcc'), '-shared', '-fPIC', source, '-o', path], check=True)
    assert c_kernels._load(None, path) is None and not mark.exists()
    ctypes.CDLL(str(path))
    assert mark.exists()  # it would have run
