"""Float architectures that mmpretrain and mmdet do not have."""
from importlib.util import find_spec

__all__ = []

if find_spec('mmpretrain') is not None:  # the bases are mmpretrain's
    from .resnet_cifar import ResNetCifar
    __all__ += ['ResNetCifar']
