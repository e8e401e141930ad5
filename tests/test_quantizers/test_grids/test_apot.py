"""The properties of the published grid, by hand and by numbers computed elsewhere."""
import pytest
import torch

from mmquant.observers import LpNormObserver, MinMaxObserver
from mmquant.quantizers import UniformAffineQuantizer
from mmquant.quantizers.grids import APoTQuantizer, LevelSetQuantizer
from mmquant.quantizers.grids.apot import apot_integers

TABLES = {
    2: [0, 1, 2, 4], 3: [0, 1, 2, 3, 4, 6, 8, 10],
    4: [0, 1, 2, 3, 4, 6, 8, 9, 12, 16, 18, 24, 32, 33, 36, 48],
    5: [*range(9), 10, 12, 14, 16, 17, 20, 21, 24, 28, 32, 34, 36, 38, 48, 52, 64, 65, 68, 69, 72, 76, 96, 100],
}


def fitted(x, bits, observer, **more):
    quantizer = APoTQuantizer(bits, **more)
    quantizer.allocate(x.shape)
    quantizer.fit(x, observer)
    return quantizer


@pytest.mark.parametrize('bits', [2, 3, 4, 5, 6])
def test_tables(bits):
    levels = apot_integers(bits)
    assert len(levels) == 2**bits and levels == sorted(set(levels)) and levels[0] == 0
    assert max(bin(level).count('1') for level in levels) <= (2 if bits <= 4 else 3)
    assert levels == TABLES.get(bits, levels) and levels[-1] == {2: 4, 3: 10, 4: 48, 5: 100, 6: 448}[bits]
    table = APoTQuantizer(bits, signed=False).levels()
    assert table[0] == 0 and table[-1] == 1 and torch.equal(table, torch.tensor(levels) / levels[-1])


@pytest.mark.parametrize('bits', [2, 3, 4, 6])
def test_one_bit_a_term_is_uniform_and_one_term_is_powers_of_two(bits):
    uniform = APoTQuantizer(bits, terms_k=1, signed=False)
    torch.testing.assert_close(uniform.levels(), torch.linspace(0, 1, 2**bits))
    powers = [0, *(2**e for e in range(2**bits - 1))]
    assert apot_integers(bits, terms_k=bits) == powers
    x = torch.rand(500)
    even = LevelSetQuantizer(bits, signed=False)
    for quantizer in (uniform, even):
        quantizer.set_range(torch.tensor(0.0), torch.tensor(0.9))
    torch.testing.assert_close(uniform(x), even(x))


def test_projection_by_hand():
    quantizer = APoTQuantizer(4)
    quantizer.set_range(torch.tensor(-1.6), torch.tensor(1.0))
    x = torch.tensor([0.03, -0.10, 0.25, 0.5, -0.8, 1.4, -2.0])
    torch.testing.assert_close(quantizer(x), torch.tensor([0, -0.16, 0.32, 0.48, -0.64, 1.28, -1.6]))
    assert (quantizer.encode(x).int() - 7).abs().tolist() == [0, 1, 2, 3, 4, 6, 7]


@pytest.mark.parametrize('bits', [3, 4, 5, 6, 7])
def test_properties(bits):
    x = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    quantizer = APoTQuantizer(bits)
    quantizer.set_range(torch.tensor(-2.0), torch.tensor(2.0))
    out = quantizer(x)
    assert torch.equal(quantizer(out), out) and torch.equal(quantizer(-x), -out)
    assert (quantizer(x.sort().values).diff() >= 0).all() and out.unique().numel() <= 2**bits - 1
    larger = APoTQuantizer(bits)
    larger.set_range(torch.tensor(-8.0), torch.tensor(8.0))
    assert torch.equal(larger(4 * x), 4 * out)


def sqnr(x, quantizer):
    return (10 * (x.square().sum() / (quantizer(x) - x).square().sum()).log10()).item()


