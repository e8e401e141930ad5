"""What the processor can do."""
from __future__ import annotations

import torch


def computes_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is computed by instructions of its own, rather than emulated and slower than float32."""
    if device.type != 'cpu':
        return True
    known = torch.cpu.get_capabilities()
    if known.get('architecture') == 'x86_64':
        return bool(known.get('amx_bf16') or known.get('avx512_bf16'))
    return bool(known.get('bf16') or known.get('sve_bf16') or known.get('arm_bf16'))
