"""The thin three-stage ResNets for CIFAR (He et al., https://arxiv.org/abs/1512.03385, section 4.2)."""
from mmpretrain.models.backbones import ResNet_CIFAR
from mmpretrain.models.backbones.resnet import BasicBlock

from mmquant.registry import MODELS


@MODELS.register_module()
class ResNetCifar(ResNet_CIFAR):
    """ResNet-20/32/44/56/110 with 16, 32 and 64 channels for images of 32x32 pixels.

    Same modules and names as mmpretrain's ``ResNet_CIFAR``; only depth and width differ. Deviation from the paper: the
    shortcut of a stage that changes the width is a 1x1 convolution with BatchNorm (option B), not zero padding.

    Args:
        depth: 20, 32, 44, 56 or 110.
        norm_eval: Keep BatchNorm in eval mode while training. Default: False.

    Input: (batch, 3, 32, 32). Output: a tuple with one tensor, (batch, 64, 8, 8).

    Raises:
        KeyError: Depth without an entry in ``arch_settings``.
    """

    arch_settings = {6 * n + 2: (BasicBlock, (n, n, n)) for n in (3, 5, 7, 9, 18)}

    def __init__(self, depth: int, norm_eval: bool = False):
        super().__init__(depth=depth, num_stages=3, stem_channels=16, base_channels=16, strides=(1, 2, 2),
                         dilations=(1, 1, 1), out_indices=(2, ), norm_eval=norm_eval)
