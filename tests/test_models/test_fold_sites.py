import pytest
import torch
import torch.nn.functional as F
from models_for_tests import Attention, ResNet, ViT, flow_of, foldable_pairs, images, randomize
from torch import nn

from mmquant.models.fold_sites import FoldSite, changes_nothing, depthwise_chains, fold_sites, scale_channels
from mmquant.models.folding import become_identity, fold
from mmquant.models.recorder import record


class Net(nn.Module):
    """A forward given as a function of the module."""

    def __init__(self, function, **children) -> None:
        super().__init__()
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x):
        return self.function(self, x)


def conv(c_in, c_out, size=1, **more):
    return nn.Conv2d(c_in, c_out, size, padding=size // 2, **more)


def sites_of(model, x, kinds=('homogeneous', 'norm', 'value')):
    model = randomize(model)
    flow = flow_of(model, x)
    found = fold_sites(model, flow, kinds, lambda: model(x))
    for site in found:  # each one keeps the function
        assert changes_nothing(model, site, lambda: model(x))
    return [(s.producer, s.consumers) if s.rows[0] == 0 else (s.producer, s.consumers, s.rows) for s in found]


@pytest.mark.parametrize('middle, passed', [
    (F.relu, True), (nn.LeakyReLU(0.1), True), (nn.PReLU(6, 0.2), True), (lambda x: F.max_pool2d(x, 2), True),
    (lambda x: F.avg_pool2d(x, 2), True), (lambda x: F.pad(F.relu(x), (1, 1, 0, 2)), True),
    (lambda x: x.contiguous().clone(), True), (F.relu6, False), (F.gelu, False), (torch.sigmoid, False),
    (lambda x: x + 1, False), (lambda x: torch.cat([x, x], 1)[:, :6], False), (lambda x: x.flip(1), False),
    (lambda x: x[:, [1, 0, 2, 3, 4, 5]], False), (lambda x: x.transpose(2, 3), True),
])
def test_convolutions_through(middle, passed):
    model = Net(lambda self, x: self.b(middle(self.a(x))), a=conv(3, 6, 3), b=conv(6, 4, 3))
    assert sites_of(model, images(2, 3, 8, 8)) == [('a', ('b', ))] * passed


@pytest.mark.parametrize('middle, passed', [
    (lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1), True), (lambda x: x.mean((2, 3)), True),
    (lambda x: F.adaptive_avg_pool2d(F.relu(x), 1).squeeze(-1).squeeze(-1), True), (lambda x: x[:, :, 0, 0], True),
    (lambda x: x.flatten(2).transpose(1, 2), True), (lambda x: x.permute(0, 2, 3, 1), True),
    (lambda x: x.mean((1, 3)), False), (lambda x: x.flatten(1)[:, :6], False),
])
def test_convolution_to_linear(middle, passed):
    model = Net(lambda self, x: self.b(middle(self.a(x))), a=conv(3, 6), b=nn.Linear(6, 2))
    assert sites_of(model, images(2, 3, 6, 6)) == [('a', ('b', ))] * passed


def test_all_readers_of_a_tensor_are_one_site():
    model = Net(lambda self, x: self.b(y := F.relu(self.a(x))) + self.c(y), a=conv(3, 6), b=conv(6, 4), c=conv(6, 4))
    assert sites_of(model, images(2, 3, 4, 4)) == [('a', ('b', 'c'))]


@pytest.mark.parametrize('forward', [
    lambda self, x: (self.b(y := self.a(x)), y),  # the network returns it
    lambda self, x: self.b(y := self.a(x)) + y,  # an addition reads it
    lambda self, x: self.b(self.a(self.a(x))),  # called twice
    lambda self, x: self.b(self.b(self.a(x))),
])
def test_tensors_that_others_read_make_no_site(forward):
    assert sites_of(Net(forward, a=conv(4, 4), b=conv(4, 4)), images(2, 4, 4, 4)) == []


