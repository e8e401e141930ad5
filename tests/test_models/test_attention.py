import pytest
import torch
from models_for_tests import calibrated, images
from torch import nn

from mmquant.models import QuantizedModel
from mmquant.models.attention import SplitMultiheadAttention, split_attention
from mmquant.models.edits import SplitAttention


def masks(kind, n, length, heads):
    generator = torch.Generator().manual_seed(1)
    square = torch.rand(length, length, generator=generator) > 0.7
    square.fill_diagonal_(False)
    return dict(none={}, bool=dict(attn_mask=square), float=dict(attn_mask=square * -3.0),
                heads=dict(attn_mask=square.expand(n * heads, -1, -1)),
                padding=dict(key_padding_mask=torch.arange(length).expand(n, -1) >= length - 2))[kind]


@pytest.mark.parametrize('kind', ['none', 'bool', 'float', 'heads', 'padding'])
@pytest.mark.parametrize('batch_first', [True, False])
@torch.no_grad()
def test_the_same_numbers(kind, batch_first):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, batch_first=batch_first).eval()
    nn.init.normal_(module.in_proj_bias)
    q, k, v = (images(*((3, 5, 8) if batch_first else (5, 3, 8)), seed=s) for s in range(3))
    more = masks(kind, 3, 5, 2)
    expected = module(q, k, v, **more)
    assert split_attention(module) == 1 and split_attention(module) == 0
    for a, b in zip(module(q, k, v, **more), expected):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert module(q, k, v, need_weights=False, **more)[1] is None


@torch.no_grad()
def test_other_widths_one_image_and_no_bias():
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 4, bias=False, kdim=6, vdim=4, batch_first=True).eval()
    q, k, v = images(5, 8), images(7, 6), images(7, 4)
    expected = module(q, k, v, average_attn_weights=False)
    split_attention(module)
    for a, b in zip(module(q, k, v, average_attn_weights=False), expected):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_what_is_not_split():
    assert split_attention(nn.ModuleList([nn.MultiheadAttention(8, 2, add_bias_kv=True),
                                          nn.MultiheadAttention(8, 2, add_zero_attn=True)])) == 0


class Decoder(nn.Module):

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Linear(8, 8), nn.Linear(8, 3)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        x = self.stem(x)
        return self.last(x + self.attn(x, x, x)[0])


def test_projections_are_quantized_and_saved(tmp_path):
    torch.manual_seed(0)
    context = calibrated(Decoder(), x := images(6, 5, 8), w_bits=8, a_bits=8)
    model = context.model
    assert isinstance(model.architecture.attn, SplitMultiheadAttention) and model.plan.edits == (SplitAttention(), )
    assert set(model.quantized_layers()) == {'stem', 'last', *(f'attn.{n}_proj' for n in ('q', 'k', 'v', 'out'))}
    assert [(p.call, p.role) for p in model.plan.places if p.what == 'operand'] == [
        (0, 'left'), (0, 'right'), (1, 'left'), (1, 'right')]
    model.save(str(tmp_path / 'q.pth'))
    other = QuantizedModel(Decoder(), model.quantizer_cfg, 'random')
    other.load(str(tmp_path / 'q.pth'))
    assert torch.equal(other(x), model(x))
