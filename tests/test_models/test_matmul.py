import math

import pytest
import torch
import torch.nn.functional as F
from models_for_tests import Attention, ViT, calibrated, images, inserted
from torch import nn

from mmquant.models.matmul import OPERANDS, quantize_matmuls, quantized_attention
from mmquant.quantizers import UniformAffineQuantizer


def ready(bits=4, low=-3.0, high=3.0):
    quantizer = UniformAffineQuantizer(bits)
    quantizer.set_range(torch.tensor(low), torch.tensor(high))
    return quantizer


def sites(kind, count=1, **bits):
    return {str(i): nn.ModuleDict({role: ready(**bits) for role in OPERANDS[kind]}) for i in range(count)}


@torch.no_grad()
@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('causal', [False, True])
def test_float_mode_is_bit_identical(fused, causal):
    model, x = Attention(fused=fused, causal=causal and fused).eval(), images(2, 5, 8)
    before = model(x)
    wrapped = inserted(model, x).model
    with wrapped.quantization(weights=False, activations=False):
        assert torch.equal(wrapped(x), before)


@torch.no_grad()
def test_quantized_product_equals_manual():

    class Gram(nn.Module):

        def forward(self, x):
            return x @ x.transpose(1, 2)

    model, x = Gram(), images(2, 5, 8)
    quantize_matmuls(model, sites('matmul'))
    left, right = model.matmul_quantizers['0'].values()
    right.set_range(torch.tensor(-1.), torch.tensor(1.))
    assert torch.equal(model(x), left(x) @ right(x).transpose(1, 2)) and isinstance(model, Gram)


@torch.no_grad()
@pytest.mark.parametrize('mask', [None, 'bool', 'float', 'causal'])
def test_quantized_attention_equals_manual(mask):
    q, k, v = (images(2, 3, 5, 4, seed=s) for s in range(3))
    quantizers = dict(query=ready(), key=ready(3), probabilities=ready(4, 0., 1.), value=ready(5))
    kwargs, added = {}, torch.zeros(5, 5)
    if mask == 'bool':
        kwargs['attn_mask'] = torch.eye(5, dtype=torch.bool) | (images(5, 5) > 0)
        added = torch.zeros(5, 5).masked_fill(~kwargs['attn_mask'], -math.inf)
    elif mask == 'float':
        kwargs['attn_mask'] = added = images(5, 5, seed=9)
    elif mask == 'causal':
        kwargs['is_causal'], added = True, torch.full((5, 5), -math.inf).triu(1)
    scores = quantizers['query'](q) @ quantizers['key'](k).transpose(-2, -1) / 2 + added
    expected = quantizers['probabilities'](scores.softmax(-1)) @ quantizers['value'](v)
    torch.testing.assert_close(quantized_attention(quantizers, q, k, v, **kwargs), expected)
    for quantizer in quantizers.values():
        quantizer.enabled = False
    torch.testing.assert_close(quantized_attention(quantizers, q, k, v, **kwargs),
                               F.scaled_dot_product_attention(q, k, v, **kwargs))
    torch.testing.assert_close(quantized_attention(quantizers, q, k, v, scale=0.3),
                               F.scaled_dot_product_attention(q, k, v, scale=0.3))


@torch.no_grad()
def test_both_ways_of_attention_agree():
    """The same weights, q @ k or the fused function: the same quantized numbers."""
    x, one, two = images(4, 5, 8), Attention(), Attention(fused=True)
    two.load_state_dict(one.state_dict())
    outs = [calibrated(m, x, w_bits=8, a_bits=8).model(x) for m in (one, two)]
    torch.testing.assert_close(*outs, rtol=0, atol=0.05 * outs[0].abs().max().item())
    assert not torch.equal(outs[0], one(x))


@torch.no_grad()
def test_grouped_queries_are_refused():
    q = images(1, 4, 3, 2)
    with pytest.raises(ValueError, match='not support enable_gqa=True; exclude this module by a quantizer override'):
        quantized_attention({}, q, q, q, enable_gqa=True)


class Owner(nn.Module):
    """Multiplies itself, and holds modules that multiply."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.fc = inner, nn.Linear(4, 4)

    def forward(self, x):
        return self.inner(self.fc(x)) @ x.transpose(1, 2)


class ByConstant(nn.Module):

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.eye(4))

    def forward(self, x):
        return torch.matmul(x, self.w)


class Gram(nn.Module):

    def forward(self, x):
        return torch.bmm(input=x.transpose(1, 2), mat2=x) / 10 + x


@torch.no_grad()
@pytest.mark.parametrize('inner', [ByConstant, Gram])
@pytest.mark.parametrize('excluded', [False, True])
def test_products_of_inner_modules_are_not_counted(inner, excluded):
    """The outer module's own product is quantized, whatever the inner module does and whether it is quantized."""
    x, inner = images(3, 4, 4), inner().eval()
    overrides = [dict(pattern='inner', matmul_bits=None)] if excluded else []
    wrapped = inserted(Owner(inner), x, copied=False, overrides=overrides, w_bits=None).model
    seen = []
    (site, quantizers), = wrapped.architecture.matmul_quantizers.items()
    for role, quantizer in quantizers.items():
        quantizer.register_forward_pre_hook(lambda m, args, role=role: seen.append((role, args[0].clone())))
    with wrapped.quantization(weights=False, activations=False):
        wrapped(x)
    assert site == '0' and [role for role, _ in seen] == ['left', 'right']
    assert torch.equal(seen[1][1], x.transpose(1, 2))
    with wrapped.quantization(weights=False, activations=False):
        assert torch.equal(seen[0][1], inner(wrapped.architecture.fc(x)))


@torch.no_grad()
@pytest.mark.parametrize('fused', [False, True])
def test_every_call_counts_from_the_start(fused):
    """Two images or two calls: the same numbers."""
    x = images(4, 3, 16, 16)
    wrapped = calibrated(ViT(fused=fused), x).model
    once, again = wrapped(x), wrapped(x)
    assert torch.equal(once, again)
    names = [n for n in wrapped.activation_quantizers() if 'matmul' in n]
    roles = ['query', 'key', 'probabilities', 'value'] if fused else ['left', 'right'] * 2
    assert [n.rsplit('.', 1)[1] for n in names] == roles * 2
    assert all(q.initialized for q in wrapped.activation_quantizers().values())


@torch.no_grad()
def test_mode_is_left_after_an_error():
    model = Gram()
    quantize_matmuls(model, sites('matmul'))
    with pytest.raises(IndexError):
        model(images(2, 3))
    assert torch.equal(torch.eye(2) @ torch.full((2, 2), 7.3), torch.full((2, 2), 7.3))
    from mmquant.models import matmul
    assert not matmul._RUNNING.modes
