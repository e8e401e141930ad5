"""Steps around the affine layer of RepAPQ (arXiv 2402.16121), see :mod:`mmquant.models.output_affine`."""
import torch
from mmengine.logging import print_log

from mmquant.algorithms.step import CalibrationContext, Step
from mmquant.models.edits import AddOutputAffine
from mmquant.models.folding import is_linear_in_weight
from mmquant.models.layers import channel_axis
from mmquant.models.output_affine import fold_output_affine, output_affine_of
from mmquant.models.reparameterize import MERGED_LAYERS
from mmquant.registry import STEPS
from mmquant.utils.building import ConfigError


@STEPS.register_module()
class InsertOutputAffine(Step):
    """Give layers a trainable factor and bias for each output channel; runs behind ``InsertQuantizers``.

    Args:
        layers (str): ``'merged'`` (default): convolutions that branches were merged into; ``'all'``: every quantized
            layer whose output is linear in its weight.
        init (str): ``'identity'`` (default): all factors 1. ``'dense_bn'``: ``|gamma / sigma|`` of the branch with the
            largest kernel, so that the weight to quantize is about its raw kernel; with one scale a tensor this evens
            out the channels, with one a channel it changes no integer.

    Raises:
        ConfigError: For unknown choices.
        ValueError: If there is no such layer, or ``'dense_bn'`` lacks the statistics.
    """
    structural = True

    def __init__(self, layers: str = 'merged', init: str = 'identity', name: str | None = None) -> None:
        super().__init__(name)
        for key, value, valid in (('layers', layers, ('merged', 'all')), ('init', init, ('identity', 'dense_bn'))):
            if value not in valid:
                raise ConfigError(f'{key} must be one of {valid}, got {value!r}')
        self.layers, self.init = layers, init

    def run(self, context: CalibrationContext) -> None:
        model = context.model
        shapes = {c.name: model.flow.shapes[c.inputs[0]] for c in model.flow.calls if c.inputs}
        with model.quantization(weights=False, activations=False):
            found = {n: x for n, x in model.quantized_layers().items()  # axis 0: a factor of it is one of the output
                     if channel_axis(x) == 0 and n in shapes and is_linear_in_weight(x, shapes[n])
                     and (self.layers == 'all' or n.rpartition('.')[2] in MERGED_LAYERS)}
        if not found:
            raise ValueError(f'no layer takes an output affine (layers={self.layers!r}): put the step behind '
                             "InsertQuantizers, and behind Reparameterize for layers='merged'; layers='all' needs none")
        model.edit(tuple(map(AddOutputAffine, found)), context.sample, context.sample_info)
        if self.init == 'dense_bn':
            known = [x for x in found.values() if getattr(x, 'dense_scale', None) is not None]
            if not known:
                raise ValueError("init='dense_bn' needs the BatchNorm behind the dense branch, but no branch was "
                                 "merged here (a model built in deployed form has none left); use init='identity'")
            for layer in known:
                affine = output_affine_of(layer)
                affine.start(layer.dense_scale.to(affine.scale))
        context.records.append(dict(kind='output_affine', layers=len(found)))


@STEPS.register_module()
class FoldOutputAffine(Step):
    """Fold the factors into the scales of the weights, integers unchanged; the trained bias stays.

    With one scale a tensor a factor cannot be folded: it stays, as the multiplier of each channel that integer kernels
    requantize with.
    """
    evaluates = (True, True)

    def __init__(self, name: str = 'folded') -> None:
        super().__init__(name)

    @torch.no_grad()
    def run(self, context: CalibrationContext) -> None:
        layers = {n: x for n, x in context.model.quantized_layers().items() if output_affine_of(x) is not None}
        for name, layer in layers.items():
            affine = output_affine_of(layer)
            scale = affine.scale / affine.initial_scale
            folded = fold_output_affine(layer)
            context.records.append(dict(kind='affine', layer=name, folded=folded, least=scale.min().item(),
                                        mean=scale.mean().item(), largest=scale.max().item(),
                                        above_one=(scale > 1).float().mean().item()))
        kept = sum(not r['folded'] for r in context.records if r['kind'] == 'affine')
        if kept:
            print_log(f'{kept} layers keep a multiplier for each channel: their weights have one scale a tensor',
                      'current')
