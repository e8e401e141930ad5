"""From an int32 accumulator to the codes of the output: multiply by a real M > 0, round, in four arithmetics.

    ort     rint(f32(acc) * f32(M)), ties to even: the CPU kernels of ONNX Runtime
    exact   rint(acc * M), ties to even, in real arithmetic: M is a quotient of float32 numbers, hence rational
    single  (acc * M0 + 2^(30 - e)) >> (31 - e) in int64, M = M0 2^(e - 31): one rounding, ties up
    double  gemmlowp and classic TFLite: SRDHM, then a rounding shift. Two roundings, off by one now and then

``single`` and ``double`` use integers only. Source: Jacob et al., arXiv 1712.05877; google/gemmlowp, fixedpoint.h.
"""
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

MODES = ('ort', 'exact', 'single', 'double')
NEAR_TIE = 1e-6  # float64 decides beyond this distance from a tie: codes below 2^16 are known to 2^-35
LARGEST = 2**24  # results beyond are clipped anyway: float64 and float32 hold all integers up to here


def fixed_point(multiplier: float) -> tuple[int, int]:
    """(M0, e) with M = M0 2^(e - 31), M0 in [2^30, 2^31); (0, 0) for M below 2^-32.

    Raises:
        ValueError: M is negative or not finite.
    """
    if not 0 <= multiplier < float('inf'):
        raise ValueError(f'a multiplier must be finite and not negative, got {multiplier}')
    mantissa, exponent = np.frexp(np.float64(multiplier))
    whole, exponent = int(np.floor(mantissa * 2**31 + 0.5)), int(exponent)
    if whole == 2**31:
        whole, exponent = whole // 2, exponent + 1
    return (0, 0) if exponent < -31 else (whole, exponent)


def srdhm(a: Tensor, b: Tensor) -> Tensor:
    """Saturating rounding doubling high multiplication of int32 values: a b / 2^31, ties away from zero."""
    product = a.long() * b.long()
    nudge = torch.where(product >= 0, 2**30, 1 - 2**30)
    return torch.div(product + nudge, 2**31, rounding_mode='trunc').clamp(max=2**31 - 1)


def rounding_shift(x: Tensor, n: Tensor) -> Tensor:
    """x / 2^n, ties away from zero; int64, n at least 0."""
    mask = (1 << n) - 1
    return (x >> n) + ((x & mask) > (mask >> 1) + (x < 0)).long()


def rescale(acc: Tensor, up: list[Tensor], down: list[Tensor], mode: str) -> Tensor:
    """round(acc * prod(up) / prod(down)), int64, of acc's shape; the factors are float32 and broadcast against acc.

    Results beyond +-2^24 may come out as another number beyond it.

    Raises:
        ValueError: An unknown mode.
    """
    if mode == 'ort':
        return _float32(acc, _product(up, torch.float32) / _product(down, torch.float32))
    if mode == 'exact':
        return _exact(acc, up, down)
    if mode not in MODES:
        raise ValueError(f'requantize must be one of {MODES}, got {mode!r}')
    whole, exponent = _fixed_points(up, down)
    if mode == 'single':
        return (acc.long() * whole + (1 << (30 - exponent))) >> (31 - exponent)
    scaled = (acc.long() << exponent.clamp(min=0)).clamp(-2**31, 2**31 - 1)
    return rounding_shift(srdhm(scaled, whole), (-exponent).clamp(min=0))


def _float32(acc: Tensor, multiplier: Tensor) -> Tensor:
    return (acc.float() * multiplier).clamp_(-LARGEST, LARGEST).round_().long()


def _product(factors: list[Tensor], dtype: torch.dtype) -> Tensor:
    result = torch.ones((), dtype=dtype)
    for factor in factors:
        result = result * factor.to(dtype)
    return result


def _fixed_points(up: list[Tensor], down: list[Tensor]) -> tuple[Tensor, Tensor]:
    """What a compiler would put into the model: the only floats, and they meet no code."""
    real = (_product(up, torch.float64) / _product(down, torch.float64)).numpy()
    pairs = [fixed_point(value) for value in real.flat]
    return tuple(torch.tensor([pair[i] for pair in pairs]).reshape(real.shape) for i in (0, 1))


def _exact(acc: Tensor, up: list[Tensor], down: list[Tensor]) -> Tensor:
    real = acc.double() * _product(up, torch.float64) / _product(down, torch.float64)
    real = real.clamp_(-LARGEST, LARGEST)
    result = real.round()
    close = ((real - real.floor()) - 0.5).abs() < NEAR_TIE
    up, down = [[f.expand(acc.shape)[close].tolist() for f in factors] for factors in (up, down)]
    for place, (a, *factors) in zip(close.nonzero().tolist(), zip(acc[close].tolist(), *up, *down)):
        value = Fraction(a)
        for i, factor in enumerate(factors):
            value = value * Fraction(factor) if i < len(up) else value / Fraction(factor)
        result[tuple(place)] = round(value)  # Python rounds fractions half to even
    return result.long()
