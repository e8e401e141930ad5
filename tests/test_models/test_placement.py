import pytest
import torch
import torch.nn.functional as F
from models_for_tests import (
    FIRST_LAST_8,
    Attention,
    BasicBlock,
    Chain,
    ResNet,
    ViT,
    calibrated,
    images,
    inserted,
    randomize,
)
from torch import nn

from mmquant.models.placement import Plan


def plan_of(model, x=None, **cfg) -> Plan:
    return inserted(model, images(2, 3, 16, 16) if x is None else x, **cfg).model.plan


def outputs(plan) -> dict:
    return {o.name: o.bits for o in plan.outputs}


def inputs(plan) -> dict:
    return {x.name: x.a_bits for x in plan.layers if x.a_bits is not None}


def weights(plan) -> dict:
    return {x.name: x.w_bits for x in plan.layers}


def notes(plan) -> dict:
    return {x.name: x.note for x in plan.layers if x.note}


class TwoPools(nn.Module):
    """Global pooling as a function and as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.pool = nn.Conv2d(3, 4, 1), BasicBlock(4, 4), nn.AdaptiveAvgPool2d((1, 1))
        self.a, self.b = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        x = self.block(self.stem(x))
        return self.a(self.pool(x).view(x.size(0), -1)) + self.b(F.adaptive_avg_pool2d(x, 1).flatten(1))


def test_resnet_has_brecqs_points():
    """Behind each inner ReLU, behind add and ReLU; 8 bits for what the stem makes and the head is made from."""
    plan = plan_of(randomize(ResNet()), w_bits=2)
    assert outputs(plan) == {'maxpool': 8, 'layer1.0': 4, 'layer1.1': 4, 'layer2.0': 4, 'layer2.1': 8}
    assert inputs(plan) == {'layer1.0.conv2': 4, 'layer1.1.conv2': 4, 'layer2.0.conv2': 4, 'layer2.1.conv2': 4, 'fc': 8}
    bits = weights(plan)
    assert (bits.pop('conv1'), bits.pop('fc')) == (8, 8) and set(bits.values()) == {2} and len(bits) == 9
    assert notes(plan) == {
        'conv1': 'reads the network input', 'layer1.0.conv1': 'quantized at maxpool',
        'layer1.1.conv1': 'quantized at layer1.0', 'layer2.0.conv1': 'quantized at layer1.1',
        'layer2.0.downsample.0': 'quantized at layer1.1', 'layer2.1.conv1': 'quantized at layer2.0'}
    assert len(plan.folded) == 10 and not plan.matmuls


@pytest.mark.parametrize('make', [ResNet, TwoPools, Chain])
def test_memory_layout_changes_nothing(make):
    """Global pooling of channels_last maps ends with another view than that of contiguous ones."""
    plans = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model, x = randomize(make()).to(memory_format=layout), images(2, 3, 16, 16).contiguous(memory_format=layout)
        plans.append(plan_of(model, x))
    assert plans[0] == plans[1]


def test_quantized_tensors_are_the_ones_behind_relu():
    """What the quantizers see: everything is non-negative, and each tensor is seen once."""
    context = inserted(randomize(ResNet()), images(2, 3, 16, 16))
    seen = []
    for name, q in context.model.activation_quantizers().items():
        q.register_forward_pre_hook(lambda m, args, name=name: seen.append((name, args[0].clone())))
    with torch.no_grad(), context.model.quantization(weights=False, activations=False):
        context.model(images(2, 3, 16, 16))
    assert len(seen) == len({n for n, _ in seen}) == 10
    assert all((x >= 0).all() and (x == 0).any() for n, x in seen if n != 'fc.input')
    first = dict(seen)['layer1.0.output']
    assert first.shape == (2, 4, 8, 8)


def test_weights_only():
    overrides = [dict(position='first', w_bits=8), dict(position='last', w_bits=8)]
    plan = plan_of(randomize(ResNet()), a_bits=None, overrides=overrides)
    assert not plan.outputs and not inputs(plan) and set(weights(plan).values()) == {4, 8}


def test_activations_only():
    context = inserted(randomize(ResNet()), images(2, 3, 16, 16), w_bits=None, overrides=())
    plan = context.model.plan
    assert set(weights(plan).values()) == {None} and len(outputs(plan)) == 5 and len(inputs(plan)) == 5
    assert notes(plan)['layer1.1.conv1'] == 'float weights by configuration'
    assert not context.model.quantized_layers() and len(context.model.activation_quantizers()) == 10


def test_chain_quantizes_inputs():
    plan = plan_of(Chain())
    assert not plan.outputs and inputs(plan) == {'convs.1': 8, 'convs.2': 4, 'fc': 8}
    assert notes(plan) == {'convs.0': 'reads the network input'}


def test_no_override_no_8_bits():
    assert inputs(plan_of(Chain(), overrides=())) == {'convs.1': 4, 'convs.2': 4, 'fc': 4}


class TwoReaders(nn.Module):
    """A tensor made by a module or by a function, read by two layers."""

    def __init__(self, functional: bool) -> None:
        super().__init__()
        self.functional, self.act = functional, nn.Hardswish()
        self.stem, self.mid, self.a, self.b = (nn.Conv2d(3, 3, 1) for _ in range(4))
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        y = self.mid(self.stem(x))
        y = F.hardswish(y) if self.functional else self.act(y)
        return self.last(torch.cat([self.a(y), self.b(y)], 1))


def test_several_readers_share_the_quantizer_at_the_producer():
    plan = plan_of(TwoReaders(functional=False), overrides=())
    assert outputs(plan) == {'act': 4} and inputs(plan) == {'mid': 4, 'last': 4}
    assert notes(plan)['a'] == notes(plan)['b'] == 'quantized at act'


def test_readers_of_a_functional_result_share_one_input_quantizer():
    x = images(4, 3, 4, 4)
    model = calibrated(TwoReaders(functional=True), x, overrides=()).model
    plan = model.plan
    assert not plan.outputs and inputs(plan) == {'mid': 4, 'a': 4, 'b': 4, 'last': 4}
    assert {p.name: p.shares for p in plan.layers if p.shares} == {'b': 'a'}
    layers = dict(model.architecture.named_modules())
    assert layers['a'].input_quantizer is layers['b'].input_quantizer
    assert layers['a'].input_quantizer is not layers['mid'].input_quantizer
    assert list(model.activation_quantizers()) == ['mid.input', 'a.input', 'last.input']


def test_both_ways_give_the_same_numbers():
    x, one, two = images(4, 3, 4, 4), TwoReaders(True), TwoReaders(False)
    two.load_state_dict(one.state_dict())
    with torch.no_grad():
        outs = [calibrated(m, x, overrides=()).model(x) for m in (one, two)]
    assert torch.equal(*outs)


def test_tensor_also_read_by_an_add_is_quantized_where_it_is_made():
    """The shortcut sees the same quantized tensor as the convolution."""
    plan = plan_of(randomize(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), BasicBlock(3, 3), nn.Conv2d(3, 3, 1))),
                   overrides=())
    assert outputs(plan) == {'1': 4, '2': 4}


def test_block_output_that_nobody_reads_is_not_quantized():
    plan = plan_of(randomize(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), BasicBlock(3, 3))), overrides=())
    assert outputs(plan) == {'1': 4}


@pytest.mark.parametrize('fused', [False, True])
def test_attention_sites(fused):
    plan = plan_of(ViT(fused=fused))
    sites = {'0': 'attention'} if fused else {'0': 'matmul', '1': 'matmul'}
    assert [(m.name, m.bits, m.sites) for m in plan.matmuls] == [(f'layers.{i}.attn', 4, sites) for i in range(2)]
    assert not any('qkv' in n for n in outputs(plan)) and weights(plan)['layers.0.attn.qkv'] == 4
    assert inputs(plan)['layers.1.attn.proj'] == 4 and inputs(plan)['head'] == 8


def test_attention_bits():
    x = images(2, 5, 8)
    assert plan_of(Attention(), x, matmul_bits=8).matmuls[0].bits == 8
    assert not plan_of(Attention(), x, matmul_bits=None).matmuls
    assert not plan_of(Attention(), x, a_bits=None).matmuls
    overrides = [dict(pattern=r'layers\.0\.attn', matmul_bits=6), dict(pattern=r'layers\.1\.attn', matmul_bits=None)]
    assert [(m.name, m.bits) for m in plan_of(ViT(), overrides=overrides).matmuls] == [('layers.0.attn', 6)]


class Idle(nn.Module):
    """Holds a layer that is never called, and one whose weight is used without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle, self.borrowed = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return F.linear(self.used(x), self.borrowed.weight)