def test_groups_depthwise_and_transposed_layers():
    layers = dict(a=conv(4, 8), dw=conv(8, 8, 3, groups=8), b=conv(8, 12, groups=4),
                  t=nn.ConvTranspose2d(12, 6, 2, 2, groups=2), c=conv(6, 4, groups=2))
    model = Net(lambda self, x: self.c(F.relu(self.t(self.b(F.relu(self.dw(F.relu(self.a(x)))))))), **layers)
    assert sites_of(model, images(2, 4, 6, 6)) == [('a', ('dw', )), ('dw', ('b', )), ('b', ('t', )), ('t', ('c', ))]
    found = fold_sites(model, flow_of(model, images(2, 4, 6, 6)))
    assert depthwise_chains(model, found) == [('a', 'dw', 'b')]


def test_resnet_has_one_site_per_block():
    """Behind the shortcut's addition nothing can be moved."""
    model = randomize(ResNet())
    x = images(2, 3, 16, 16)
    for layer, bn in foldable_pairs(model, flow_of(model, x)):
        fold(model.get_submodule(layer), model.get_submodule(bn))
        become_identity(model.get_submodule(bn))
    expected = [(f'layer{k}.{i}.conv1', (f'layer{k}.{i}.conv2', )) for k in (1, 2) for i in (0, 1)]
    assert [(s.producer, s.consumers) for s in fold_sites(model, flow_of(model, x))] == expected


@pytest.mark.parametrize('fused', [False, True])
def test_transformer_sites(fused):
    found = sites_of(ViT(depth=1, fused=fused), images(2, 3, 16, 16))
    norms = [('layers.0.norm1', ('layers.0.attn.qkv', )), ('layers.0.norm2', ('layers.0.ffn.0', )),
             ('norm', ('head', ))]
    assert [s for s in found if s[0] in dict(norms)] == norms
    assert [s for s in found if s not in norms] == [('layers.0.attn.qkv', ('layers.0.attn.proj', ), (16, 24))]


