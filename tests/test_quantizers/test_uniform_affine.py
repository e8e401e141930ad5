import copy
import io

import pytest
import torch

from mmquant.observers import LpNormObserver, MinMaxObserver
from mmquant.quantizers import UniformAffineQuantizer
from mmquant.registry import QUANTIZERS
from mmquant.roundings import NearestRounding
from mmquant.structures import IntegerGrid, PerChannel, PerGroup, PerTensor

KINDS = dict(
    tensor=dict(granularity='tensor'), channel=dict(granularity='channel'), axis=dict(granularity=PerChannel(1)),
    group=dict(granularity='group', group_size=9), symmetric=dict(granularity='channel', symmetric=True))


def fitted(weight, bits=4, observer=None, **kind):
    quantizer = UniformAffineQuantizer(bits, **kind)
    quantizer.allocate(weight.shape)
    observer = observer or MinMaxObserver()
    quantizer.set_range(*observer.range_of(weight, quantizer, quantizer.granularity))
    return quantizer


@pytest.fixture
def weight():
    return torch.randn(8, 6, 3, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('kind', KINDS.values(), ids=KINDS)
@pytest.mark.parametrize('bits', [2, 3, 8, 16])
def test_idempotent_with_few_levels(weight, kind, bits):
    quantizer = fitted(weight, bits, LpNormObserver(), **kind)
    out = quantizer(weight)
    assert out.shape == weight.shape and torch.equal(quantizer(out), out)
    rows = quantizer.granularity.to_groups(out)
    assert max(row.unique().numel() for row in rows) <= 2**bits
    assert (quantizer(torch.zeros_like(weight)) == 0).all()


@pytest.mark.parametrize('kind', KINDS.values(), ids=KINDS)
@pytest.mark.parametrize('bits', [2, 8, 9, 16])
def test_codes(weight, kind, bits):
    quantizer = fitted(weight, bits, **kind)
    codes = quantizer.encode(weight)
    grid = quantizer.grid
    assert codes.dtype == grid.code_dtype and codes.min() >= grid.q_min and codes.max() <= grid.q_max
    torch.testing.assert_close(quantizer.decode(codes), quantizer(weight), rtol=1e-6, atol=0)


@pytest.mark.parametrize('kind', KINDS.values(), ids=KINDS)
def test_error_within_the_range_is_at_most_half_a_step(weight, kind):
    quantizer = fitted(weight, 8, **kind)
    scale, _ = quantizer.expanded(weight.shape)
    # min-max ranges are covered but for the rounding of the zero point, another half step at the ends
    assert ((quantizer(weight) - weight).abs() <= scale * 1.001).all()
    assert ((quantizer(weight) - weight).abs() <= scale * 0.5001).float().mean() > 0.9


def test_known_values():
    quantizer = UniformAffineQuantizer(2)
    quantizer.set_range(torch.tensor(-1.), torch.tensor(2.))
    assert quantizer.scale == 1 and quantizer.zero_point == 1
    x = torch.tensor([-7, -0.6, -0.4, 0.5, 1.5, 1.6, 9])
    assert quantizer(x).tolist() == [-1, -1, 0, 0, 2, 2, 2]
    assert quantizer.encode(x).tolist() == [0, 0, 1, 1, 3, 3, 3]


def test_permuting_and_scaling_channels(weight):
    order, factor = torch.randperm(8), 2.0**torch.arange(-4, 4).reshape(8, 1, 1, 1)
    quantizer = fitted(weight, 3, LpNormObserver(), granularity='channel')
    permuted = fitted(weight[order], 3, LpNormObserver(), granularity='channel')
    scaled = fitted(weight * factor, 3, LpNormObserver(), granularity='channel')
    assert torch.equal(permuted.scale, quantizer.scale[order])
    assert torch.equal(permuted.zero_point, quantizer.zero_point[order])
    torch.testing.assert_close(scaled.scale, quantizer.scale * factor)
    assert torch.equal(scaled.zero_point, quantizer.zero_point)


@pytest.mark.parametrize('symmetric', [False, True])
def test_all_zero_channel(weight, symmetric):
    weight[3] = 0
    quantizer = fitted(weight, observer=LpNormObserver(), granularity='channel', symmetric=symmetric)
    assert quantizer.scale[3] == pytest.approx(1e-8) and quantizer.zero_point[3] == 0
    out = quantizer(weight)
    assert (out[3] == 0).all() and torch.isfinite(out).all() and (quantizer.scale > 0).all()


def test_group_scales_match_separate_tensors(weight):
    flat = weight.reshape(8, 54)
    quantizer = fitted(flat, granularity=PerGroup(9))
    assert quantizer.scale.shape == (8, 6)
    expected = torch.stack([fitted(part)(part) for part in flat.reshape(48, 9)]).reshape(8, 54)
    torch.testing.assert_close(quantizer(flat), expected)


@pytest.mark.parametrize('kind', ['tensor', 'channel', 'group'])
def test_scale_can_be_trained(weight, kind):
    quantizer = fitted(weight, **KINDS[kind])
    quantizer.scale.requires_grad_(True)
    quantizer(weight).square().sum().backward()
    assert quantizer.scale.grad.shape == quantizer.scale.shape and (quantizer.scale.grad != 0).all()
    quantizer.scale.grad = None
    quantizer.set_codes(quantizer.encode(weight))
    quantizer(weight).square().sum().backward()
    assert (quantizer.scale.grad != 0).all()


def test_layout_and_dtype_are_kept(weight):
    quantizer = fitted(weight)
    x = weight.contiguous(memory_format=torch.channels_last)
    assert quantizer(x).is_contiguous(memory_format=torch.channels_last)
    half = quantizer(weight.bfloat16())
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, quantizer(weight.bfloat16().float()).bfloat16())
    quantizer.set_codes(quantizer.encode(weight))
    assert quantizer(weight.bfloat16()).dtype == torch.bfloat16


