"""BRECQ's diagonal Fisher weights (arXiv 2102.05426)."""
import torch

from mmquant.calibration.context import Visit
from mmquant.calibration.unit_inputs import collect
from mmquant.losses.objectives import build_objective
from mmquant.reconstruction.fisher import fisher_diagonal, of_divergence, of_loss
from mmquant.reconstruction.problem import Comparison
from mmquant.reconstruction.terms.term import UnitData
from mmquant.reconstruction.terms.unit_loss import UnitLoss
from mmquant.registry import TERMS


@TERMS.register_module()
class FisherLoss(UnitLoss):
    """Squared error weighted by the diagonal of the Fisher information (BRECQ, arXiv 2102.05426, eq. 10).

    The weights are squared gradients of KL(float || quantized) at the unit's output, with the net quantized up to and
    including the unit, each image's own (no batch mean), scaled to mean 1 over the calibration set. The paper's code
    adds 1 to tiny batch-mean gradients, which makes it plain squared error; this does not.

    Args:
        objective (dict | None): Another loss of the outputs to take the gradients of: ``mmquant.TrainingLoss`` for
            detectors of one stage, ``mmquant.CrossEntropy``; both need labels. Default None: the divergence.
        weight, inputs: See :class:`Term`.
    """

    def __init__(self, objective: dict | None = None, weight: float = 1.0, inputs: str | None = None) -> None:
        super().__init__(2.0, weight=weight, inputs=inputs)
        self.objective, self._context, self._gradients = objective, None, None

    def comparisons(self, visit: Visit, data: UnitData) -> dict[tuple, Comparison]:
        context = visit.context
        with context.model.quantization(weights=False, activations=False):
            weights = fisher_diagonal(visit.streams[data.stream], visit.unit, data.quantizers, self._of(context))
        parts: dict[tuple, list] = {}
        for chunk, calls in zip(context.chunks, weights):
            for call, weight in enumerate(calls):
                parts.setdefault((tuple(chunk.shape[1:]), call), []).append(weight)
        return super().comparisons(visit, data, {key: collect(x, context.cache, visit.items[key].outputs)
                                                 for key, x in parts.items()})

    @torch.no_grad()
    def _of(self, context):
        """Gradients of the loss at the outputs of the net, for all units of a run."""
        if self._context is not context:
            self._context = context
            if self.objective is not None:
                self._gradients = of_loss(build_objective(context, self.objective, 'FisherLoss.objective'))
            else:
                self._gradients = of_divergence([context.run(index) for index in range(len(context.chunks))])
        return self._gradients
