"""Parameters with several owners or readers: what changes them, and who reads them once they are quantized."""
import pytest
import torch
import torch.nn.functional as F
from models_for_tests import calibrated, flow_of, images, inserted, quantizer_cfg, randomize
from torch import nn

from mmquant.models import QuantizedModel
from mmquant.models.edits import Folded, ReadElsewhere
from mmquant.models.fold_sites import FoldSite, fold_sites, scale_channels


class Tied(nn.Module):
    """The decoder reads the encoder's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.bn = nn.Conv2d(3, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x):
        return F.conv_transpose2d(self.bn(self.enc(x)).relu(), self.enc.weight, None, 2, 1)


class TwoLayersOneWeight(nn.Module):

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
        self.bn_a, self.bn_b, self.fc = nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def tie(self):
        self.b.weight = self.a.weight
        return self

    def forward(self, x):
        x = self.bn_a(self.a(self.stem(x).relu())).relu()
        return self.fc(self.bn_b(self.b(x)).relu().mean((2, 3)))


def relative(a, b) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


@torch.no_grad()
def test_a_weight_read_elsewhere_is_not_folded_and_quantized_there_too(tmp_path):
    net, x = randomize(Tied()), images(8, 3, 16, 16)
    assert flow_of(net, x).foreign == {'enc': ['']}
    expected = net(x)
    model = calibrated(net, x, w_bits=3, a_bits=None, overrides=()).model
    assert model.plan.edits == (ReadElsewhere('enc'), ) and isinstance(model.architecture.bn, nn.BatchNorm2d)
    with model.quantization(False, False):
        torch.testing.assert_close(model(x), expected)
    q = model.quantized_layers()['enc'].quantized_weight
    assert torch.unique(q[0]).numel() <= 8
    by_hand = F.conv_transpose2d(net.bn(F.conv2d(x, q, None, 2, 1)).relu(), q, None, 2, 1)
    torch.testing.assert_close(model(x), by_hand)
    assert relative(model(x), expected) > 0.01
    with model.frozen(True, False):
        torch.testing.assert_close(model(x), by_hand)
    model.decide()
    model.save(str(tmp_path / 'q.pth'))
    other = QuantizedModel(randomize(Tied(), 1), model.quantizer_cfg, 'random')
    other.load(str(tmp_path / 'q.pth'))
    torch.testing.assert_close(other(x), by_hand)


@torch.no_grad()
def test_two_layers_with_one_weight_are_folded_each_by_itself():
    net, x = randomize(TwoLayersOneWeight().tie()), images(8, 3, 12, 12)
    expected = net(x)
    model = QuantizedModel(net, quantizer_cfg(), 'random')
    assert model.fold_batch_norm(x[:2]) == [('a', 'bn_a'), ('b', 'bn_b')]
    assert relative(model(x), expected) < 1e-4 and not torch.equal(net.a.weight, net.b.weight)


class Aliases(nn.Module):
    """One BatchNorm under two names and in a list, called by the second name."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.bn, self.how = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), how
        self.other, self.kept = nn.ModuleDict({'norm': self.bn}), [self.bn]

    def forward(self, x):
        bn = dict(own=self.bn, other=self.other['norm'], list=self.kept[0])[self.how]
        return bn(self.conv(x).to(self.bn.weight.dtype)).relu()


@pytest.mark.parametrize('how', ['own', 'other', 'list'])
@torch.no_grad()
def test_a_batch_norm_is_folded_under_every_name(how):
    net, x = randomize(Aliases(how)), images(4, 3, 8, 8)
    net.bn.mark = 'kept'
    expected, model = net(x), QuantizedModel(net, quantizer_cfg(), 'random')
    assert model.fold_batch_norm(x[:2]) == [('conv', 'bn')]
    assert relative(model(x), expected) < 1e-4
    assert net.bn is net.kept[0] is net.other['norm'] and net.bn.mark == 'kept'
    assert type(net.bn) is nn.Identity and not net.bn.state_dict()


class Activated(nn.BatchNorm2d):
    """As timm's BatchNormAct2d."""

    def forward(self, x):
        return super().forward(x).relu()