def test_unreached_layers_are_listed_with_a_reason():
    model = inserted(Idle(), images(4, 3)).model
    found = {p.name: (p.w_bits, p.a_bits, p.note) for p in model.plan.layers}
    reason = 'not reached through its own forward by the observed batch'
    assert found['idle'] == found['borrowed'] == (None, None, reason) and found['used'][0] == 8
    assert list(model.quantized_layers()) == ['used']


def test_overrides_by_pattern_win_over_positions_and_defaults():
    overrides = [*FIRST_LAST_8, dict(pattern='conv1', w_bits=6), dict(pattern=r'layer1\..*conv2', w_bits=3, a_bits=5),
                 dict(pattern='fc', w_bits=None, a_bits=None)]
    plan = plan_of(randomize(ResNet()), overrides=overrides)
    bits = weights(plan)
    assert bits['conv1'] == 6 and bits['layer1.0.conv2'] == bits['layer1.1.conv2'] == 3 and bits['layer1.0.conv1'] == 4
    assert bits['fc'] is None and notes(plan)['fc'] == 'float weights by configuration'
    found = inputs(plan)
    assert found['layer1.0.conv2'] == 5 and found['layer2.0.conv2'] == 4 and 'fc' not in found
    # the last block feeds only the float head
    assert outputs(plan) == {'maxpool': 8, 'layer1.0': 4, 'layer1.1': 4, 'layer2.0': 4}


