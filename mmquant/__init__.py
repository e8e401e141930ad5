"""Post-training quantization for OpenMMLab models. Importing this package imports neither torch nor mmengine."""
from .utils import check_versions, torchvision_shim
from .version import __version__

check_versions()
torchvision_shim.install()

__all__ = ['__version__', 'quantize']


def __getattr__(name):
    if name == 'quantize':
        from .apis import quantize
        return quantize
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
    return sorted([*globals(), 'quantize'])
