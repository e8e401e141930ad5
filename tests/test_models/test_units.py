import pytest
import torch
import torch.nn.functional as F
from models_for_tests import BasicBlock, Chain, ResNet, ViT, flow_of, images
from torch import nn

from mmquant.models.units import activation_of, find_blocks, find_units, layer_calls, unit_module


def units_of(model, granularity='block', x=None, block_types=()):
    flow = flow_of(model, images(2, 3, 16, 16) if x is None else x)
    return find_units(model, flow, granularity, block_types)


def names(units):
    return [u.name for u in units]


class Inverted(nn.Module):
    """MobileNetV2's block: expansion, depthwise, projection; a shortcut only where shapes agree."""

    def __init__(self, c_in, c_out, stride=1):
        super().__init__()
        self.shortcut = stride == 1 and c_in == c_out
        self.conv = nn.Sequential(nn.Conv2d(c_in, 2 * c_in, 1), nn.ReLU6(),
                                  nn.Conv2d(2 * c_in, 2 * c_in, 3, stride, 1, groups=2 * c_in), nn.ReLU6(),
                                  nn.Conv2d(2 * c_in, c_out, 1))

    def forward(self, x):
        return x + self.conv(x) if self.shortcut else self.conv(x)


class MobileNet(nn.Module):

    def __init__(self):
        super().__init__()
        self.stem, self.relu = nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU6()
        self.layer1 = nn.Sequential(Inverted(4, 4), Inverted(4, 4))
        self.layer2 = nn.Sequential(Inverted(4, 6, 2), Inverted(6, 6))
        self.layer3 = nn.Sequential(Inverted(6, 8))
        self.last, self.relu2, self.fc = nn.Conv2d(8, 12, 1), nn.ReLU6(), nn.Linear(12, 5)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(self.relu(self.stem(x)))))
        return self.fc(self.relu2(self.last(x)).mean((2, 3)))


RESNET_LAYERS = ['conv1', 'layer1.0.conv1', 'layer1.0.conv2', 'layer1.1.conv1', 'layer1.1.conv2',
                 'layer2.0.downsample.0', 'layer2.0.conv1', 'layer2.0.conv2', 'layer2.1.conv1', 'layer2.1.conv2', 'fc']


@pytest.mark.parametrize('make', [ResNet, MobileNet, Chain, ViT])
@pytest.mark.parametrize('granularity', ['layer', 'block', 'stage', 'net'])
def test_every_layer_belongs_to_exactly_one_unit_in_forward_order(make, granularity):
    model = make()
    flow = flow_of(model, images(2, 3, 16, 16))
    units = find_units(model, flow, granularity)
    held = [n for u in units for n in u.layers]
    assert sorted(held) == sorted({c.name for c in layer_calls(model, flow)}) and len(held) == len(set(held))
    assert sorted(held) == sorted(n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    assert [u.enter for u in units] == sorted(u.enter for u in units)
    assert all(a.exit < b.enter for a, b in zip(units, units[1:]))
    assert all(u.enter < u.exit and u.layers for u in units)


def test_resnet_blocks():
    units = units_of(ResNet())
    assert names(units) == ['conv1', 'layer1.0', 'layer1.1', 'layer2.0', 'layer2.1', 'fc']
    assert [u.kind for u in units] == ['layer', 'block', 'block', 'block', 'block', 'layer']
    assert units[3].layers == ('layer2.0.downsample.0', 'layer2.0.conv1', 'layer2.0.conv2')
    assert [u.channel_dim for u in units] == [1, 1, 1, 1, 1, -1]


def test_resnet_layers():
    units = units_of(ResNet(), 'layer')
    assert names(units) == RESNET_LAYERS and {u.kind for u in units} == {'layer'}


def test_resnet_stages_and_net():
    stages = units_of(ResNet(), 'stage')
    assert names(stages) == ['conv1', 'layer1', 'layer2', 'fc']
    assert [u.kind for u in stages] == ['layer', 'stage', 'stage', 'layer'] and len(stages[2].layers) == 5
    net = units_of(ResNet(), 'net')
    assert names(net) == [''] and list(net[0].layers) == RESNET_LAYERS and net[0].channel_dim == 1


def test_siblings_without_a_shortcut_are_blocks_too():
    units = units_of(MobileNet())
    assert names(units) == ['stem', 'layer1.0', 'layer1.1', 'layer2.0', 'layer2.1', 'layer3.0', 'last', 'fc']
    assert [u.kind for u in units] == ['layer'] + ['block'] * 5 + ['layer'] * 2
    assert names(units_of(MobileNet(), 'stage')) == ['stem', 'layer1', 'layer2', 'layer3', 'last', 'fc']


def test_stage_of_one_module_around_all_blocks_is_no_stage():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(BasicBlock(4, 4), BasicBlock(4, 4)))
    assert names(units_of(model, 'stage')) == ['0', '1.0', '1.1']


def test_declared_block_types():

    class Plain(nn.Module):

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.b(F.relu(self.a(x)))

    model = nn.Sequential(Plain(), Plain())
    assert names(units_of(model)) == ['0.a', '0.b', '1.a', '1.b']
    units = units_of(model, block_types=('Plain',))
    assert names(units) == ['0', '1'] and units[0].layers == ('0.a', '0.b') and units[0].kind == 'block'