def test_the_widest_wish_of_several_readers_wins():
    overrides = [dict(pattern=r'layer2\.0\.conv1', a_bits=6), dict(pattern=r'layer2\.0\.downsample\.0', a_bits=7)]
    assert outputs(plan_of(randomize(ResNet()), overrides=overrides))['layer1.1'] == 7
    overrides[0]['a_bits'] = None
    assert 'layer1.1' not in outputs(plan_of(randomize(ResNet()), overrides=overrides))


def test_head_over_two_levels_has_one_quantizer():

    class Pyramid(nn.Module):

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head, self.last = (nn.Conv2d(3, 3, 1) for _ in range(3))

        def forward(self, x):
            x = self.stem(x)
            return [self.last(self.head(level)) for level in (x, F.avg_pool2d(x, 2))]

    x = images(2, 3, 4, 4)
    model = calibrated(Pyramid(), x, overrides=()).model
    assert inputs(model.plan) == {'head': 4, 'last': 4} and not model.plan.outputs
    assert len(model.activation_quantizers()) == 2


def test_plan_survives_as_plain_values():
    plan = plan_of(ViT(), overrides=[*FIRST_LAST_8, dict(pattern='layers.0.ffn.0', w_bits=3)])
    plain = plan.to_dict()
    assert Plan.from_dict(plain) == plan

    def check(x):
        assert x is None or type(x) in (dict, list, tuple, str, int, bool), x
        for y in (x.values() if isinstance(x, dict) else x if isinstance(x, (list, tuple)) else ()):
            check(y)

    check(plain)
