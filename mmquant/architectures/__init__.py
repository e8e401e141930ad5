"""Float architectures that mmpretrain and mmdet do not have."""
from .resnet_cifar import ResNetCifar

__all__ = ['ResNetCifar']
