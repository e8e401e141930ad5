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

from mmquant.models.cost import model_cost
from mmquant.models.edits import Folded
from mmquant.models.plan import Plan


def plan_of(model, x=None, **cfg) -> Plan:
    return inserted(model, images(2, 3, 16, 16) if x is None else x, **cfg).model.plan


def outputs(plan) -> dict:
    return {p.name: p.bits for p in plan.places if p.what == 'output'}


def inputs(plan) -> dict:
    return {name: p.bits for p in plan.places if p.what == 'input' for name in p.readers}


def weights(plan) -> dict:
    return {name: plan.weights[name].bits if name in plan.weights else None for name in plan.layers}


def operands(plan) -> dict:
    """Module -> (bits, product -> roles)."""
    found = {}
    for p in plan.places:
        if p.what == 'operand':
            found.setdefault(p.name, (p.bits, {}))[1].setdefault(p.call, []).append(p.role)
    return found


def producers(plan) -> dict:
    """Layer -> module whose output it reads quantized."""
    return {name: p.name for p in plan.places if p.what == 'output' for name in p.readers}


def notes(model) -> dict:
    return {x.name: x.note for x in model_cost(model, 2).layers if x.note}


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
    model = inserted(randomize(ResNet()), images(2, 3, 16, 16), w_bits=2).model
    plan = model.plan
    assert outputs(plan) == {'maxpool': 8, 'layer1.0': 4, 'layer1.1': 4, 'layer2.0': 4, 'layer2.1': 8}
    assert inputs(plan) == {'layer1.0.conv2': 4, 'layer1.1.conv2': 4, 'layer2.0.conv2': 4, 'layer2.1.conv2': 4, 'fc': 8}
    bits = weights(plan)
    assert (bits.pop('conv1'), bits.pop('fc')) == (8, 8) and set(bits.values()) == {2} and len(bits) == 9
    assert notes(model) == {
        'conv1': 'reads the network input', 'layer1.0.conv1': 'quantized at maxpool',
        'layer1.1.conv1': 'quantized at layer1.0', 'layer2.0.conv1': 'quantized at layer1.1',
        'layer2.0.downsample.0': 'quantized at layer1.1', 'layer2.1.conv1': 'quantized at layer2.0'}
    assert producers(plan) == {n: t.removeprefix('quantized at ') for n, t in notes(model).items() if n != 'conv1'}
    assert len(plan.edits) == 10 and all(isinstance(e, Folded) for e in plan.edits) and not operands(plan)


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
    assert not outputs(plan) and not inputs(plan) and set(weights(plan).values()) == {4, 8}


def test_activations_only():
    context = inserted(randomize(ResNet()), images(2, 3, 16, 16), w_bits=None, overrides=())
    plan = context.model.plan
    assert set(weights(plan).values()) == {None} and len(outputs(plan)) == 5 and len(inputs(plan)) == 5
    assert dict(plan.float_layers)['layer1.1.conv1'] == 'float weights by configuration'
    assert producers(plan)['layer1.1.conv1'] == 'layer1.0'
    assert not context.model.quantized_layers() and len(context.model.activation_quantizers()) == 10


def test_chain_quantizes_inputs():
    model = inserted(Chain(), images(2, 3, 16, 16)).model
    plan = model.plan
    assert not outputs(plan) and inputs(plan) == {'convs.1': 8, 'convs.2': 4, 'fc': 8}
    assert notes(model) == {'convs.0': 'reads the network input'}


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
    assert producers(plan) == {'a': 'act', 'b': 'act'}


def test_readers_of_a_functional_result_share_one_input_quantizer():
    x = images(4, 3, 4, 4)
    model = calibrated(TwoReaders(functional=True), x, overrides=()).model
    plan = model.plan
    assert not outputs(plan) and inputs(plan) == {'mid': 4, 'a': 4, 'b': 4, 'last': 4}
    assert [p.readers for p in plan.places if p.what == 'input' and len(p.readers) > 1] == [('a', 'b')]
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
    two = ['left', 'right']
    sites = {0: ['query', 'key', 'probabilities', 'value']} if fused else {0: two, 1: two}
    assert operands(plan) == {f'layers.{i}.attn': (4, sites) for i in range(2)}
    assert not any('qkv' in n for n in outputs(plan)) and weights(plan)['layers.0.attn.qkv'] == 4
    assert inputs(plan)['layers.1.attn.proj'] == 4 and inputs(plan)['head'] == 8


def test_attention_bits():
    x = images(2, 5, 8)
    assert {bits for bits, _ in operands(plan_of(Attention(), x, matmul_bits=8)).values()} == {8}
    assert not operands(plan_of(Attention(), x, matmul_bits=None))
    assert not operands(plan_of(Attention(), x, a_bits=None))
    overrides = [dict(pattern=r'layers\.0\.attn', matmul_bits=6), dict(pattern=r'layers\.1\.attn', matmul_bits=None)]
    found = operands(plan_of(ViT(), overrides=overrides))
    assert {name: bits for name, (bits, _) in found.items()} == {'layers.0.attn': 6}


