"""Let ``import torchvision`` succeed where its compiled part cannot be loaded.

mmpretrain imports torchvision for its image transforms, which are pure Python. Beside a torch that the compiled part
was not built for (a CPU-only torch and a CUDA torchvision, say), ``import torchvision`` ends in ``RuntimeError:
operator torchvision::nms does not exist``, because torchvision attaches shape functions to two operators that nobody
defined. Defining the two schemas first is enough. The operators themselves stay missing: calling one still raises
torchvision's own error.
"""
import functools
import importlib.abc
import importlib.machinery
import sys
from pathlib import Path


def compiled_part_loads(package_dir: Path) -> bool:
    """Whether the compiled part of the torchvision in ``package_dir`` loads into the running torch."""
    import torch
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = package_dir / f'_C{suffix}'
        if path.is_file():
            try:
                torch.ops.load_library(str(path))
            except (ImportError, OSError):
                return False
            return True
    return False


@functools.cache  # once per process; torch would drop the schemas with the library object
def define_schemas():
    """Define the schemas of the two operators; returns the library that holds them."""
    import torch
    library = torch.library.Library('torchvision', 'FRAGMENT')
    for name in ('nms', 'qnms'):
        library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    return library


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    """Prepares the first ``import torchvision``; finds nothing itself."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname == 'torchvision':
            spec = importlib.machinery.PathFinder.find_spec(fullname, path)
            if spec is not None and spec.origin is not None and not compiled_part_loads(Path(spec.origin).parent):
                define_schemas()
        return None


_finder = _BeforeTorchvision()


def install() -> None:
    """Watch for the first import of torchvision. Imports neither torch nor torchvision itself."""
    if 'torchvision' not in sys.modules and _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