def test_hard_codes_replace_the_weight(weight):
    quantizer = fitted(weight, granularity='channel')
    nearest = quantizer(weight)
    codes = (quantizer.encode(weight).int() + 1).clamp(max=15)
    quantizer.set_codes(codes)
    assert quantizer.codes.dtype == torch.uint8
    assert torch.equal(quantizer(weight), quantizer.decode(codes))
    assert torch.equal(quantizer(torch.zeros_like(weight)), quantizer.decode(codes))
    quantizer.clear_codes()
    assert torch.equal(quantizer(weight), nearest)


def test_rounding_comes_before_codes_and_weight(weight):
    quantizer = fitted(weight, granularity='channel')
    rounding = NearestRounding()
    rounding.start(weight, quantizer)
    quantizer.rounding = rounding
    torch.testing.assert_close(quantizer(torch.zeros_like(weight)), rounding())
    quantizer.rounding = None
    assert (quantizer(torch.zeros_like(weight)) == 0).all()
    assert set(quantizer.state_dict()) == {'scale', 'zero_point', 'bits', '_initialized'}


def test_disabled_is_the_identity(weight):
    quantizer = UniformAffineQuantizer()
    quantizer.enabled = False
    assert quantizer(weight) is weight


def saved(module):
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize('kind', KINDS.values(), ids=KINDS)
@pytest.mark.parametrize('bits', [3, 8, 12])
@pytest.mark.parametrize('with_codes', [False, True])
def test_checkpoint_round_trip_into_a_fresh_quantizer(weight, kind, bits, with_codes):
    quantizer = fitted(weight, bits, **kind)
    if with_codes:
        quantizer.set_codes((quantizer.encode(weight).int() + 1).clamp(max=quantizer.grid.q_max))
    model, fresh = (torch.nn.ModuleDict(dict(q=q)) for q in (quantizer, UniformAffineQuantizer(8, **kind)))
    fresh.load_state_dict(saved(model))
    assert fresh['q'].initialized and fresh['q'].grid == quantizer.grid
    assert (fresh['q'].codes is not None) == with_codes
    assert torch.equal(fresh['q'](weight), quantizer(weight))


def test_checkpoint_without_codes_removes_codes(weight):
    quantizer, hardened = fitted(weight), fitted(weight * 2)
    hardened.set_codes(hardened.encode(weight))
    hardened.load_state_dict(saved(quantizer))
    assert hardened.codes is None and torch.equal(hardened(weight), quantizer(weight))


def test_checkpoint_of_an_unused_quantizer(weight):
    quantizer = fitted(weight)
    quantizer.load_state_dict(saved(UniformAffineQuantizer()))
    assert not quantizer.initialized


def test_checkpoint_of_something_else_leaves_the_codes(weight):
    quantizer = fitted(weight)
    quantizer.set_codes(quantizer.encode(weight))
    quantizer.load_state_dict({}, strict=False)
    assert quantizer.codes is not None and quantizer.initialized


def test_checkpoint_with_unsupported_bits(weight):
    state = saved(fitted(weight))
    state['bits'].fill_(40)
    with pytest.raises(ValueError, match=r'bits=40 is not supported: expected an int in 2\.\.16'):
        UniformAffineQuantizer().load_state_dict(state)


def test_deepcopy(weight):
    quantizer = fitted(weight)
    twin = copy.deepcopy(quantizer)
    twin.set_range(torch.tensor(-9.), torch.tensor(9.))
    assert torch.equal(copy.deepcopy(quantizer)(weight), quantizer(weight)) and twin.scale != quantizer.scale


