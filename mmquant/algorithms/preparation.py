"""Steps that shape the model: re-parameterization, BatchNorm folding, insertion of quantizers."""
import torch
from mmengine.logging import print_log

from mmquant.algorithms.step import CalibrationContext, Step
from mmquant.models.edits import Merged
from mmquant.models.reparameterize import correct_deployed, is_deployed, reparameterizable
from mmquant.registry import STEPS


@STEPS.register_module()
class Reparameterize(Step):
    """Merge training-time branches by the modules' own ``switch_to_deploy`` (RepVGG, MobileOne, RepLKNet).

    A model that was built in deployed form stays as it is.

    Args:
        tolerance (float): Largest allowed change of the outputs, relative to their largest magnitude.

    Raises:
        ValueError: If there is nothing to merge, or a BatchNorm cannot be merged.
        RuntimeError: If merging changed the output by more.
    """
    structural = True

    def __init__(self, tolerance: float = 1e-3, name: str | None = None) -> None:
        super().__init__(name)
        self.tolerance = tolerance

    @torch.no_grad()
    def run(self, context: CalibrationContext) -> None:
        found = reparameterizable(context.model.architecture)
        if not found:
            raise ValueError(f'{type(context.model.architecture).__name__} has nothing to re-parameterize: no module '
                             'has switch_to_deploy(); remove the step Reparameterize from the recipe')
        todo = [m for m in found if not is_deployed(m)]
        if not todo:
            print_log('the branches were merged before (deployed form): nothing left to re-parameterize', 'current')
        correct_deployed(context.model.architecture)
        context.model.edit((Merged(), ), context.sample, context.sample_info, self.tolerance)
        context.records.append(dict(kind='reparameterized', modules=len(todo)))


@STEPS.register_module()
class FoldBatchNorm(Step):
    """Fold every BatchNorm that alone reads the output of a convolution or linear layer, found by data flow."""
    structural = True

    def run(self, context: CalibrationContext) -> None:
        pairs = context.model.fold_batch_norm(context.sample, context.sample_info)
        context.records.append(dict(kind='folded', pairs=len(pairs)))


@STEPS.register_module()
class InsertQuantizers(Step):
    """Turn layers into quantized ones at the places that data flow and policy give.

    Raises:
        ValueError: If nothing would be quantized, or an override matches no layer.
    """
    structural = True

    def run(self, context: CalibrationContext) -> None:
        model = context.model
        plan = model.make_plan(context.sample, context.sample_info)
        if not plan.places:
            raise ValueError('the quantizer config leaves every layer float: give bits to quantizer.weight or '
                             'quantizer.activation')
        model.insert_quantizers(plan)
        model.requires_grad_(False)
        model.observe(context.sample, context.sample_info)
