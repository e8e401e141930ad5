"""Thin ResNets for CIFAR."""
import pytest
import torch

from mmquant.architectures import ResNetCifar


@pytest.mark.parametrize('depth, millions', [(20, 0.27), (56, 0.85)])
def test_size_of_the_paper(depth, millions):
    backbone = ResNetCifar(depth)
    parameters = sum(p.numel() for p in backbone.parameters())
    assert parameters / 1e6 == pytest.approx(millions, abs=0.01)  # Table 6 of the paper, less the 650 of the head
    convolutions = [m for name, m in backbone.named_modules()
                    if isinstance(m, torch.nn.Conv2d) and 'downsample' not in name]
    assert len(convolutions) == depth - 1


def test_output():
    features, = ResNetCifar(20)(torch.zeros(2, 3, 32, 32))
    assert features.shape == (2, 64, 8, 8)


def test_unknown_depth():
    with pytest.raises(KeyError, match='18'):
        ResNetCifar(18)