def test_heads_cut_in_another_order_are_no_value_site():

    class Odd(Attention):

        def forward(self, x):
            b, n, c = x.shape
            q, k, v = self.qkv(x).reshape(b, n, self.heads, 3, c // self.heads).permute(3, 0, 2, 1, 4)
            out = (q @ k.transpose(-2, -1)).softmax(-1) @ v
            return self.proj(out.transpose(1, 2).reshape(b, n, c))

    assert sites_of(Odd(), images(2, 5, 8)) == []


def test_values_taken_by_index():
    """As in mmpretrain's attention: three operations read the joint projection."""

    class Indexed(Attention):

        def forward(self, x):
            b, n, c = x.shape
            qkv = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
            out = (qkv[0] @ qkv[1].transpose(-2, -1)).softmax(-1) @ qkv[2]
            return self.proj(out.transpose(1, 2).reshape(b, n, c))

    assert sites_of(Indexed(), images(2, 5, 8)) == [('qkv', ('proj', ), (16, 24))]


def test_separate_projections_of_attention():

    def forward(self, x):
        return self.o((self.q(x) @ self.k(x).transpose(1, 2)).softmax(-1) @ self.v(x))

    model = Net(forward, **{n: nn.Linear(6, 6) for n in 'qkvo'})
    assert sites_of(model, images(2, 5, 6)) == [('v', ('o', ))]


def test_norms_without_factors_or_over_several_axes_make_no_site():
    for norm in (nn.LayerNorm(6, elementwise_affine=False), nn.LayerNorm((5, 6))):
        assert sites_of(Net(lambda self, x: self.b(self.norm(x)), norm=norm, b=nn.Linear(6, 2)), images(2, 5, 6)) == []


@pytest.mark.parametrize('factor', [torch.ones(3), torch.tensor([1., 2, 3, -1]), torch.full((4, ), float('nan'))])
def test_factors_are_checked(factor):
    model = nn.Sequential(conv(3, 4), conv(4, 2))
    with pytest.raises(ValueError, match='0 takes 4 positive factors, got'):
        scale_channels(model, FoldSite('homogeneous', '0', ('1', ), (0, 4)), factor)


def test_trying_out_leaves_every_bit():
    model, x = randomize(Net(lambda self, x: self.b(F.gelu(self.a(x))), a=conv(3, 6), b=conv(6, 4))), images(2, 3, 4, 4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert not changes_nothing(model, FoldSite('homogeneous', 'a', ('b', ), (0, 6)), lambda: model(x))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# ---- the questions behind: answers of the record ---------------------------------------------------------------------
def flow_and(model, x):
    flow = record(randomize(model), model, x)
    return flow, {name: calls[0] for name, calls in flow.calls_of.items()}


def test_maker_is_who_made_the_tensor_not_who_passed_it_on():
    model = Net(lambda self, x: self.wrap(F.relu(self.a(x)) * 2), a=conv(3, 3),
                wrap=nn.Sequential(nn.Identity(), conv(3, 2)))
    flow, calls = flow_and(model, images(1, 3, 4, 4))
    assert flow.maker(calls['a'].outputs[0]) is calls['a'] and flow.maker(calls['wrap.1'].outputs[0]) is calls['wrap.1']
    assert flow.maker(calls['wrap.0'].outputs[0]) is None and flow.maker(flow.network_inputs[0]) is None
    assert flow.maker(flow.calls[0].outputs[0]) is calls['wrap.1']


def test_layers_reading_and_others():

    def forward(self, x):
        y = self.a(x)
        return self.b(y.flatten(1).view_as(y)) + self.c(y), y.sum()

    flow, calls = flow_and(Net(forward, a=conv(3, 3), b=conv(3, 3), c=conv(3, 3)), images(1, 3, 4, 4))
    value = calls['a'].outputs[0]
    assert flow.layers_reading(value) == ([calls['b'], calls['c']], True)
    assert flow.layers_reading(calls['a'].inputs[0]) == ([calls['a']], False)
    assert flow.layers_reading(calls['b'].outputs[0]) == ([], True)


def test_paths():
    model = Net(lambda self, x: self.c(F.max_pool2d(F.relu(self.b(F.relu(self.a(x)))), 2)) + self.d(x).mean(),
                **{n: conv(3, 3) for n in 'abcd'})
    flow, calls = flow_and(model, images(1, 3, 4, 4))
    names = [op.name for op in flow.path(calls['b'], calls['c'])]
    assert names[0] == 'relu' and names[1].startswith('max_pool2d') and len(names) == 2
    assert [op.name for op in flow.path(calls['a'], calls['c'])] == ['relu', 'convolution', *names]
    assert flow.path(calls['a'], calls['d']) is None


def test_adds_concats_and_constants():

    def forward(self, x):
        y = self.a(x)
        z = torch.cat([x, y], 1)[:, 1:3]
        return (y + x) + 1 + y.mean((2, 3), keepdim=True), z + z

    flow, calls = flow_and(Net(forward, a=conv(3, 3)), images(1, 3, 4, 4))
    add, = flow.adds()
    assert set(add.inputs) == {calls['a'].outputs[0], flow.network_inputs[0]} and len(flow.concats()) == 1
    mean = next(op for op in flow.ops if op.name == 'mean')
    assert [x for x in mean.args if type(x) is int] == [2, 3] and True in mean.args


def test_layers_before_and_last_layers():
    flow, _ = flow_and(ResNet(), images(1, 3, 8, 8))
    assert flow.layers_before(flow.calls_of['layer2.0'][0].outputs) == {'layer2.0.conv2', 'layer2.0.downsample.0'}
    assert flow.layers_before(flow.calls[0].outputs) == {'fc'}
