"""What holds for a while: a seed, hooks of modules."""
import contextlib
from collections.abc import Callable
from functools import partial

import torch
from torch import nn


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