def patched(bn):
    bn.forward = lambda x: nn.BatchNorm2d.forward(bn, x).relu()
    return bn


def hooked(module):
    module.register_forward_hook(lambda module, args, output: output.clamp(min=0))
    return module


def pre_hooked(module):
    module.register_forward_pre_hook(lambda module, args: (args[0] * 2, ))
    return module


def training(bn):
    bn.train = lambda mode=True: bn
    bn.training = True
    return bn


@pytest.mark.parametrize('bn, text', [
    (lambda: Activated(8), 'Activated has a forward'),
    (lambda: patched(nn.BatchNorm2d(8)), 'bn: its forward was set'),
    (lambda: hooked(nn.BatchNorm2d(8)), 'bn: it has forward hooks'),
    (lambda: pre_hooked(nn.BatchNorm2d(8)), ''),
    (lambda: torch.nn.utils.parametrizations.weight_norm(nn.BatchNorm2d(8), dim=None), 'parts of its own'),
    (lambda: training(nn.BatchNorm2d(8)), 'statistics of the batch')])
@torch.no_grad()
def test_batch_norms_that_do_more_are_left_and_named(bn, text, monkeypatch):
    told = []
    monkeypatch.setattr('mmquant.models.builder.print_log', lambda text, *_: told.append(text))
    net = nn.ModuleDict(dict(conv=nn.Conv2d(3, 8, 3), bn=bn()))
    net.forward = lambda x: net.bn(net.conv(x))
    randomize(net.conv)
    x = images(4, 3, 8, 8)
    model = QuantizedModel(net, quantizer_cfg(w_bits=8, a_bits=8, overrides=()), 'random')
    assert model.fold_batch_norm(x) == []
    assert 'bn (' in told[0] and text in told[0] if text else not told  # a doubled input is no layer's output


@torch.no_grad()
def test_a_layer_with_hooks_is_not_folded():
    net = nn.Sequential(hooked(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8))
    expected = randomize(net)(x := images(4, 3, 8, 8))
    model = inserted(net, x, w_bits=8, a_bits=8, overrides=()).model
    assert model.plan.edits == ()
    with model.quantization(False, False):
        torch.testing.assert_close(model(x), expected)


def test_a_plan_that_folds_what_cannot_be_folded_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), Activated(8)).eval()
    with pytest.raises(ValueError, match='1 cannot be folded: Activated has a forward'):
        Folded('0', '1').apply(net)


class Kept(nn.Module):
    """Reads a weight by a reference of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.__dict__['reference'] = self.a.weight

    def forward(self, x):
        return self.b(F.linear(self.a(x).relu(), self.reference))


def test_a_float_weight_kept_by_reference_is_refused():
    with pytest.raises(ValueError, match='1 quantizer would do nothing: a has a float weight that is read past'):
        inserted(Kept(), images(4, 8), w_bits=8, a_bits=8, overrides=(), copied=False)


class AsksForShape(nn.Module):

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x):
        return self.bn(self.conv(x)) + self.conv.weight.new_zeros(1) + torch.ones_like(self.conv.bias)[0]


def test_who_asks_for_shape_and_type_reads_nothing():
    net, x = randomize(AsksForShape()), images(2, 3, 8, 8)
    assert flow_of(net, x).foreign == {}


@torch.no_grad()
def test_scaling_of_channels_leaves_other_owners_alone():
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    net[4].weight = net[2].weight
    x = images(4, 8)
    expected = net(x)
    sites = fold_sites(net, flow_of(net, x))
    assert [s.producer for s in sites] == ['0', '2']
    scale_channels(net, sites[0], 2.0**torch.arange(8).float())
    torch.testing.assert_close(net(x), expected)
    tied = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8))
    tied[2].weight = tied[0].weight
    expected = tied(x)
    scale_channels(tied, FoldSite('norm', '0', ('1', ), (0, 8)), torch.full((8, ), 3.0))
    torch.testing.assert_close(tied(x), expected)


def test_no_site_where_a_weight_is_read_elsewhere():
    class Net(nn.Module):

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.b(self.a(x).relu()) + self.a.weight.sum()

    net, x = Net().eval(), images(4, 8)
    assert fold_sites(net, flow_of(net, x)) == []