class TwoAdds(nn.Module):
    """One block with a shortcut inside and one around."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, x):
        y = F.relu(self.a(x)) + x
        return x + self.c(y + self.b(y))


def test_two_adds_make_one_block():
    units = units_of(nn.Sequential(nn.Conv2d(3, 3, 1), TwoAdds(), nn.Conv2d(3, 3, 1)))
    assert names(units) == ['0', '1', '2'] and units[1].layers == ('1.a', '1.b', '1.c')


def test_the_innermost_of_nested_candidates_is_the_block():

    class Outer(nn.Module):

        def __init__(self):
            super().__init__()
            self.first, self.inner = nn.Conv2d(3, 3, 1), BasicBlock(3, 3)

        def forward(self, x):
            return x + self.inner(self.first(x))

    units = units_of(nn.Sequential(nn.Conv2d(3, 3, 1), Outer(), nn.Conv2d(3, 3, 1)))
    assert names(units) == ['0', '1.first', '1.inner', '2']


def test_transformer_layers_are_blocks_with_channels_last():
    units = units_of(ViT())
    assert names(units) == ['patch', 'layers.0', 'layers.1', 'head']
    assert [u.channel_dim for u in units] == [1, -1, -1, -1]
    assert units[1].layers == ('layers.0.attn.qkv', 'layers.0.attn.proj', 'layers.0.ffn.0', 'layers.0.ffn.2')


def test_adds_of_two_branches_that_leave_the_module_are_no_shortcut():
    """The sum of two sibling outputs lies in the smallest module that holds the common input."""

    class Fork(nn.Module):

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.a(x) + self.b(x)

    assert names(units_of(nn.Sequential(Fork(), nn.ReLU(), Fork()))) == ['0', '2']


def test_add_of_a_broadcast_or_of_itself_is_no_shortcut():

    class Odd(nn.Module):

        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            y = self.a(x)
            return y + y + y.mean((2, 3), keepdim=True)

    flow = flow_of(model := nn.Sequential(Odd(), nn.Conv2d(3, 3, 1)), images(1, 3, 4, 4))
    assert find_blocks(model, flow) == []


def test_layer_with_its_activation():
    """A layer unit ends behind the activation module that alone reads it."""

    class Net(nn.Module):

        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))
            self.relu, self.gelu = nn.ReLU(), nn.GELU()

        def forward(self, x):
            y = self.b(self.relu(self.a(x)))
            return self.c(self.gelu(y) + y)

    model = Net()
    units = units_of(model, 'layer')
    assert [u.activation for u in units] == ['relu', None, None]
    x = images(1, 3, 2, 2)
    assert activation_of(model, units[0]) is model.relu and activation_of(model, units[1])(x) is x


def test_shared_activation_follows_the_right_call():
    block = BasicBlock(3, 3)
    block.bn1, block.bn2 = nn.Identity(), nn.Identity()
    units = units_of(nn.Sequential(nn.Conv2d(3, 3, 1), block), 'layer')
    assert [(u.name, u.activation) for u in units] == [('0', None), ('1.conv1', '1.relu'), ('1.conv2', None)]


def test_conv_module_is_the_unit_of_its_layer():
    mmcv = pytest.importorskip('mmcv.cnn')
    model = nn.Sequential(mmcv.ConvModule(3, 4, 1), mmcv.ConvModule(4, 4, 1, norm_cfg=dict(type='BN')))
    units = units_of(model, 'layer')
    assert [(u.name, u.layers) for u in units] == [('0', ('0.conv',)), ('1.conv', ('1.conv',))]
    assert unit_module(model, units[0]) is model[0]


def test_shared_layer_belongs_to_one_unit():
    """Two blocks that share a convolution: the first one reconstructs it."""

    class Sharing(nn.Module):

        def __init__(self, shared):
            super().__init__()
            self.own, self.shared = nn.Conv2d(3, 3, 1), shared

        def forward(self, x):
            return x + self.shared(F.relu(self.own(x)))

    shared = nn.Conv2d(3, 3, 1)
    units = units_of(nn.Sequential(Sharing(shared), Sharing(shared)))
    assert [(u.name, u.layers) for u in units] == [('0', ('0.own', '0.shared')), ('1', ('1.own',))]


def test_block_called_twice_is_no_unit():
    """Recurrent use: its layers are units, each once."""

    class Recurrent(nn.Module):

        def __init__(self):
            super().__init__()
            self.stem, self.block, self.last = nn.Conv2d(3, 3, 1), BasicBlock(3, 3), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.last(self.block(self.block(self.stem(x))))

    assert names(units_of(Recurrent())) == ['stem', 'block.conv1', 'block.conv2', 'last']


def test_head_shared_over_levels_is_one_unit():

    class Pyramid(nn.Module):

        def __init__(self):
            super().__init__()
            self.head = nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return [self.head(x), self.head(F.avg_pool2d(x, 2))]

    units = units_of(Pyramid())
    assert names(units) == ['head'] and units[0].layers == ('head',)


def test_unknown_granularity():
    with pytest.raises(ValueError, match="unknown unit granularity 'blok'; choose one of layer, block, stage, net"):
        units_of(ResNet(), 'blok')


def test_unit_run_alone_gives_the_recorded_shape():
    model = ResNet().eval()
    flow = flow_of(model, images(2, 3, 16, 16))
    for unit in find_units(model, flow, 'block'):
        call = next(c for c in flow.calls if c.name == unit.name and c.enter == unit.enter)
        with torch.no_grad():
            out = unit_module(model, unit)(images(*flow.shapes[call.inputs[0]]))
        assert tuple(out.shape) == flow.shapes[call.outputs[0]]
