"""Layers whose weight another module hands to ``F.linear``: found, called, quantized, saved."""
import pytest
import torch
import torch.nn.functional as F
from models_for_tests import calibrated, flow_of, images
from torch import nn

from mmquant.models import QuantizedModel
from mmquant.models.edits import CallsLayers
from mmquant.models.functional_layers import FunctionalLayerOwner, call_functional_layers
from mmquant.models.recorder import record


class Attention(nn.Module):
    """As in BEiT: the bias of the joint projection is put together from parts."""

    def __init__(self, qkv_bias: bool = False) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(8, 24, bias=qkv_bias), nn.Linear(8, 8)
        self.q_bias, self.v_bias = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))

    def forward(self, x):
        bias = torch.cat((self.q_bias, torch.zeros(8), self.v_bias))
        q, k, v = F.linear(input=x, weight=self.qkv.weight, bias=bias).chunk(3, -1)
        return self.proj((q @ k.transpose(-2, -1)).softmax(-1) @ v)


class Net(nn.Module):

    def __init__(self, **attn) -> None:
        super().__init__()
        self.stem, self.attn, self.last = nn.Linear(8, 8), Attention(**attn), nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x)
        return self.last(x + self.attn(x))


@torch.no_grad()
def test_found_and_called_with_the_same_numbers():
    torch.manual_seed(0)
    net, x = Net().eval(), images(6, 5, 8)
    expected = net(x)
    found = flow_of(net, x).functional
    assert found == {'attn': ['attn.qkv']}
    called = []
    net.attn.qkv.register_forward_hook(lambda *args: called.append(1))
    for _ in range(2):
        call_functional_layers(net, found)
    torch.testing.assert_close(net(x), expected)
    assert called == [1] and isinstance(net.attn, FunctionalLayerOwner) and isinstance(net.attn, Attention)


@torch.no_grad()
def test_a_layer_with_another_bias_of_its_own_is_left_alone():
    net, x = Net(qkv_bias=True).eval(), images(6, 5, 8)
    assert flow_of(net, x).functional == {}


@torch.no_grad()
def test_quantized_and_saved(tmp_path):
    torch.manual_seed(0)
    model = calibrated(Net(), x := images(6, 5, 8), w_bits=4, a_bits=8).model
    assert 'attn.qkv' in model.quantized_layers() and model.plan.edits == (CallsLayers('attn', ('attn.qkv', )), )
    assert [(p.call, p.role) for p in model.plan.places if p.what == 'operand'] == [
        (0, 'left'), (0, 'right'), (1, 'left'), (1, 'right')]
    assert any('attn.qkv' in unit.layers for unit in model.units('layer'))
    out = model(x)
    model.save(str(tmp_path / 'q.pth'))
    other = QuantizedModel(Net(), model.quantizer_cfg, 'random')
    other.load(str(tmp_path / 'q.pth'))
    assert torch.equal(other(x), out)
    with model.quantization(weights=False, activations=False):
        assert not torch.equal(model(x), out)
    model.weight_quantizers()['attn.qkv'].clear_codes()
    model.architecture.attn.qkv._parameters['weight'].mul_(3)
    assert not torch.equal(model(x), out)


@pytest.mark.slow
@torch.no_grad()
def test_swin_v2_of_mmpretrain():
    backbones = pytest.importorskip('mmpretrain.models.backbones')
    torch.manual_seed(0)
    model = backbones.SwinTransformerV2(
        arch=dict(embed_dims=8, depths=[1] * 4, num_heads=[1] * 4, extra_norm_every_n_blocks=0), img_size=64,
        window_size=[4, 4, 4, 2])
    model.eval()  # of mmpretrain's backbones, returns None
    found = record(model, model, images(1, 3, 64, 64)).functional
    assert len(found) == 4 and all(names == [f'{owner}.qkv'] for owner, names in found.items())
