"""Merging of training-time branches: RepVGG, MobileOne, RepLKNet and others that bring ``switch_to_deploy``.

The modules merge themselves, with two errors mended here. mmpretrain's RepVGG block drops its squeeze-and-excitation
layer once merged, and the conversions of RepVGG and MobileOne leave every parameter of a block without gradient.
"""
import logging

import torch
from mmengine.logging import print_log
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmquant.models.folding import FoldedBatchNorm
from mmquant.models.layers import mixed_class

MERGED_LAYERS = ('branch_reparam', 'lkb_reparam')


def is_deployed(module: nn.Module) -> bool:
    """Whether a module with ``switch_to_deploy`` has merged its branches already."""
    return bool(getattr(module, 'deploy', False) or getattr(module, 'small_kernel_merged', False))


def reparameterizable(model: nn.Module) -> list[nn.Module]:
    """Submodules that can merge their branches, merged or not."""
    return [m for m in model.modules() if hasattr(m, 'switch_to_deploy')]


@torch.no_grad()
def reparameterize(model: nn.Module) -> int:
    """Merge the branches of every submodule that has ``switch_to_deploy``; returns how many were not merged before.

    Each merged convolution gets ``dense_scale`` (C_out,): ``|gamma / sigma|`` of the BatchNorm after its largest
    kernel, the mean over several such branches; and ``folded_bn``, of which the mean of the output survives: the sum of
    the branches' ``beta``. Models built in deployed form are corrected too, but have neither. Raises a ValueError if a
    module refuses, or the variance of a BatchNorm to be merged is negative, NaN or infinite.
    """
    found = [(n, m) for n, m in model.named_modules() if hasattr(m, 'switch_to_deploy') and not is_deployed(m)]
    for name, module in found:
        _check_statistics(name, module)
        known = {block: _kept(norms, block) for block in module.modules() if (norms := _dense_norms(block))}
        trained = any(p.requires_grad for p in module.parameters())
        if not is_deployed(module):  # an outer module may have merged it
            try:
                module.switch_to_deploy()
            except AssertionError as error:
                raise ValueError(f'{name or type(module).__name__} refuses to merge its branches: {error} Build the '
                                 "model with norm_cfg=dict(type='BN'); the weights of SyncBN fit") from error
            module.requires_grad_(trained)
        for block, (scale, mean) in known.items():
            layer = next((getattr(block, n) for n in MERGED_LAYERS if hasattr(block, n)), None)
            if layer is not None:
                layer.register_buffer('dense_scale', scale, persistent=False)
                layer.folded_bn = FoldedBatchNorm(beta=mean)
    correct_deployed(model)
    return len(found)


def correct_deployed(model: nn.Module) -> None:
    """Give merged RepVGG blocks their squeeze-and-excitation layer back, also those built in deployed form."""
    for block in model.modules():
        merged = getattr(block, 'se_layer', None) is not None and hasattr(block, 'branch_reparam')
        if merged and not isinstance(block, _SqueezeExcitation):
            block.__class__ = mixed_class(_SqueezeExcitation, type(block), '')


class _SqueezeExcitation:
    """Mix-in of merged RepVGG blocks with a squeeze-and-excitation layer: applied as before merging."""

    def forward(self, x):
        return self.act(self.se_layer(self.branch_reparam(x)))


def _dense_norms(block: nn.Module) -> list[nn.Module]:
    """BatchNorms behind the convolutions with the largest kernel of a block that is not merged yet."""
    if hasattr(block, 'branch_3x3'):
        return [block.branch_3x3.norm]
    if hasattr(block, 'branch_conv_list'):
        return [branch.norm for branch in block.branch_conv_list]
    return [block.lkb_origin.bn] if hasattr(block, 'lkb_origin') else []


def _kept(norms: list[nn.Module], block: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """``dense_scale``, and the mean of the sum of the branches, each of which ends in a BatchNorm."""
    scales = [(bn.weight / (bn.running_var + bn.eps).sqrt()).abs() for bn in norms]
    betas = [bn.bias for bn in block.modules() if isinstance(bn, _BatchNorm)]
    return torch.stack(scales).mean(0), torch.stack(betas).sum(0)


def _check_statistics(name: str, module: nn.Module) -> None:
    flat = []
    for path, bn in module.named_modules(prefix=name):
        var = bn.running_var if isinstance(bn, _BatchNorm) else None
        if var is None:
            continue
        if not (torch.isfinite(var) & (var + bn.eps > 0)).all():
            raise ValueError(f'running variance of {path} is negative, NaN or infinite (least value {var.min():.4g}, '
                             f'eps {bn.eps:g}), so its branch cannot be merged; check the float checkpoint')
        flat += [path] * bool((var == 0).any())
    if flat:
        print_log(f'{len(flat)} BatchNorms hold channels with zero variance (first: {flat[0]}): merging multiplies '
                  'these channels by gamma / sqrt(eps), and their weights dominate per-tensor ranges. Were the '
                  'statistics ever trained?', 'current', logging.WARNING)
