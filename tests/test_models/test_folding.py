import copy

import pytest
import torch
from models_for_tests import BasicBlock, ResNet, flow_of, foldable_pairs, images, quantizer_cfg, randomize
from torch import nn

from mmquant.models import QuantizedModel
from mmquant.models.edits import Folded
from mmquant.models.fold_sites import fold_sites, scale_channels
from mmquant.models.folding import FoldedBatchNorm, become_identity, fold

LAYERS = dict(
    conv=(lambda: nn.Conv2d(4, 6, 3, padding=1), lambda: nn.BatchNorm2d(6), (5, 4, 7, 7)),
    no_bias=(lambda: nn.Conv2d(4, 6, 3, bias=False), lambda: nn.BatchNorm2d(6), (5, 4, 7, 7)),
    depthwise=(lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), lambda: nn.BatchNorm2d(6), (5, 6, 7, 7)),
    grouped=(lambda: nn.Conv2d(4, 6, 3, groups=2), lambda: nn.BatchNorm2d(6), (5, 4, 7, 7)),
    conv1d=(lambda: nn.Conv1d(4, 6, 3), lambda: nn.BatchNorm1d(6), (5, 4, 7)),
    conv3d=(lambda: nn.Conv3d(2, 6, 2), lambda: nn.BatchNorm3d(6), (3, 2, 4, 4, 4)),
    transposed=(lambda: nn.ConvTranspose2d(4, 6, 3, 2, bias=False), lambda: nn.BatchNorm2d(6), (5, 4, 7, 7)),
    transposed3d=(lambda: nn.ConvTranspose3d(4, 6, 2, 2, groups=2), lambda: nn.BatchNorm3d(6), (5, 4, 3, 4, 3)),
    transposed_grouped=(lambda: nn.ConvTranspose2d(4, 6, 3, 2, groups=2), lambda: nn.BatchNorm2d(6), (5, 4, 7, 7)),
    transposed1d=(lambda: nn.ConvTranspose1d(4, 6, 3, groups=2), lambda: nn.BatchNorm1d(6), (5, 4, 7)),
    linear=(lambda: nn.Linear(4, 6), lambda: nn.BatchNorm1d(6), (9, 4)),
    not_affine=(lambda: nn.Conv2d(4, 6, 3), lambda: nn.BatchNorm2d(6, affine=False), (5, 4, 7, 7)),
)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


@torch.no_grad()
@pytest.mark.parametrize('kind', LAYERS)
def test_folding_keeps_the_output(kind):
    make_layer, make_bn, shape = LAYERS[kind]
    torch.manual_seed(0)
    layer, bn = make_layer(), make_bn()
    if bn.affine:
        randomize(bn)
    bn.running_mean.normal_(), bn.running_var.uniform_(0.1, 4)
    net, x = nn.Sequential(layer, bn).eval(), images(*shape)
    before, bare = net(x), layer(x)
    assert foldable_pairs(net, flow_of(net, x)) == [('0', '1')]
    fold(layer, bn)
    become_identity(net[1])
    assert relative(net(x), before) < 1e-4 and relative(bare, before) > 0.1
    assert isinstance(net[1], nn.Identity) and layer.bias is not None
    sigma = (bn.running_var + bn.eps).sqrt()
    torch.testing.assert_close(layer.folded_bn.sigma, sigma)
    torch.testing.assert_close(layer.folded_bn.gamma, bn.weight if bn.affine else torch.ones(6))
    assert layer.folded_bn.beta.shape == layer.folded_bn.mean.shape == (6,)


def test_statistics_move_are_saved_and_come_back():
    layer = nn.Conv2d(3, 4, 1)
    fold(layer, randomize(nn.BatchNorm2d(4)))
    other = nn.Conv2d(3, 4, 1)
    fold(other, nn.BatchNorm2d(4))
    other.load_state_dict(layer.state_dict())
    for name in ('gamma', 'beta', 'mean', 'sigma'):
        assert torch.equal(getattr(other.folded_bn, name), layer.state_dict()[f'folded_bn.{name}'])
    assert layer.to(torch.float64).folded_bn.sigma.dtype is torch.float64 and layer.to('meta').folded_bn.mean.is_meta


def test_a_state_without_statistics_says_that_there_are_none():
    layer = nn.Conv2d(3, 4, 1)
    fold(layer, nn.BatchNorm2d(4))
    state = {k: v for k, v in layer.state_dict().items() if 'folded_bn' not in k}
    layer.load_state_dict(state)  # strict
    assert all(getattr(layer.folded_bn, name) is None for name in ('gamma', 'beta', 'mean', 'sigma'))
    merged = nn.Conv2d(3, 4, 1)
    merged.folded_bn = FoldedBatchNorm(beta=torch.ones(4))
    layer.load_state_dict(merged.state_dict())
    assert torch.equal(layer.folded_bn.beta, torch.ones(4)) and layer.folded_bn.sigma is None


