"""Steps that shape the model: re-parameterization, BatchNorm folding, insertion of quantizers."""
import torch
from mmengine.logging import print_log

from mmquant.algorithms.step import CalibrationContext, Step
from mmquant.models.detection import is_detector
from mmquant.models.edits import Merged
from mmquant.models.placement import BY_CONFIG
from mmquant.models.reparameterize import correct_deployed, is_deployed, reparameterizable
from mmquant.registry import STEPS

REMEMBERED = 32
"""Images whose outputs of the original float model are kept; two of a detector."""


def remember(context: CalibrationContext) -> None:
    """Keep outputs of the original float model as ``context.model.reference``, once."""
    if context.model.reference is None:
        context.model.remember(context.batches(2 if is_detector(context.model.architecture) else REMEMBERED))


def nothing(float_layers: tuple[tuple[str, str], ...]) -> str:
    """What to say where no tensor would be quantized."""
    reasons = [f'{name}: {why}' for name, why in float_layers if why != BY_CONFIG]
    return (f'nothing can be quantized: {"; ".join(reasons[:3])}' if reasons else
            'the quantizer config leaves every layer float: give bits to quantizer.weight or quantizer.activation')


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
        remember(context)
        context.model.edit((Merged(), ), context.sample, context.sample_info, self.tolerance)
        context.records.append(dict(kind='reparameterized', modules=len(todo)))


@STEPS.register_module()
class FoldBatchNorm(Step):
    """Fold every BatchNorm that alone reads the output of a convolution or linear layer, found by data flow."""
    structural = True

    def run(self, context: CalibrationContext) -> None:
        remember(context)
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
        remember(context)
        model = context.model
        plan = model.make_plan(context.sample, context.sample_info)
        if not plan.places:
            raise ValueError(nothing(plan.float_layers))
        model.insert_quantizers(plan, context.sample, context.sample_info)
        model.requires_grad_(False)
        model.observe(context.sample, context.sample_info)