def test_change_of_bits(weight):
    quantizer = fitted(weight)
    quantizer.set_codes(quantizer.encode(weight))
    quantizer.set_bits(4)
    assert quantizer.initialized and quantizer.codes is not None
    quantizer.set_bits(2)
    assert quantizer.grid == IntegerGrid(2) and quantizer.bits == 2
    assert not quantizer.initialized and quantizer.codes is None
    with pytest.raises(ValueError, match='bits=1 is not supported'):
        quantizer.set_bits(1)
    assert quantizer.grid == IntegerGrid(2) and quantizer.bits == 2


def test_errors_say_what_to_do(weight):
    with pytest.raises(ValueError, match=r'bits=32 is not supported: expected an int in 2\.\.16'):
        UniformAffineQuantizer(32)
    quantizer = UniformAffineQuantizer(4, granularity='channel')
    with pytest.raises(RuntimeError, match=r'shape \(8, 6, 3, 3\) but has no range yet: call set_range'):
        quantizer(weight)
    with pytest.raises(ValueError, match=r'expected 1 values each. Call allocate'):
        quantizer.set_range(torch.zeros(8), torch.ones(8))
    quantizer.allocate(weight.shape)
    for low, high in ((float('nan'), 1.), (0., float('inf')), (1., 0.)):
        with pytest.raises(ValueError, match='needs finite ranges with low <= high.*look for NaN or Inf'):
            quantizer.set_range(torch.full((8, ), low), torch.full((8, ), high))
    quantizer.set_range(torch.zeros(8), torch.ones(8))
    with pytest.raises(ValueError, match=r'codes in 0\.\.16: expected integers in 0\.\.15 \(4 bits\)'):
        quantizer.set_codes(torch.arange(17))
    with pytest.raises(ValueError, match='torch.float32 codes'):
        quantizer.set_codes(torch.zeros(8, 6, 3, 3))
    quantizer.set_codes(torch.zeros(8, 6, 3, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r'holds codes of shape \(8, 6, 3, 3\) but was given .* \(8, 5, 3, 3\)'):
        quantizer(weight[:, :5])


def test_repr_and_registry(weight):
    quantizer = QUANTIZERS.build(dict(type='UniformAffineQuantizer', bits=4, symmetric=True))
    assert quantizer.granularity == PerTensor()
    assert 'bits=4, symmetric=True, granularity=PerTensor(), scales=1, no range' in repr(quantizer)
    quantizer.enabled = False
    assert 'disabled' in repr(quantizer)
    quantizer = fitted(weight, granularity='channel')
    quantizer.set_codes(quantizer.encode(weight))
    assert 'scales=8, codes' in repr(quantizer)


# ---- weights that keep each channel's mean --------------------------------------------------------------------------
@pytest.mark.parametrize('kind', [dict(granularity='channel'), dict(granularity='tensor'),
                                  dict(granularity='channel', channel_axis=1)], ids=['channel', 'tensor', 'axis 1'])
def test_mean_of_each_channel_is_kept(weight, kind):
    plain, kept = fitted(weight, 2, **kind), fitted(weight, 2, keep_mean=True, **kind)
    others = [d for d in range(4) if d != kind.get('channel_axis', 0)]
    out = kept(weight)
    torch.testing.assert_close(out.mean(others), weight.mean(others), atol=1e-6, rtol=0)
    assert (plain(weight).mean(others) - weight.mean(others)).abs().max() > 1e-3
    kept.set_codes(kept.encode(weight))
    torch.testing.assert_close(kept(weight), out)
    kept.decide(weight)
    assert kept.offset.numel() == weight.shape[kind.get('channel_axis', 0)] and plain.offset is None
    torch.testing.assert_close(plain(weight) + kept.offset, out)
    assert torch.equal(kept(torch.full_like(weight, float('nan'))), kept(weight))  # the weight is not needed any more
    fresh = UniformAffineQuantizer(keep_mean=True, **kind)
    fresh.load_state_dict(saved(kept))
    assert torch.equal(fresh(weight), kept(weight))
    assert kept.stored_bits(432) - plain.stored_bits(432) == 32 * kept.offset.numel()
    kept.set_codes(kept.codes)
    assert kept.offset is None  # of other codes it would be another


def test_nothing_to_correct_where_quantization_is_exact():
    exact = torch.arange(-8., 8.).repeat(4, 1)
    quantizer = fitted(exact, 4, granularity='channel', keep_mean=True)
    quantizer.decide(exact)
    assert torch.equal(quantizer(exact), exact) and not quantizer.offset.any()
