"""What the processor is, and what it can do; bfloat16, where it is wanted."""
import contextlib
import ctypes
import platform
import resource
import sys
from functools import cache

import torch

# Keys of glibc's mallopt.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
KEPT = 2**30  # bytes of free memory that may stay at the top of the heap


def computes_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is computed by instructions of its own, rather than emulated and slower than float32."""
    if device.type != 'cpu':
        return True
    known = torch.cpu.get_capabilities()
    if known.get('architecture') == 'x86_64':
        return bool(known.get('amx_bf16') or known.get('avx512_bf16'))
    return bool(known.get('bf16') or known.get('sve_bf16') or known.get('arm_bf16'))


def autocast(device: torch.device, on: bool):
    """bfloat16 autocast, or nothing."""
    return torch.autocast(device.type, torch.bfloat16) if on else contextlib.nullcontext()


def in_bfloat16(x: torch.Tensor) -> torch.Tensor:
    """``x`` in bfloat16 if it is float32, else itself."""
    return x.to(torch.bfloat16) if x.dtype == torch.float32 else x


def device_name(device: torch.device) -> str:
    """Kind of the device, such as ``'NVIDIA H100 80GB HBM3'``, or the processor's name with the threads in use."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    if device.type != 'cpu':
        return device.type
    try:
        with open('/proc/cpuinfo') as f:
            names = [line.split(':', 1)[1].strip() for line in f if line.startswith('model name')]
    except OSError:
        names = []
    threads = torch.get_num_threads()
    return f'{names[0] if names else platform.machine()} ({threads} thread{"s" * (threads > 1)})'


def peak_memory_bytes() -> int:
    """Peak memory of this process: on the GPU where there is one, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else peak * 1024


@cache
def reuse_freed_memory() -> bool:
    """Let the C library keep freed blocks, up to 1 GiB, instead of returning each; True where that worked.

    Every large tensor would otherwise be mapped, zeroed page by page at its first use, and unmapped, which can take as
    long as the arithmetic on it. Linux with glibc only; holds for the whole process.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None) if sys.platform == 'linux' else None
    if mallopt is None:
        return False
    # glibc before 2.35 takes no mapping threshold above 32 MiB
    return bool((mallopt(MMAP_THRESHOLD, KEPT) or mallopt(MMAP_THRESHOLD, 2**25)) and mallopt(TRIM_THRESHOLD, KEPT))