@pytest.mark.parametrize('bits, absmax, best', [(3, 9.26, 13.21), (4, 16.68, 19.13), (5, 22.04, 22.22)])
def test_signal_to_noise_of_normal_data(bits, absmax, best):
    """Clip where 100k samples end, and at the best place."""
    n = 100_000
    x = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n).float()
    quantizer = APoTQuantizer(bits)
    quantizer.fit(x, LpNormObserver(2, num_candidates=200, min_shrink=0.1, max_samples=None))
    assert sqnr(x, quantizer) == pytest.approx(best, abs=0.1)
    quantizer.set_range(torch.tensor(-4.74), torch.tensor(4.74))
    assert sqnr(x, quantizer) == pytest.approx(absmax, abs=0.1)


def test_uniform_wins_at_five_bits_of_normal_data_and_loses_on_heavy_tails():
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(50_000, generator=generator)
    heavy = torch.randn(50_000, generator=generator) / torch.rand(50_000, generator=generator).sqrt()
    observer = LpNormObserver(2, num_candidates=200, min_shrink=0.01)
    found = {}
    for name, x, bits in (('normal', normal, 5), ('heavy', heavy, 4)):
        uniform = UniformAffineQuantizer(bits, symmetric=True)
        uniform.fit(x, observer)
        found[name] = sqnr(x, fitted(x, bits, observer)) - sqnr(x, uniform)
    assert found['normal'] < -1 and found['heavy'] > 0.3


@pytest.mark.parametrize('bits', [3, 4, 5])
def test_weights_are_integers_of_eight_bits_times_one_scale(bits):
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    quantizer = fitted(weight, bits, LpNormObserver(), granularity='channel')
    levels = torch.tensor(apot_integers(bits - 1))
    codes = quantizer.encode(weight).long() - (len(levels) - 1)
    integers = codes.sign() * levels[codes.abs()]
    assert integers.abs().max() <= 127 and torch.equal(integers.to(torch.int8).long(), integers)
    torch.testing.assert_close(quantizer(weight), integers * (quantizer.scale.double() / levels[-1]), rtol=1e-6, atol=0)
    x = torch.randint(-128, 128, (40, ), generator=torch.Generator().manual_seed(2))
    shifted = torch.stack([sum(x << e for e in range(8) if level >> e & 1) if level else x * 0
                           for level in integers.abs().unique().tolist()])  # every level times x by shifts and adds
    rank = torch.searchsorted(integers.abs().unique(), integers.abs())
    dots = (integers.sign() * shifted.gather(0, rank)).sum(1)
    assert torch.equal(dots, integers @ x)


def test_activations_after_relu_use_all_codes():
    x = torch.randn(5000, generator=torch.Generator().manual_seed(0)).relu()
    quantizer = APoTQuantizer(4)
    quantizer.fit(x, MinMaxObserver())
    assert quantizer(x).unique().numel() == 16 and quantizer.code_range == (0, 15)
    quantizer.fit(x - 0.2, MinMaxObserver())
    assert quantizer.code_range == (0, 14)


@pytest.mark.parametrize('arguments, text', [
    (dict(bits=2), r'bits=2, signed=True: no APoT levels of 1 magnitude bits'),
    (dict(bits=8), r'no APoT levels of 7 magnitude bits in terms of 2: .* bits=3\.\.7 for weights'),
    (dict(bits=7, signed=False), 'no APoT levels of 7'), (dict(bits=6, terms_k=3), 'no APoT levels of 5 .* terms of 3'),
    (dict(terms_k=0), 'terms of 0'), (dict(bits=40), 'bits=40')])
def test_widths_without_a_table(arguments, text):
    with pytest.raises(ValueError, match=text):
        APoTQuantizer(**arguments)
    quantizer = APoTQuantizer(7)
    with pytest.raises(ValueError, match='signed=False: no APoT levels of 7'):
        quantizer.set_range(torch.tensor(0.0), torch.tensor(1.0))
