"""Additive powers of two (APoT, arXiv 1909.13144): every level is a sum of n powers of two.

    levels(B) = gamma * {p_0 + ... + p_(n-1)},    p_i in {0, 2^-i, 2^-(i+n), ..., 2^-(i+(2^k-2)n)},    n = B / k

with B bits of magnitude and gamma such that the largest is 1. k = 1 is the uniform grid, k = B plain powers of two. For
k = 2 and odd B, where the formula has no answer, the exponents are those of the authors' code. The paper trains with
this grid (learned clips, normalised weights); here it is the grid alone, whose range is searched after training.
Deviations from the code: ties go towards zero, and widths without a table are refused (there they give levels of NaN).
"""
import itertools

import torch
from torch import Tensor

from mmquant.registry import QUANTIZERS
from mmquant.structures import Granularity

from .level_set import LevelSetQuantizer

ODD = {3: ((1, 2, 4), (3, )), 5: ((1, 3, 6), (2, 4, 7), (5, ))}
"""Exponents of the terms at k = 2 and odd B (the authors' code)."""


def apot_integers(bits: int, terms_k: int = 2) -> list[int]:
    """The ``2 ** bits`` magnitudes as integers, sorted, from 0; the last one is the divisor that makes them 0..1.

    Raises:
        ValueError: ``bits`` is no multiple of ``terms_k``, or outside 2..6 at ``terms_k=2``.
    """
    odd = terms_k == 2 and bits in ODD
    if terms_k < 1 or bits < 1 or not (odd or bits % terms_k == 0) or (terms_k == 2 and not 2 <= bits <= 6):
        raise ValueError(f'no APoT levels of {bits} magnitude bits in terms of {terms_k}: expected a multiple of '
                         'terms_k, at terms_k=2 any of 2..6 (one more bit with a sign, so bits=3..7 for weights)')
    n = bits // terms_k
    terms = ODD[bits] if odd else [range(i, i + (2**terms_k - 1) * n, n) for i in range(n)]
    smallest = max(e for term in terms for e in term)
    return sorted(sum(part) for part in itertools.product(*([0, *(2**(smallest - e) for e in t)] for t in terms)))


@QUANTIZERS.register_module()
class APoTQuantizer(LevelSetQuantizer):
    """Sums of powers of two, dense near 0 and with some resolution near the clip.

    With a sign one bit is the sign and zero has two codes, of which one is unused: 15 levels at 4 bits. Activations
    that are never negative, as after ReLU, get all codes; ``set_range`` decides unless ``signed`` is given.

    Args:
        bits: Bit width; 3..7 with a sign, 2..6 without, at ``terms_k=2``. Default: 4.
        terms_k: Bits of each power of two. Default: 2.
        signed, granularity, channel_axis, group_size, keep_mean: See ``LevelSetQuantizer``.

    Raises:
        ValueError: A width that has no levels.
    """

    def __init__(self, bits: int = 4, terms_k: int = 2, signed: bool | None = None,
                 granularity: str | dict | Granularity = 'tensor', channel_axis: int = 0,
                 group_size: int | None = None, keep_mean: bool = False) -> None:
        self.terms_k = terms_k  # first: the base asks for the levels
        super().__init__(bits, None, signed, granularity, channel_axis, group_size, keep_mean)

    def make_levels(self, bits: int, signed: bool) -> Tensor:
        try:
            integers = apot_integers(bits - signed, self.terms_k)
        except ValueError as error:
            raise ValueError(f'bits={bits}, signed={signed}: {error}') from error
        positive = [level / integers[-1] for level in integers]
        return torch.tensor([*(-level for level in positive[:0:-1] if signed), *positive], dtype=torch.float64)