def test_statistics_follow_a_factor_of_the_channels():
    """A factor of the output is one of its mean and deviation; what lay before the BatchNorm stays."""
    net, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)), images(2, 3, 4, 4)
    fold(net[0], randomize(nn.BatchNorm2d(4)))
    before = copy.deepcopy(net[0].folded_bn)
    site, = fold_sites(net, flow_of(net, x))
    scale_channels(net, site, factor := torch.tensor([1.0, 2, 3, 0.5]))
    assert torch.equal(net[0].folded_bn.gamma, before.gamma * factor)
    assert torch.equal(net[0].folded_bn.beta, before.beta * factor)
    assert torch.equal(net[0].folded_bn.mean, before.mean) and torch.equal(net[0].folded_bn.sigma, before.sigma)


@torch.no_grad()
def test_whole_residual_net():
    model, x = randomize(ResNet()), images(4, 3, 16, 16)
    before = model(x)
    pairs = foldable_pairs(model, flow_of(model, x))
    assert pairs == [('conv1', 'bn1'), ('layer1.0.conv1', 'layer1.0.bn1'), ('layer1.0.conv2', 'layer1.0.bn2'),
                     ('layer1.1.conv1', 'layer1.1.bn1'), ('layer1.1.conv2', 'layer1.1.bn2'),
                     ('layer2.0.downsample.0', 'layer2.0.downsample.1'), ('layer2.0.conv1', 'layer2.0.bn1'),
                     ('layer2.0.conv2', 'layer2.0.bn2'), ('layer2.1.conv1', 'layer2.1.bn1'),
                     ('layer2.1.conv2', 'layer2.1.bn2')]
    wrapped = QuantizedModel(model, quantizer_cfg(), 'random')
    assert wrapped.fold_batch_norm(x[:2]) == pairs
    assert relative(wrapped(x), before) < 1e-4 and not torch.equal(wrapped(x), before)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


class Net(nn.Module):

    def __init__(self, forward, **children) -> None:
        super().__init__()
        self.run = forward
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x):
        return self.run(self, x)


def conv_and_bn(**more):
    return dict(conv=nn.Conv2d(3, 3, 1), bn=nn.BatchNorm2d(3), **more)


def read_twice(self, x):
    y = self.conv(x)
    return self.bn(y) + y


def shared_layer(self, x):
    return self.bn(self.conv(self.conv(x)))


def shared_bn(self, x):
    return self.bn(self.conv(self.bn(x)))


def returned(self, x):
    y = self.conv(x)
    return y, self.bn(y)


def relu_between(self, x):
    return self.bn(self.conv(x).relu())


@pytest.mark.parametrize('forward', [read_twice, shared_layer, shared_bn, returned, relu_between])
def test_what_must_not_be_folded(forward):
    net = Net(forward, **conv_and_bn())
    assert foldable_pairs(net, flow_of(net, images(2, 3, 4, 4))) == []


def test_batch_norm_of_an_input_is_left_alone():
    net = Net(lambda self, x: self.conv(self.bn(x)), **conv_and_bn())
    assert foldable_pairs(net, flow_of(net, images(2, 3, 4, 4))) == []


def test_batch_norm_without_statistics_is_not_folded():
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False))
    assert foldable_pairs(net, flow_of(net, images(2, 3, 4, 4))) == []


def test_batch_norm_over_tokens_is_not_folded():
    """A linear layer's channels are last, BatchNorm1d's are second."""
    net = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
    assert foldable_pairs(net, flow_of(net, images(4, 6, 6))) == []


def test_weight_standardisation_is_not_folded():
    """Its forward divides by the weight's spread, so a factor in the weight would be lost."""
    mmcv = pytest.importorskip('mmcv.cnn.bricks')
    net = nn.Sequential(mmcv.ConvWS2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    assert foldable_pairs(net, flow_of(net, images(2, 3, 6, 6))) == [('2', '3')]


def test_subclass_that_only_pads_is_folded():
    mmcv = pytest.importorskip('mmcv.cnn.bricks')
    net = nn.Sequential(mmcv.Conv2dAdaptivePadding(3, 4, 3, 2), nn.BatchNorm2d(4))
    assert foldable_pairs(net, flow_of(net, images(2, 3, 7, 7))) == [('0', '1')]


def test_registration_order_does_not_matter():
    """Execution decides: mmcv's helper and the paper's code look at the order of the children."""

    class Reversed(nn.Module):

        def __init__(self) -> None:
            super().__init__()
            self.bn_b, self.bn_a = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
            self.b, self.a = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.bn_b(self.b(self.bn_a(self.a(x))))

    net, x = randomize(Reversed()), images(2, 3, 4, 4)
    assert foldable_pairs(net, flow_of(net, x)) == [('a', 'bn_a'), ('b', 'bn_b')]


def test_folding_twice_finds_nothing_more():
    wrapped = QuantizedModel(randomize(BasicBlock(3, 3)), quantizer_cfg(), 'random')
    x = images(2, 3, 4, 4)
    first = copy.deepcopy(wrapped.fold_batch_norm(x))
    assert len(first) == 2 and wrapped.plan.edits == tuple(Folded(*pair) for pair in first)
    with torch.no_grad():
        before = wrapped(x)
        assert wrapped.fold_batch_norm(x) == []
        assert torch.equal(wrapped(x), before)
    assert wrapped.plan.edits == tuple(Folded(*pair) for pair in first)
