"""The integers a quantized value may take."""
from dataclasses import dataclass

import torch

MIN_BITS, MAX_BITS = 2, 16


@dataclass(frozen=True)
class IntegerGrid:
    """``2 ** bits`` consecutive integers.

    Args:
        bits: Bit width, an int in 2..16.
        symmetric: False: ``0 .. 2^bits - 1`` with a zero point; True: ``-2^(bits-1) .. 2^(bits-1) - 1``, zero point 0.

    Raises:
        ValueError: ``bits`` is no int in 2..16.
    """

    bits: int
    symmetric: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not MIN_BITS <= self.bits <= MAX_BITS:
            raise ValueError(f'bits={self.bits!r} is not supported: expected an int in {MIN_BITS}..{MAX_BITS}. To keep '
                             'a tensor in floating point, disable its quantizer instead.')

    @property
    def q_min(self) -> int:
        return -(1 << (self.bits - 1)) if self.symmetric else 0

    @property
    def q_max(self) -> int:
        return self.q_min + self.num_levels - 1

    @property
    def num_levels(self) -> int:
        return 1 << self.bits

    @property
    def code_dtype(self) -> torch.dtype:
        return code_dtype(self.q_min, self.q_max)


def code_dtype(low: int, high: int) -> torch.dtype:
    """Smallest torch integer dtype that holds ``low..high``: uint8, int8, int16 or int32."""
    for dtype in (torch.uint8, torch.int8, torch.int16):
        info = torch.iinfo(dtype)
        if info.min <= low and high <= info.max:
            return dtype
    return torch.int32
