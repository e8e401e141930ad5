"""Random numbers that do not depend on what ran before."""
from __future__ import annotations

import contextlib

import torch


@contextlib.contextmanager
def seeded(seed: int, device: torch.device):
    """Draw from torch's global generators as if seeded here, and leave them as they were."""
    with torch.random.fork_rng([device] if device.type == 'cuda' else []):
        torch.manual_seed(seed)
        yield
