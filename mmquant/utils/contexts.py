"""What holds for a while: a seed, hooks of modules, plain convolutions."""
import contextlib
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

NARROW = 16  # channels that oneDNN takes at once, with AVX-512; 8 with AVX2


@contextlib.contextmanager
def seeded(seed: int, device: torch.device):
    """Draw from torch's global generators as if seeded here, and leave them as they were."""
    with torch.random.fork_rng([device] if device.type == 'cuda' else []):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def hooked(modules: dict[str, nn.Module], hook: Callable, before: bool = False):
    """While this lasts, ``hook(name, module, args[, output])`` is called after (or ``before``) each module's calls."""
    handles = [(m.register_forward_pre_hook if before else m.register_forward_hook)(partial(hook, name))
               for name, m in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def sound_gradients(model: nn.Module):
    """Without oneDNN on a CPU, if a model has convolutions whose weight gradients it writes past their end.

    Those are of 1x1 kernels with a stride and few input channels, read as channels_last (torch 2.6 to 2.13 with AVX2:
    heap corruption, so that the process ends or values elsewhere change). Wider ones, as all usual networks have, and
    all passes without gradients are right.
    """
    broken = any(isinstance(m, nn.Conv2d) and set(m.kernel_size) == {1} and max(m.stride) > 1
                 and m.in_channels // m.groups < NARROW for m in model.modules())
    mkldnn = torch.backends.mkldnn
    before = mkldnn.enabled
    mkldnn.enabled = before and not broken
    try:
        yield
    finally:
        mkldnn.enabled = before
