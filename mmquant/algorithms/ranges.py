"""Steps that set the range of quantizers: weights once, activations along one calibration pass."""
import itertools

import torch

from mmquant.algorithms.step import CalibrationContext, Step
from mmquant.calibration.observed_ranges import DEFAULT_OBSERVER, observed_ranges, warn_of_calls_far_apart
from mmquant.registry import OBSERVERS, STEPS
from mmquant.utils.building import build
from mmquant.utils.distributed import share


@STEPS.register_module()
class InitWeightRange(Step):
    """Weight ranges by an ``observer``, by default the p = 2.4 search (BRECQ); weights then round to nearest."""
    evaluates = (True, False)

    def __init__(self, observer: dict | None = None, name: str = 'nearest_weights') -> None:
        super().__init__(name)
        self.observer = build(OBSERVERS, observer or DEFAULT_OBSERVER, 'InitWeightRange.observer')

    @torch.no_grad()
    def run(self, context: CalibrationContext) -> None:
        """Set every weight quantizer's range. ValueError, with the layer, if a weight holds NaN or infinite values."""
        for name, layer in context.model.quantized_layers().items():
            try:
                layer.weight_quantizer.fit(layer.quantized_tensor, self.observer)
            except ValueError as error:
                raise ValueError(f'weight of {name}: {error}') from error


@STEPS.register_module()
class InitActivationRange(Step):
    """Activation ranges of the whole net by an observer.

    Args:
        observer (dict): Default: the p = 2.4 search (BRECQ).
        num_images (int): Images to observe, at least 1. Default 64.
        chunk (int): Images of one size that pass the model together. Default 64: usually one pass; with more, the
            first ones meet ranges upstream that later ones may still change.
        statistics (str): ``'quantized'`` (default): activations that already went through the quantized layers and
            activations upstream (BRECQ). ``'float'``: those of the float net (QDrop).

    Raises:
        ValueError: For another number or word.
    """
    evaluates = (True, True)

    def __init__(self, observer: dict | None = None, num_images: int = 64, chunk: int = 64,
                 statistics: str = 'quantized', name: str = 'activation_ranges') -> None:
        super().__init__(name)
        for key, value in dict(num_images=num_images, chunk=chunk).items():
            if value < 1:
                raise ValueError(f'{key} must be at least 1, got {value}')
        if statistics not in ('quantized', 'float'):
            raise ValueError(f"statistics must be 'quantized' or 'float', got {statistics!r}")
        self.observer = build(OBSERVERS, observer or DEFAULT_OBSERVER, 'InitActivationRange.observer')
        self.num_images, self.chunk, self.quantized = num_images, chunk, statistics == 'quantized'

    @torch.no_grad()
    def run(self, context: CalibrationContext) -> None:
        """Set all ranges. ValueError, with its place, if a quantizer met NaN, or no image reached it.

        Warns where one quantizer serves calls whose values are far apart.
        """
        model, running, quantizers = context.model, [], context.model.activation_quantizers()
        with observed_ranges(quantizers, self.observer, lambda: running[-1], self.quantized) as largest, \
                model.quantization(weights=self.quantized, activations=self.quantized):
            for images, samples in passes(context.batches(share(self.num_images)), share(self.chunk)):
                running.append(len(images))
                model.run(images, samples)
        idle = [name for name, q in quantizers.items() if not q.initialized]
        if idle:
            raise ValueError(f'no calibration image reached {len(idle)} activation quantizers (first: {idle[0]}); give '
                             'more calibration images, or keep these layers float: quantizer.overrides=[dict(pattern='
                             f'{idle[0].rsplit(".", 1)[0]!r}, w_bits=None, a_bits=None)]')
        warn_of_calls_far_apart(largest, len(running))


def passes(batches: list[tuple], size: int):
    """Join neighbouring batches of (images, data samples or None) of one image size to at most ``size`` images."""
    for _, group in itertools.groupby(batches, key=lambda batch: batch[0].shape[1:]):
        images, samples = zip(*group)
        images, samples = torch.cat(images), None if samples[0] is None else sum(samples, [])
        for start in range(0, len(images), size):
            yield images[start:start + size], samples and samples[start:start + size]
