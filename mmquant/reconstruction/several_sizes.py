"""Units whose samples differ in shape: images of several sizes, heads shared over pyramid levels."""
from dataclasses import dataclass

import torch

from mmquant.reconstruction.problem import Problem


@dataclass(frozen=True)
class RaggedProblem:
    """Several problems that share their parameters.

    The loss of a step is the mean over the calls of the unit (pyramid levels), for the same images of one size; the
    size is drawn by its share of the images.
    """
    groups: list[list[Problem]]  # for each size of images, one problem a call

    @property
    def parts(self) -> list[Problem]:
        return [problem for group in self.groups for problem in group]

    @property
    def device(self) -> torch.device:
        return self.groups[0][0].device

    @property
    def on_gpu(self) -> bool:
        return False  # shapes change from step to step

    @property
    def num_rows(self) -> int:
        """Rows to draw from, of the largest group."""
        return max(p.num_rows for group in self.groups for p in group)

    def draw(self, sampler: torch.Generator, count: int) -> tuple[int, list[torch.Tensor]]:
        """Number of a group, and rows for each of its problems; calls with as many rows get the same ones."""
        shares = torch.tensor([float(group[0].num_rows) for group in self.groups])
        index = int(torch.multinomial(shares, 1, generator=sampler)) if len(shares) > 1 else 0
        drawn: dict[int, torch.Tensor] = {}
        for problem in self.groups[index]:
            if problem.num_rows not in drawn:
                drawn[problem.num_rows] = problem.draw(sampler, count)
        return index, [drawn[p.num_rows] for p in self.groups[index]]

    def loss_on(self, rows: tuple[int, list[torch.Tensor]]) -> torch.Tensor:
        """Loss on what :meth:`draw` returned."""
        index, chosen = rows
        losses = [p.loss_on(r) for p, r in zip(self.groups[index], chosen)]
        return sum(losses) / len(losses)

    def held_loss(self, size: int = 64) -> float:
        """Loss on the held-out rows, in float32: mean over calls, over sizes by their share of the rows."""
        counts = [len(group[0].held_rows) for group in self.groups]
        means = [sum(p.held_loss(size) for p in group) / len(group) for group in self.groups]
        return sum(n * m for n, m in zip(counts, means)) / max(1, sum(counts))
