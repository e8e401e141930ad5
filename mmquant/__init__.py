"""Post-training quantization for OpenMMLab models. Importing this package imports neither torch nor mmengine."""
from .utils import check_versions, torchvision_shim
from .version import __version__

check_versions()
torchvision_shim.install()

_LAZY = ('load', 'quantize', 'summary')  # they import torch
__all__ = ['__version__', *_LAZY]


def __getattr__(name):
    if name in _LAZY:
        from . import apis
        return getattr(apis, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
    return sorted([*globals(), *_LAZY])
