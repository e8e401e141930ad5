"""Steps that make what integer kernels run: quantizers between operations, and biases on the grid of the sums.

    sums of integers    acc = sum (q_x - z_x) q_w + q_b         q_b = round(b / (s_x s_w)), 32 bits
"""
import logging

import torch
from mmengine.logging import print_log

from mmquant.algorithms.ranges import passes
from mmquant.algorithms.step import CalibrationContext, Step
from mmquant.calibration.observed_ranges import observed_ranges
from mmquant.models.deploy_places import CodeFlow, deploy_places
from mmquant.models.deploy_profiles import find_profile
from mmquant.models.integer_weights import NotInteger, leaves_int8
from mmquant.models.rounded_biases import round_bias
from mmquant.models.symmetric_weights import make_symmetric
from mmquant.registry import OBSERVERS, STEPS
from mmquant.utils.building import build
from mmquant.utils.distributed import share

WHOLE_RANGE = {'type': 'mmquant.MinMaxObserver'}


@STEPS.register_module()
class InsertDeployQuantizers(Step):
    """Quantize, at 8 bits, what a runtime needs as codes beside the places of ``InsertQuantizers``.

    Right behind that step, ranges come with all others and reconstruction sees the new quantizers; in a model whose
    quantizers have ranges, the new ones get theirs at once.

    Args:
        profile (str): Name of a :class:`DeployProfile`. Default ``'ort_cpu'``.
        observer (dict): Of the ranges in the second case. Default: whole ranges.
        num_images (int): Images to observe then. Default 64.
    """
    structural = True

    def __init__(self, profile: str = 'ort_cpu', observer: dict | None = None, num_images: int = 64,
                 name: str | None = None) -> None:
        super().__init__(name)
        self.profile = find_profile(profile)
        self.observer = build(OBSERVERS, observer or WHOLE_RANGE, 'InsertDeployQuantizers.observer')
        self.num_images = num_images

    def run(self, context: CalibrationContext) -> None:
        """ConfigError if no layer is quantized; ValueError if an image holds NaN."""
        model = context.model
        flow = model.observe(context.sample, context.sample_info)
        known, ready = set(model.activation_quantizers()), all(model.ready)
        places = deploy_places(model.architecture, flow, model.plan, self.profile.between)
        if places:
            model.add_places(places, context.sample, context.sample_info)
            model.requires_grad_(False)
            model.observe(context.sample, context.sample_info)
        context.records.append(dict(kind='deploy_quantizers', places=len(places)))
        if ready and places:
            self._set_ranges(context, {n: q for n, q in model.activation_quantizers().items() if n not in known})

    @torch.no_grad()
    def _set_ranges(self, context: CalibrationContext, quantizers: dict) -> None:
        model, running = context.model, [0]
        with observed_ranges(quantizers, self.observer, lambda: running[0]), model.frozen(True, True):
            for images, samples in passes(context.batches(share(self.num_images)), share(self.num_images)):
                running[0] = len(images)
                model.run(images, samples)


@STEPS.register_module()
class MakeWeightsSymmetric(Step):
    """Move weights whose zero points leave int8 (8-bit affine ones) to symmetric grids of the same width.

    The values change by at most half a step of the new grid, which is up to twice as coarse: recipes that are to be
    deployed give 8-bit weights ``symmetric=True`` from the start. Without such weights nothing happens.
    """
    evaluates = (True, True)

    def __init__(self, name: str = 'symmetric_weights') -> None:
        super().__init__(name)

    def run(self, context: CalibrationContext) -> None:
        """Change them; a record of each layer."""
        context.model.decide()
        names = [n for n, x in context.model.quantized_layers().items() if leaves_int8(x)]
        for name, change in make_symmetric(context.model, names).items():
            context.records.append(dict(kind='symmetric', layer=name, change=change))
        if names:
            print_log(f'the 8-bit weights of {len(names)} layers had zero points, which integer kernels do not take; '
                      f'they are symmetric now: {", ".join(names[:5])}', 'current', logging.WARNING)


@STEPS.register_module()
class RoundBiases(Step):
    """Put the bias of each quantized layer on the grid of its integer sums; the last step, since it needs all scales.

    A channel whose weights are so small that its bias would not fit 32 bits gets a larger scale. A layer called on
    several grids (a head shared by pyramid levels, with ``per_call``) keeps its bias; the file rounds it once a call.

    Args:
        profile (str): Name of a :class:`DeployProfile`. Default ``'ort_cpu'``.
    """
    evaluates = (True, True)

    def __init__(self, profile: str = 'ort_cpu', name: str = 'rounded_biases') -> None:
        super().__init__(name)
        self.profile = find_profile(profile)

    @torch.no_grad()
    def run(self, context: CalibrationContext) -> None:
        """ValueError, with the layer, for weights without ranges."""
        model = context.model
        model.decide()
        codes, left = CodeFlow(model.architecture, model.flow, model.plan), []
        for name, layer in model.quantized_layers().items():
            scales = {float(q.scale) if q is not None and q.num_scales == 1 and hasattr(q, 'scale') else None
                      for q in codes.input_quantizers(name)}
            if len(scales) != 1 or None in scales:
                left.append(name)
                continue
            try:
                change = round_bias(layer, scales.pop(), self.profile.largest_code)
            except NotInteger as error:
                print_log(f'the bias of {name} stays as it is: {error}', 'current', logging.WARNING)
                continue
            context.records.append(dict(kind='bias', layer=name, shift=change, kept='rounded'))
        if left:
            print_log(f'{len(left)} layers keep their float biases, as they read floats or several grids: '
                      f'{", ".join(left[:5])}', 'current')
