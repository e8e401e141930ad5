"""Signal-to-quantization-noise ratio."""
import math


def sqnr_db(signal: float, noise: float) -> float:
    """``10 log10(signal / noise)`` of two sums of squares: inf without noise, -inf without signal, NaN where one is."""
    if noise == 0:
        return math.inf
    ratio = signal / noise
    return 10 * math.log10(ratio) if ratio > 0 else -math.inf if ratio == 0 else math.nan