class Idle(nn.Module):
    """Holds a layer that is never called, and one whose weight is used without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle, self.borrowed = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return F.linear(self.used(x), self.borrowed.weight)


def test_unreached_layers_are_listed_with_a_reason():
    model = inserted(Idle(), images(4, 3)).model
    reason = 'not reached through its own forward by the observed batch'
    assert model.plan.float_layers == (('idle', reason), ('borrowed', reason)) and model.plan.weights['used'].bits == 8
    assert list(model.quantized_layers()) == ['used']


def test_overrides_by_pattern_win_over_positions_and_defaults():
    overrides = [*FIRST_LAST_8, dict(pattern='conv1', w_bits=6), dict(pattern=r'layer1\..*conv2', w_bits=3, a_bits=5),
                 dict(pattern='fc', w_bits=None, a_bits=None)]
    plan = plan_of(randomize(ResNet()), overrides=overrides)
    bits = weights(plan)
    assert bits['conv1'] == 6 and bits['layer1.0.conv2'] == bits['layer1.1.conv2'] == 3 and bits['layer1.0.conv1'] == 4
    assert bits['fc'] is None and dict(plan.float_layers)['fc'] == 'float weights by configuration'
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
    assert inputs(model.plan) == {'head': 4, 'last': 4} and not outputs(model.plan)
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


class Normalize(nn.Module):

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.full((1, 3, 1, 1), 0.45), requires_grad=False)

    def forward(self, x):
        return (x.float() - self.mean) / 0.22


class Focus(nn.Module):
    """Space to depth, as the stem of YOLOX."""

    def forward(self, x):
        return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)


class Coordinates(nn.Module):
    """Appends where each pixel is, which depends on the shape of the image alone."""

    def forward(self, x):
        return torch.cat([x, torch.ones_like(x[:, :1]).cumsum(-1)], 1)


FRONTS = dict(plain=(nn.Identity, 3), normalized=(Normalize, 3), batch_norm=(lambda: nn.BatchNorm2d(3), 3),
              focus=(Focus, 12), coordinates=(Coordinates, 4), resized=(lambda: nn.Upsample(scale_factor=2), 3),
              padded=(lambda: nn.ReflectionPad2d(1), 3), pooled=(lambda: nn.AvgPool2d(2), 3))


@pytest.mark.parametrize('kind', FRONTS)
def test_first_layers_lie_behind_whatever_has_no_weights(kind):
    front, channels = FRONTS[kind]
    model = nn.Sequential(front(), nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(),
                          nn.Conv2d(4, 5, 1), nn.Softmax(1))
    plan = plan_of(randomize(model), w_bits=2, a_bits=4)
    assert {name: p.bits for name, p in plan.weights.items()} == {'1': 8, '3': 2, '5': 8}
    assert not {'0', '1'} & {p.name for p in plan.places if p.what != 'weight'}  # the image stays as it is
    assert {p.bits for p in plan.places if p.what != 'weight'} == {8}  # what the first layer makes, the last one reads


class Raw(nn.Module):
    """A convolution with a parameter of its own."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(c_out, c_in, 3, 3) * 0.1)

    def forward(self, x):
        return F.conv2d(x, self.kernel)


@pytest.fixture()
def told(monkeypatch) -> list[str]:
    texts = []
    monkeypatch.setattr('mmquant.models.policy.print_log', lambda text, *args: texts.append(text))
    return texts


def test_positions_that_select_nothing_are_told(told):
    model = nn.Sequential(Raw(3, 4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), Raw(4, 5))
    plan = plan_of(model.eval())
    assert weights(plan) == {'2': 4, '0': None, '4': None}
    assert dict(plan.float_layers) == dict.fromkeys('04', 'kernel: no weight of a convolution or linear layer')
    for position in ('first', 'last'):
        assert f"position='{position}' selects nothing" in ' '.join(told)


def test_patterns_that_select_nothing_are_told(told):
    plan_of(randomize(ResNet()), overrides=[dict(pattern=x, w_bits=8) for x in ('layer1', r'layer2\..*')])
    assert "quantizer.overrides[0]: the pattern 'layer1' matches modules but selects nothing" in ' '.join(told)
    assert 'overrides[1]' not in ' '.join(told)


class Recurrent(nn.Module):

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.rnn, self.fc = nn.Conv2d(3, 4, 3), nn.LSTM(4, 4, batch_first=True), nn.Linear(4, 5)
        self.token = nn.Parameter(torch.randn(1, 1, 4))

    def forward(self, x):
        return self.fc(self.rnn(self.conv(x).mean(2).transpose(1, 2) + self.token)[0])


def test_every_parameter_of_two_axes_is_quantized_or_named():
    attention = nn.MultiheadAttention(4, 2, batch_first=True, add_bias_kv=True)

    class Attention(nn.Module):

        def __init__(self) -> None:
            super().__init__()
            self.attn, self.fc = attention, nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(self.attn(x, x, x)[0])

    transposed = nn.Sequential(nn.Conv3d(1, 4, 3), nn.ConvTranspose3d(4, 4, 2, 2), nn.Conv3d(4, 2, 1))
    for model, x in ((Recurrent(), None), (Attention(), images(2, 5, 4)), (transposed, images(2, 1, 6, 6, 6))):
        model = inserted(model.eval(), images(2, 3, 8, 8) if x is None else x).model
        assert {name.rpartition('.')[0] for name, p in model.architecture.named_parameters() if p.dim() > 1} \
            == set(model.plan.layers)
        rows = {row.name: row for row in model_cost(model).layers}
        assert set(rows) == set(model.plan.layers)
        assert all(rows[name].note == why and rows[name].w_bits == 32 for name, why in model.plan.float_layers)
    assert weights(model.plan) == {'0': 8, '1': 4, '2': 8}
    plan = plan_of(Recurrent().eval(), images(2, 3, 8, 8))
    assert dict(plan.float_layers) == {
        'rnn': 'weight_ih_l0, weight_hh_l0: no weight of a convolution or linear layer',
        '': 'token: no weight of a convolution or linear layer'}


def test_scales_a_channel_fit_the_axes_of_the_tensor():
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Conv1d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv1d(4, 2, 1))
    plan = plan_of(randomize(model), images(2, 3, 16), depthwise_channels=True)
    assert [p.shape for p in plan.places if p.what == 'input' and p.name == '2'] == [(1, 4, 1)]
