"""What was planned is used by the model as it runs, or refused by name."""
import types

import pytest
import torch
from models_for_tests import calibrated, images, inserted, randomize
from torch import nn
from torch.nn.utils import parametrizations, prune

from mmquant.models.layers import QuantizedLayer


def layers():
    return randomize(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3)))


@pytest.mark.parametrize('a_bits', [8, None])
def test_forward_set_on_a_layer(a_bits):
    net = layers()
    net[2].forward = types.MethodType(type(net[2]).forward, net[2])  # as accelerate's hooks do
    with pytest.raises(ValueError, match=r'2 computes without its quantized weight.*del layer\.forward'):
        inserted(net, images(4, 3, 8, 8), a_bits=a_bits, copied=False)
    assert not any(isinstance(m, QuantizedLayer) for m in net.modules())
    model = inserted(net, images(4, 3, 8, 8), w_bits=4, a_bits=None, copied=False,
                     overrides=[dict(pattern='2', w_bits=None)]).model
    assert set(model.quantized_layers()) == {'0'}


class OtherWeight(nn.Conv2d):
    """Computes with a copy of its weight."""

    def forward(self, x):
        if not hasattr(self, 'cached'):
            self.__dict__['cached'] = self._parameters['weight'].detach().clone()
        return self._conv_forward(x, self.cached, self.bias)


def test_a_layer_that_computes_with_another_weight():
    net = nn.Sequential(OtherWeight(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3)).eval()
    with pytest.raises(ValueError, match='1 quantizer would do nothing: 0 computes without its quantized weight'):
        inserted(net, images(4, 3, 8, 8), a_bits=None, copied=False)


def test_several_of_them_are_told_in_the_plural():
    net = nn.Sequential(OtherWeight(3, 8, 3), nn.ReLU(), OtherWeight(8, 5, 3)).eval()
    with pytest.raises(ValueError, match='2 quantizers would do nothing: 0, 2 compute without their quantized weight.*'
                       'or keep them float'):
        inserted(net, images(4, 3, 8, 8), a_bits=None, copied=False)


class Residual(nn.Module):

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return x + self.b(self.a(x).relu())


class Direct(nn.Module):
    """Calls ``forward`` of a block, so that its hooks do not run."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.fc = nn.Conv2d(3, 8, 3), Residual(), nn.Conv2d(8, 5, 3)

    def forward(self, x):
        return self.fc(self.block.forward(self.stem(x)))


def test_forward_of_a_block_called_directly():
    with pytest.raises(ValueError, match=r'1 quantizer would do nothing: block is not called itself.*module\(x\)'):
        inserted(randomize(Direct()), images(4, 3, 8, 8))


class Encoder(nn.Module):

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.p, self.fc = kind, nn.Conv2d(3, 32, 4, 4), nn.Linear(32, 5)
        if kind == 'encoder':
            self.t = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2)
        elif kind == 'transformer':
            self.t = nn.Transformer(32, 4, 1, 1, 64, batch_first=True)
        else:
            self.t = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x):
        x = self.p(x).flatten(2).transpose(1, 2)
        if self.kind == 'in_proj':  # the values alone, as in MaskCLIP
            attn = self.t
            return self.fc(attn.out_proj(nn.functional.linear(x, attn.in_proj_weight[64:], attn.in_proj_bias[64:])))
        return self.fc(self.t(x) if self.kind == 'encoder' else self.t(x, x))


@pytest.mark.parametrize('kind, count', [('encoder', 14), ('transformer', 18), ('in_proj', 3)])
@torch.no_grad()
def test_transformers_of_torch(kind, count):
    """The fast path of nn.TransformerEncoderLayer reads weights past the layers, once nobody looks on."""
    torch.manual_seed(0)
    net, x = Encoder(kind).eval(), images(4, 3, 16, 16)
    expected = net(x)
    model = calibrated(net, x, w_bits=8, a_bits=8).model
    assert len(model.quantized_layers()) == count
    with model.quantization(False, False):
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    out = model(x)
    assert 25 < 10 * torch.log10(expected.square().sum() / (expected - out).square().sum()) < 60
    last = [n for n in model.quantized_layers() if n.endswith(('linear2', 'out_proj'))][0]
    model.quantized_layers()[last]._parameters['weight'].mul_(2)
    assert not torch.equal(model(x), out)


@torch.no_grad()
def test_padded_batches_of_an_encoder():
    """Ragged batches, which torch makes for its fast path, are not made for split attention."""
    torch.manual_seed(0)
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    mask = torch.arange(6).expand(4, -1) >= torch.tensor([[6], [5], [4], [3]])

    class Masked(nn.Module):

        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x, src_key_padding_mask=mask[:len(x)]).masked_fill(mask[:len(x), :, None], 0)

    x = images(4, 6, 8)
    expected = Masked().eval()(x)
    model = calibrated(Masked(), x, w_bits=8, a_bits=8, overrides=()).model
    with model.quantization(False, False):
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_computed_weights_and_biases_are_named():
    normed = [parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), nn.ReLU(),
              parametrizations.weight_norm(nn.Conv2d(8, 5, 3))]
    with pytest.raises(ValueError, match=r'nothing can be quantized: 0: its weight \(_WeightNorm\) is computed'):
        inserted(nn.Sequential(*normed).eval(), images(4, 3, 8, 8))
    net = layers().append(nn.Conv2d(5, 4, 1)).append(nn.Conv2d(4, 4, 1))
    prune.random_unstructured(net[2], 'bias', 0.5)
    prune.l1_unstructured(net[3], 'weight', 0.5)
    model = calibrated(net.eval(), x := images(4, 3, 8, 8), w_bits=8, a_bits=8, copied=False).model
    named = dict(model.plan.float_layers)
    assert set(model.quantized_layers()) == {'0', '4'} and 'bias (RandomUnstructured) is computed' in named['2']
    assert 'weight (L1Unstructured) is computed' in named['3'] and 'prune.remove' in named['3']
    with torch.no_grad(), model.quantization(False, False):
        torch.testing.assert_close(model(x), net(x))
