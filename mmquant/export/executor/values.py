"""What flows through an exported graph: codes with their scale and zero point, and where an operator's codes go."""
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Quantized:
    """Real values ``(codes - zero) * scale`` that nobody has computed yet: the output of a DequantizeLinear.

    ``codes`` are integers of any shape; ``scale`` float32 and ``zero`` (integers) are scalars, or (C, ) along ``axis``.
    """
    codes: Tensor
    scale: Tensor
    zero: Tensor
    axis: int = 0

    def centred(self) -> Tensor:
        """codes - zero, int64."""
        return self.codes.long() - self.along_axis(self.zero).long()

    def dequantize(self) -> Tensor:
        """Float32, as DequantizeLinear computes it: f32(codes - zero) * scale."""
        return self.centred().float() * self.along_axis(self.scale)

    def along_axis(self, parameter: Tensor) -> Tensor:
        """Shape a parameter so that it broadcasts against the codes."""
        if parameter.numel() == 1:
            return parameter.reshape(())
        shape = [1] * self.codes.dim()
        shape[self.axis] = -1
        return parameter.reshape(shape)


@dataclass
class Target:
    """The QuantizeLinear behind an operator: scale, zero point, code type, and the codes it may give (both ends)."""
    scale: Tensor
    zero: Tensor
    low: int
    high: int

    def codes(self, rounded: Tensor) -> Tensor:
        """clip(rounded + zero): int64 in, codes of the zero point's type out."""
        return (rounded + self.zero.long()).clamp_(self.low, self.high).to(self.zero.dtype)

    def quantize(self, x: Tensor) -> Tensor:
        """QuantizeLinear: clip(rint(x / scale) + zero), float32, ties to even; NaN does not occur."""
        return self.codes((x / self.scale).clamp_(-2.0**30, 2.0**30).round_().long())

    def holds(self, value: Quantized) -> bool:
        """The value has this scale and zero point: its codes are the result."""
        return (value.scale.numel() == self.scale.numel() == 1 and value.codes.dtype is self.zero.dtype
                and bool(value.scale.reshape(()) == self.scale.reshape(()))
                and int(value.zero.reshape(())) == int(self.zero.reshape(())))


def code_range(dtype: torch.dtype) -> tuple[int, int]:
    """Smallest and largest value of an integer type."""
    info = torch.iinfo(dtype)
    return info.min, info.max
