"""From any calibrated model to one that a runtime can compute in integers."""
import contextlib

import torch
from torch import Tensor, nn

from mmquant.algorithms import InsertDeployQuantizers, MakeWeightsSymmetric, RoundBiases
from mmquant.calibration.context import CalibrationContext
from mmquant.models import QuantizedModel
from mmquant.models.packed_weight import PackedWeight


def prepare(model: QuantizedModel, chunks: list[Tensor], profile: str = 'ort_cpu',
            samples: list[list] | None = None) -> list[dict]:
    """Add the quantizers that a profile needs, with ranges, and round the biases; what is there already stays.

    8-bit weights with zero points become symmetric, with a warning.

    The model is changed, so that evaluating it afterwards evaluates what will run.

    Args:
        model (QuantizedModel): With ranges.
        chunks (list[Tensor]): Preprocessed calibration images (N, C, H, W), for the ranges.
        profile (str): Name of a :class:`DeployProfile`.
        samples (list | None): Data samples of each chunk, for detectors.

    Returns:
        list[dict]: What was done, as records of a run.
    """
    with float_stand_ins(model):
        context = CalibrationContext(model, chunks, samples=samples)
        for step in (MakeWeightsSymmetric(), InsertDeployQuantizers(profile), RoundBiases(profile)):
            step.run(context)
    return context.records


@contextlib.contextmanager
def float_stand_ins(model: QuantizedModel):
    """Let a model that was loaded from a packed checkpoint run in float mode, with the values of its codes."""
    packed = {layer: layer._parameters['weight'] for layer in model.quantized_layers().values()
              if isinstance(layer._parameters['weight'], PackedWeight)}
    try:
        for layer in packed:
            with torch.no_grad():
                values = layer.weight_quantizer(layer._parameters['weight'])
            layer._parameters['weight'] = nn.Parameter(values, False)
        yield
    finally:
        for layer, weight in packed.items():
            layer._parameters['weight'] = weight
