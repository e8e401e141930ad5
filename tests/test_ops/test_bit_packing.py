import pytest
import torch

from mmquant.ops import bit_packing
from mmquant.ops.bit_packing import pack_bits, packed_bytes, unpack_bits, width_of


def by_hand(codes, bits, first=0):
    """Bit by bit: the first code in the lowest bits."""
    stream = sum((code - first) << (i * bits) for i, code in enumerate(codes))
    return list(stream.to_bytes(packed_bytes(len(codes), bits), 'little'))


def test_two_and_four_bits():
    assert pack_bits(torch.tensor([1, 2, 3, 0, 3]), 2).tolist() == [0b00111001, 0b11]
    assert pack_bits(torch.tensor([0, 3, 7, 15]), 4).tolist() == [0x30, 0xF7]


@pytest.mark.parametrize('bits', range(1, 17))
@pytest.mark.parametrize('signed', [False, True])
def test_every_width_exactly(bits, signed):
    """Any number of codes, the ends among them, against big integers, and back."""
    first = -2**(bits - 1) if signed else 0
    generator = torch.Generator().manual_seed(bits)
    for count in (1, 2, 7, 8, 9, 31, 100):
        codes = torch.randint(first, first + 2**bits, (count, ), generator=generator)
        codes[0], codes[-1] = first, first + 2**bits - 1
        packed = pack_bits(codes, bits, first)
        assert packed.dtype is torch.uint8 and packed.tolist() == by_hand(codes.tolist(), bits, first)
        assert torch.equal(unpack_bits(packed, bits, (count, ), first), codes.int())


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize('shape', [(), (5, ), (4, 3, 3, 3), (2, 0, 3), (3, 1, 7)])
def test_any_shape_dtype_and_order_in_memory(shape, dtype):
    codes = torch.randint(0, 8, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    back = unpack_bits(pack_bits(codes, 3), 3, shape, dtype=dtype)
    assert back.dtype is dtype and torch.equal(back, codes)
    turned = codes.permute(tuple(reversed(range(codes.dim()))))
    assert torch.equal(unpack_bits(pack_bits(turned, 3), 3, tuple(turned.shape), dtype=dtype), turned)


def test_pieces_join_without_a_seam(monkeypatch):
    codes = torch.randint(0, 32, (1003, ), generator=torch.Generator().manual_seed(0))
    whole = pack_bits(codes, 5)
    monkeypatch.setattr(bit_packing, 'PIECE', 3)
    assert torch.equal(pack_bits(codes, 5), whole) and torch.equal(unpack_bits(whole, 5, (1003, )), codes.int())


def test_sizes():
    assert [packed_bytes(n, 3) for n in (0, 1, 2, 3, 8)] == [0, 1, 1, 2, 3]
    assert [width_of(*ends) for ends in ((0, 0), (0, 1), (0, 2), (0, 255), (-128, 127), (-1, 1), (0, 65535))] == [
        1, 1, 2, 8, 8, 2, 16]


@pytest.mark.parametrize('codes, bits, first, text', [
    (torch.tensor([0, 4]), 2, 0, r'codes in 0\.\.4: expected 0\.\.3 \(4 levels, 2 bits\)'),
    (torch.tensor([-3, 1]), 2, -2, r'codes in -3\.\.1: expected -2\.\.1'),
    (torch.tensor([0.0]), 2, 0, 'got torch.float32 codes: expected integers'),
    (torch.tensor([0]), 17, 0, r'bits must be an int in 1\.\.16, got 17'),
    (torch.tensor([0]), True, 0, 'bits must be an int'),
])
def test_what_cannot_be_packed(codes, bits, first, text):
    with pytest.raises(ValueError, match=text):
        pack_bits(codes, bits, first)


@pytest.mark.parametrize('packed', [torch.zeros(3, dtype=torch.uint8), torch.zeros(1, dtype=torch.uint8),
                                    torch.zeros(2), torch.zeros(1, 2, dtype=torch.uint8)])
def test_wrong_number_of_bytes(packed):
    with pytest.raises(ValueError, match=r'expected 2 bytes for 3-bit codes of shape \(5,\)'):
        unpack_bits(packed, 3, (5, ))
