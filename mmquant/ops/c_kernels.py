"""Compiled versions of the hottest elementwise operations, built on first use with the system's C compiler.

Where there is no compiler, the tensors are not dense float32 on a CPU, or ``MMQUANT_NATIVE=0``, :func:`library` or
:func:`layout` returns None and the callers use tensor operations instead.
"""
import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
import warnings
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from .elementwise import one_order

OTHERS = stat.S_IWGRP | stat.S_IWOTH
CHUNK = 16384  # as in c_kernels.c
SOURCE = Path(__file__).with_suffix('.c')
FLAGS = ('-O3', '-march=native', '-fopenmp', '-fno-math-errno', '-fno-trapping-math', '-fPIC', '-shared',
         *(('-mprefer-vector-width=512', ) if platform.machine() == 'x86_64' else ()))


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they cannot be had.

    Built once a machine, into the user's cache folder; what there is not the user's own, or damaged, is built anew.
    """
    if os.environ.get('MMQUANT_NATIVE', '1') == '0' or platform.system() != 'Linux':
        return None
    compiler = shutil.which(os.environ.get('CC', 'cc')) or shutil.which('gcc')
    try:
        key = hashlib.sha256(SOURCE.read_bytes() + repr(FLAGS).encode() + _processor()).hexdigest()[:16]
        folder = _own_folder()
        if folder is not None:
            return _load(compiler, folder / f'kernels-{key}.so')
        with tempfile.TemporaryDirectory() as private:  # what is loaded needs no file any more
            return _load(compiler, Path(private) / f'kernels-{key}.so')
    except (OSError, subprocess.SubprocessError, AttributeError):
        return None


def _own_folder() -> Path | None:
    """A cache folder into which this user alone writes, None if it is another's; an open one is closed and emptied."""
    cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    for folder in (cache / 'mmquant', cache / 'mmquant' / 'kernels'):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder.lstat()
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid():
            warnings.warn(f'{folder} is not a folder of this user; kernels are compiled for this process alone',
                          stacklevel=2)
            return None
        if facts.st_mode & OTHERS:
            warnings.warn(f'{folder} was writable by others; it is closed to them, and kernels are compiled anew',
                          stacklevel=2)
            folder.chmod(facts.st_mode & 0o755)
            for found in (cache / 'mmquant' / 'kernels').glob('kernels-*'):
                found.unlink()
    return folder


def _load(compiler: str | None, path: Path) -> ctypes.CDLL | None:
    if not _intact(path):
        if compiler is None:
            return None
        _compile(compiler, path)
    return _declare(ctypes.CDLL(str(path)))


def _intact(path: Path) -> bool:
    """Whether a library is this user's own and ends with its checksum."""
    if not path.exists():
        return False
    facts, content = path.lstat(), path.read_bytes()
    own = stat.S_ISREG(facts.st_mode) and facts.st_uid == os.geteuid() and not facts.st_mode & OTHERS
    return own and content[-64:] == hashlib.sha256(content[:-64]).hexdigest().encode()


def _processor() -> bytes:
    """What ``-march=native`` depends on."""
    info = Path('/proc/cpuinfo').read_text()
    return next((line for line in info.splitlines() if line.startswith(('flags', 'Features'))), '').encode()


def _compile(compiler: str, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / 'kernels.so'
        subprocess.run([compiler, *FLAGS, str(SOURCE), '-o', str(built), '-lmvec', '-lm'], check=True,
                       capture_output=True, timeout=120)
        built.chmod(0o700)
        with open(built, 'r+b') as stream:  # a loader does not look behind the last section
            stream.write(hashlib.sha256(stream.read()).hexdigest().encode())
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(built, path)


def _declare(lib: ctypes.CDLL) -> ctypes.CDLL:
    kinds = dict(n=ctypes.c_long, p=ctypes.c_void_p, r=ctypes.c_float)  # count, pointer, real
    signatures = dict(soft_weight='nnppppprrpp', rounding_regularizer='nprrrpp', fake_quantize='nprrrp',
                      fake_quantize_backward='npprrrpp', lp_errors='nnnpppprp')
    for half in ('', '_half'):
        signatures |= {f'soft_weight_regularized{half}': 'nnppppprrrpppp', f'combine_slopes{half}': 'npprpp',
                       f'power_distance{half}': 'npprrpp'}
    for name, arguments in signatures.items():
        function = getattr(lib, name)
        function.argtypes, function.restype = [kinds[kind] for kind in arguments], None
    return lib


def usable(*tensors: Tensor, half: Tensor | None = None) -> ctypes.CDLL | None:
    """The kernels, if all tensors are float32 on a CPU, dense, and of one memory order; ``half`` may be bfloat16."""
    everything = tensors if half is None else (half, *tensors)
    for t in everything:
        known = t.dtype == torch.float32 or (t is half and t.dtype == torch.bfloat16)
        if t.device.type != 'cpu' or not known:
            return None
    return library() if one_order(*everything) else None


def kernel(name: str, dtype: torch.dtype):
    """One of the kernels that also exist for bfloat16, for this data type."""
    return getattr(library(), f'{name}_half' if dtype == torch.bfloat16 else name)


def chunk_sums(numel: int) -> Tensor:
    """Room for one partial sum a chunk."""
    return torch.empty(max(1, -(-numel // CHUNK)), dtype=torch.float64)
