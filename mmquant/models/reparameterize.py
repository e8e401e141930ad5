"""Merging of training-time branches: RepVGG, MobileOne, RepLKNet and others that bring ``switch_to_deploy``."""
from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def reparameterize(model: nn.Module) -> int:
    """Call ``switch_to_deploy`` of every submodule that has it and is not deployed; returns how many were merged."""
    found = [m for m in model.modules() if hasattr(m, 'switch_to_deploy') and not getattr(m, 'deploy', False)]
    for module in found:
        if not getattr(module, 'deploy', False):  # an outer module may have merged it
            module.switch_to_deploy()
    return len(found)
