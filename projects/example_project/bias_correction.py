"""Bias correction (Nagel et al., Data-Free Quantization, arXiv 1906.04721, section 4.2, equation 18).

    b <- b - E[W_hat x - W x]    for each output channel, from the first layer to the last

The expectation is a mean over calibration images here, instead of an estimate from BatchNorm statistics.
"""
from __future__ import annotations

import torch

from mmquant.algorithms import CalibrationContext, Step
from mmquant.models.layers import output_axis, own_bias
from mmquant.registry import STEPS


def channel_means(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Mean over everything but the channels, shape (channels,)."""
    return x.mean([i for i in range(x.dim()) if i != axis % x.dim()])


@STEPS.register_module()
class BiasCorrection(Step):
    """Take the mean error of each output channel off the bias of each quantized layer that has one.

    Args:
        num_images (int): Calibration images to measure on, in one forward pass. Default 64.
    """
    evaluates = (True, False)
    distributed = False  # means are of the images of one process

    def __init__(self, num_images: int = 64, name: str = 'bias_correction') -> None:
        super().__init__(name)
        self.num_images = num_images

    @torch.no_grad()
    def run(self, context: CalibrationContext) -> None:
        """Correct in execution order: a layer is measured after the corrected layers before it."""
        model, images = context.model, context.chunks[0][:self.num_images]
        layers = {n: x for n, x in model.quantized_layers().items() if x.bias is not None}
        float_means: dict[str, torch.Tensor] = {}
        largest = 0.0

        def measure(name, axis, output):
            float_means.setdefault(name, channel_means(output, axis))

        def correct(name, axis, output):
            nonlocal largest
            if name not in float_means:  # a shared layer's later call
                return output
            error = channel_means(output, axis) - float_means.pop(name)
            own_bias(layers[name]).sub_(error)  # of the quantized mode: the float model stays what it was
            largest = max(largest, error.abs().max().item())
            return output - error.reshape([-1 if i == axis % output.dim() else 1 for i in range(output.dim())])

        with model.quantization(weights=False, activations=False):
            self._run(model, images, layers, measure)
        with model.quantization(weights=True, activations=False):
            self._run(model, images, layers, correct)
        context.records.append(dict(kind='bias_correction', layers=len(layers), largest=largest))

    def _run(self, model, images, layers, hook) -> None:
        handles = []
        for name, layer in layers.items():
            axis = output_axis(layer)
            handles.append(layer.register_forward_hook(
                lambda module, args, output, name=name, axis=axis: hook(name, axis, output)))
        try:
            model.run(images)
        finally:
            for handle in handles:
                handle.remove()
