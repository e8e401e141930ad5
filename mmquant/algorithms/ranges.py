"""Steps that set the range of quantizers: weights once, activations along one calibration pass."""
from __future__ import annotations

import copy

import torch

from mmquant.algorithms.step import CalibrationContext, Step
from mmquant.models.quantized_model import QuantizedModel
from mmquant.quantizers import Quantizer
from mmquant.registry import OBSERVERS, STEPS
from mmquant.utils.building import build

DEFAULT_OBSERVER = {'type': 'mmquant.LpNormObserver', 'p': 2.4}


@STEPS.register_module()
class InitWeightRange(Step):
    """Weight ranges by an observer; weights then round to nearest.

    Args:
        observer (dict): Default: the p = 2.4 search (BRECQ).
    """
    evaluates = (True, False)

    def __init__(self, observer: dict | None = None, name: str = 'nearest_weights') -> None:
        super().__init__(name)
        self.observer = build(OBSERVERS, observer or DEFAULT_OBSERVER, 'InitWeightRange.observer')

    @torch.no_grad()
    def run(self, context: CalibrationContext) -> None:
        """Set every weight quantizer's range.

        Raises:
            ValueError: If a weight holds NaN or infinite values; names the layer.
        """
        for name, layer in context.model.quantized_layers().items():
            quantizer = layer.weight_quantizer
            try:
                low, high = self.observer.range_of(layer._parameters['weight'], quantizer.grid, quantizer.granularity)
            except ValueError as error:
                raise ValueError(f'weight of {name}: {error}') from error
            quantizer.clear_codes()
            quantizer.set_range(low, high)


@STEPS.register_module()
class InitActivationRange(Step):
    """Activation ranges by an observer, from activations that already went through the quantized layers upstream.

    Args:
        observer (dict): Default: the p = 2.4 search (BRECQ).
        num_images (int): Images to observe, at least 1. Default 64, in one pass.
    """
    evaluates = (True, True)

    def __init__(self, observer: dict | None = None, num_images: int = 64, name: str = 'activation_ranges') -> None:
        super().__init__(name)
        if num_images < 1:
            raise ValueError(f'num_images must be at least 1, got {num_images}')
        self.observer = build(OBSERVERS, observer or DEFAULT_OBSERVER, 'InitActivationRange.observer')
        self.num_images = num_images

    @torch.no_grad()
    def run(self, context: CalibrationContext) -> None:
        """Set every activation quantizer's range.

        Raises:
            ValueError: If a quantizer met NaN, or no image reached it; names its place.
        """
        model = context.model
        quantizers = model.activation_quantizers()
        undo = [self._observe(name, q) for name, q in quantizers.items()]
        try:
            with model.quantization(weights=True, activations=True):
                model.run(torch.cat(context.images(self.num_images)))
        finally:
            for q in undo:
                del q.__dict__['forward']
        check_initialized(model)

    def _observe(self, name: str, quantizer: Quantizer) -> Quantizer:
        observer = copy.deepcopy(self.observer)
        observer.reset()
        original = type(quantizer).forward

        def forward(x):
            try:
                observer.observe(x)
                quantizer.set_range(*observer.range(quantizer.grid))
            except ValueError as error:
                raise ValueError(f'activation at {name}: {error}') from error
            return original(quantizer, x)

        quantizer.initialized = False
        quantizer.__dict__['forward'] = forward
        return quantizer


def check_initialized(model: QuantizedModel) -> None:
    """Raise ValueError for activation quantizers that no calibration image reached."""
    idle = [name for name, q in model.activation_quantizers().items() if not q.initialized]
    if idle:
        raise ValueError(f'no calibration image reached {len(idle)} activation quantizers (first: {idle[0]}); give '
                         'more calibration images, or keep these layers float: quantizer.overrides=[dict(pattern='
                         f'{idle[0].rsplit(".", 1)[0]!r}, w_bits=None, a_bits=None)]')
