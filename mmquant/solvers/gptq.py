"""GPTQ (Frantar et al., arXiv 2210.17323): round column after column, the later ones make up for the error.

    minimise  |X (W - Q)^T|^2 = tr((W - Q) H (W - Q)^T),   H = X^T X + damping,   Q on the grid

    H = A A^T, A upper triangular;   column j:   t_j = w_j + sum_{i<j} (w_i - q_i) A_ij / A_jj,   q_j = grid(t_j)

The paper writes the same with the factor U of the inverse, H^-1 = U^T U: as U = A^-1, the t_j agree, and the loss is
sum_j ((t_j - q_j) A_jj)^2 in both. Without the inverse it takes half the time and loses no digits. Columns are done in
blocks; what the finished blocks add is one matrix product.

Deviations from the authors' code: groups of channels have a Hessian each and are solved side by side; damping is
relative to the diagonal of inputs that are not dead; a dead input's weights round to nearest (theirs become 0, which
harms other images); where the factorisation fails, damping grows tenfold up to 1, then the group rounds to nearest;
grids, of groups of columns too, are those set before, so columns may come in any order.
"""
import logging

import torch
from mmengine.logging import print_log
from torch import Tensor

from mmquant.calibration.moments import Moments
from mmquant.quantizers.columns import Columns
from mmquant.registry import SOLVERS
from mmquant.solvers.solver import Solver


@SOLVERS.register_module()
class GPTQ(Solver):
    """See the module.

    Args:
        percdamp (float): Damping, relative to the mean of H's diagonal; at least 0. Default 0.01.
        act_order (bool): Columns with large inputs first, in each group its own order. Default True.
        block (int): Columns of a block: speed alone. Default 128.
        dead (str): Weights of inputs that are always 0: ``'round'`` (default) or ``'zero'``.
        max_columns (int | None): Wider matrices are solved in blocks of columns. Default 8192: 256 MB of H.

    Raises:
        ValueError: For values out of range.
    """

    def __init__(self, percdamp: float = 0.01, act_order: bool = True, block: int = 128, dead: str = 'round',
                 max_columns: int | None = 8192) -> None:
        if percdamp < 0 or block < 1 or dead not in ('round', 'zero') or (max_columns is not None and max_columns < 1):
            raise ValueError("GPTQ needs percdamp >= 0, block >= 1, dead='round' or 'zero' and max_columns >= 1, got "
                             f'{percdamp}, {block}, {dead!r} and {max_columns}')
        self.percdamp, self.act_order, self.block, self.dead = percdamp, act_order, block, dead
        self.max_columns = max_columns

    @torch.no_grad()
    def solve(self, weight: Tensor, moments: Moments, columns: Columns) -> Tensor:
        gram, weight = moments.gram, weight.to(moments.gram)
        diagonal = gram.diagonal(dim1=-2, dim2=-1)
        if self.dead == 'zero':
            weight = weight * (diagonal > 0)[:, None]
        if not self.act_order:
            return eliminate(weight, self.factor(gram), columns, self.block)[0]
        order = diagonal.argsort(dim=-1, descending=True, stable=True)[:, None]  # (g, 1, C)
        gram = gram.take_along_dim(order, 2).take_along_dim(order.mT, 1)
        codes = eliminate(weight.take_along_dim(order, 2), self.factor(gram), columns.ordered(order), self.block)[0]
        return torch.empty_like(codes).scatter_(2, order.expand_as(codes), codes)

    def factor(self, gram: Tensor) -> Tensor:
        """Upper triangular A, (g, C, C), with A A^T the damped H; a diagonal one where that fails."""
        diagonal = gram.diagonal(dim1=-2, dim2=-1)
        live = diagonal > 0
        mean = (diagonal.sum(-1) / live.sum(-1).clamp(min=1)).where(live.any(-1), 1.0)[:, None]
        damping = torch.full_like(mean, self.percdamp)
        factor, todo = torch.empty_like(gram), torch.arange(len(gram), device=gram.device)
        while len(todo):
            damped = gram[todo].clone()
            damped.diagonal(dim1=-2, dim2=-1).add_(mean[todo] * (damping[todo] + ~live[todo]))
            # the lower factor of H with rows and columns reversed, reversed, is the upper one
            lower, failed = torch.linalg.cholesky_ex(damped.flip(1, 2))
            factor[todo], todo = lower.flip(1, 2), todo[failed > 0]
            damping[todo] = (damping[todo] * 10).clamp(min=1e-6)
            lost, todo = todo[damping[todo, 0] > 1], todo[damping[todo, 0] <= 1]
            if len(lost):
                factor[lost] = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
                print_log(f'GPTQ: {len(lost)} of {len(gram)} Hessians of {gram.shape[-1]} columns cannot be factored '
                          'with any damping; their weights round to nearest', 'current', logging.WARNING)
        return factor


def eliminate(weight: Tensor, factor: Tensor, columns: Columns, block: int) -> tuple[Tensor, Tensor]:
    """Codes (g, R, C), and the loss of each row (g, R), of ``weight`` (g, R, C) by the factor A (g, C, C)."""
    pivots = factor.diagonal(dim1=-2, dim2=-1)
    feedback = factor / pivots[:, None]  # A_ij / A_jj
    errors, losses, codes = torch.empty_like(weight), weight.new_zeros(weight.shape[:2]), None
    for begin in range(0, weight.shape[-1], block):
        end = min(begin + block, weight.shape[-1])
        targets = weight[..., begin:end] + errors[..., :begin] @ feedback[:, :begin, begin:end]
        for j in range(begin, end):
            target, grid = targets[..., j - begin, None], columns[j:j + 1]
            code = grid.encode(target.float())
            value = grid.decode(code).to(weight.dtype)
            codes = code.new_empty(weight.shape) if codes is None else codes
            codes[..., j:j + 1], errors[..., j:j + 1] = code, weight[..., j:j + 1] - value
            losses += (target - value)[..., 0].square() * pivots[:, None, j].square()
            targets[..., j + 1 - begin:] += errors[..., j:j + 1] @ feedback[:, j:j + 1, j + 1:end]
    return codes, losses
