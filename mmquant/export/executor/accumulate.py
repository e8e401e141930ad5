"""Sums of products of codes, exact: in float64, where every integer below 2^53 is itself, or in int64 (slow).

Float64 is the carrier by default because it has fast kernels: 2^31 / 2^53 leaves room for any accumulator of int32.
"""
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CARRIERS = (torch.float64, torch.int64)


def convolve(x: Tensor, weight: Tensor, attributes: dict[str, Any], carrier: torch.dtype = torch.float64) -> Tensor:
    """Conv of ONNX on centred codes: x (N, C, *spatial), weight (O, C / group, *kernel), int64; returns int64.

    Padding is with 0, the centred code of the real 0. One or two spatial axes; pads may differ at both ends.

    Raises:
        ValueError: Another number of axes, or ``auto_pad``.
    """
    axes = x.dim() - 2
    if axes not in (1, 2) or attributes.get('auto_pad', b'NOTSET') not in (b'NOTSET', b'VALID'):
        raise ValueError(f'a convolution over {axes} axes, with auto_pad={attributes.get("auto_pad")}, has no integer '
                         'form here')
    pads = attributes.get('pads', [0] * 2 * axes)
    strides = attributes.get('strides', [1] * axes)
    dilations, group = attributes.get('dilations', [1] * axes), attributes.get('group', 1)
    x = F.pad(x, [pads[i + side * axes] for i in reversed(range(axes)) for side in (0, 1)])
    if carrier is torch.float64:
        conv = F.conv1d if axes == 1 else F.conv2d
        return conv(x.double(), weight.double(), None, strides, 0, dilations, group).round_().long()
    return _convolve_integers(x, weight, strides, dilations, group)


def _convolve_integers(x: Tensor, weight: Tensor, strides: list[int], dilations: list[int], group: int) -> Tensor:
    kernel = weight.shape[2:]
    sizes = [(n - d * (k - 1) - 1) // s + 1 for n, d, k, s in zip(x.shape[2:], dilations, kernel, strides)]
    x = x.unflatten(1, (group, -1))  # (N, g, C / g, *spatial)
    weight = weight.unflatten(0, (group, -1)).flatten(3)  # (g, O / g, C / g, taps)
    total = 0
    for tap in range(prod(kernel)):
        at = [tap] if len(kernel) == 1 else divmod(tap, kernel[1])
        window = x[(..., *(slice(i * d, i * d + s * (n - 1) + 1, s)
                           for i, d, s, n in zip(at, dilations, strides, sizes)))]
        total = total + torch.matmul(weight[..., tap], window.flatten(3))  # (N, g, O / g, positions)
    return total.flatten(1, 2).unflatten(-1, sizes)


def matmul(a: Tensor, b: Tensor, carrier: torch.dtype = torch.float64) -> Tensor:
    """a @ b on centred codes, int64, any leading axes."""
    return torch.matmul(a.to(carrier), b.to(carrier)).long()
