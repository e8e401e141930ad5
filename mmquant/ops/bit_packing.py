"""Integer codes as a stream of bits: each code at its own width, the first one in the lowest bits of the first byte."""
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_BITS = 16
PIECE = 2**20  # groups of 8 codes that are in memory as 32-bit integers at once


def width_of(first: int, last: int) -> int:
    """Bits of a code in ``first..last``; 1 for a single one."""
    return max(1, (last - first).bit_length())


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of so many codes; the last byte is filled with zeros."""
    return (count * bits + 7) // 8


def pack_bits(codes: Tensor, bits: int, first: int = 0) -> Tensor:
    """Pack integer codes, of any shape, in their logical order (last axis fastest), at ``bits`` (1..16) each.

    Returns uint8, (ceil(numel * bits / 8),), on the CPU. ``first`` is the smallest code: negative on signed grids.

    Raises:
        ValueError: Not integers, bits outside 1..16, or a code outside ``first .. first + 2**bits - 1``.
    """
    _check_width(bits)
    if codes.is_floating_point() or codes.is_complex():
        raise ValueError(f'pack_bits got {codes.dtype} codes: expected integers, as from encode()')
    flat = codes.detach().cpu().flatten()
    if flat.numel() and (int(flat.min()) < first or int(flat.max()) >= first + 2**bits):
        raise ValueError(f'pack_bits got codes in {int(flat.min())}..{int(flat.max())}: expected {first}..'
                         f'{first + 2**bits - 1} ({2**bits} levels, {bits} bits)')
    packed = [_pack(piece, bits, first) for piece in flat.split(8 * PIECE)]
    return torch.cat(packed)[:packed_bytes(flat.numel(), bits)]


def unpack_bits(packed: Tensor, bits: int, shape: tuple[int, ...], first: int = 0, dtype: torch.dtype = torch.int32
                ) -> Tensor:
    """The inverse of :func:`pack_bits`; ``dtype`` must hold all ``2**bits`` codes.

    Raises:
        ValueError: Bits outside 1..16, no bytes, or another number of them than these codes take.
    """
    _check_width(bits)
    expected = packed_bytes(prod(shape), bits)
    if packed.dtype is not torch.uint8 or packed.shape != (expected, ):
        raise ValueError(f'unpack_bits got {packed.dtype} of shape {tuple(packed.shape)}: expected {expected} bytes '
                         f'for {bits}-bit codes of shape {tuple(shape)}')
    pieces = [_unpack(piece, bits, first, dtype) for piece in packed.cpu().split(bits * PIECE)]
    return torch.cat(pieces)[:prod(shape)].reshape(shape)


def _check_width(bits: int) -> None:
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= MAX_BITS:
        raise ValueError(f'bits must be an int in 1..{MAX_BITS}, got {bits!r}')


def _places(bits: int) -> list[tuple[int, int, int]]:
    """(code, byte, bits from the begin of the byte up to the code) where 8 codes and their ``bits`` bytes overlap."""
    return [(i, j, i * bits - 8 * j) for i in range(8) for j in range(i * bits // 8, ((i + 1) * bits - 1) // 8 + 1)]


def _rows(x: Tensor, size: int) -> Tensor:
    """Rows of ``size`` elements, the last one filled up with zeros."""
    return F.pad(x, (0, -len(x) % size)).view(-1, size)


def _pack(codes: Tensor, bits: int, first: int) -> Tensor:
    groups = _rows(codes.to(torch.int32) - first, 8)
    out = torch.zeros(len(groups), bits, dtype=torch.int32)
    for i, j, shift in _places(bits):
        out[:, j] |= groups[:, i] << shift if shift >= 0 else groups[:, i] >> -shift
    return out.bitwise_and_(255).to(torch.uint8).flatten()


def _unpack(packed: Tensor, bits: int, first: int, dtype: torch.dtype) -> Tensor:
    groups = _rows(packed.to(torch.int32), bits)
    out = torch.zeros(len(groups), 8, dtype=torch.int32)
    for i, j, shift in _places(bits):
        out[:, i] |= groups[:, j] >> shift if shift >= 0 else groups[:, j] << -shift
    return out.bitwise_and_(2**bits - 1).add_(first).to(dtype).flatten()
