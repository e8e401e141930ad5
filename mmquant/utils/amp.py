"""bfloat16, where it is wanted."""
from __future__ import annotations

import contextlib

import torch


def autocast(device: torch.device, on: bool):
    """bfloat16 autocast, or nothing."""
    return torch.autocast(device.type, torch.bfloat16) if on else contextlib.nullcontext()


def in_bfloat16(x: torch.Tensor) -> torch.Tensor:
    """``x`` in bfloat16 if it is float32, else itself."""
    return x.to(torch.bfloat16) if x.dtype == torch.float32 else x
