"""Bias correction: quantization shifts the mean of each output channel of a layer, the layer's bias shifts it back.

    b_q = b + E[y] - E[y_q]     over images and places; y of the float net, y_q after the layers corrected before

The empirical form of DFQ's correction (arXiv 1906.04721, section 4.2). The squared error of one layer's output only
falls, by the squared shift. The layers of a block may have been tuned to each other, though, so a block whose output is
farther from the float one with corrected layers keeps the biases it had.
"""
import torch

from mmquant.algorithms.step import CalibrationContext, Step
from mmquant.calibration.cache import load
from mmquant.calibration.context import Visit
from mmquant.calibration.unit_inputs import tensors_in
from mmquant.models.layers import output_axis, own_bias
from mmquant.registry import STEPS
from mmquant.utils.building import ConfigError
from mmquant.utils.distributed import sum_over_ranks, sum_tensor_over_ranks


@STEPS.register_module()
class CorrectBias(Step):
    """Give each output channel its float mean back, block by block; activations and the float net stay as they are.

    Runs after the step that fixed the weights. The biases hold only while weights are quantized, and layers without
    one get one; only deformable convolutions that take none stay as they are.

    Raises:
        ConfigError: If no layer has quantized weights.
    """
    evaluates = (True, False)
    unit = 'block'

    def __init__(self, name: str = 'biases') -> None:
        super().__init__(name)

    @torch.no_grad()
    def run(self, context: CalibrationContext) -> None:
        layers = {n: x for n, x in context.model.quantized_layers().items() if 'bias' in x._parameters}
        if not layers:
            raise ConfigError('CorrectBias found no layer with quantized weights: put InsertQuantizers before it, with '
                              'bits in quantizer.weight')
        for visit in context.visits(self.unit, lambda unit: bool(layers.keys() & set(unit.layers)),
                                    ('float', 'weights'), self.name):
            biases = {n: own_bias(layers[n]) for n in visit.unit.layers if n in layers}
            initial = {name: bias.clone() for name, bias in biases.items()}
            before, after = self._correct(visit, biases)
            kept = 'corrected' if after < before else 'initial'
            for name, bias in biases.items():
                visit.record('bias', layer=name, shift=(bias - initial[name]).abs().max().item(), kept=kept)
                if kept == 'initial':
                    bias.copy_(initial[name])
            visit.tick(1, f'error {before:.4g} -> {after:.4g}')

    def _correct(self, visit: Visit, biases: dict[str, torch.Tensor]) -> tuple[float, float]:
        """Shift the biases one after another; squared error of the unit's output before and after."""
        outputs = visit.outputs('float', activation=False)
        targets = [visit.context.cache.put(x) for _, _, y in outputs for x in tensors_in(y)]
        means = {name: channel_means(visit, 'float', name) for name in biases}
        before = self._error(visit, targets)
        for name, bias in biases.items():
            bias.add_((means[name] - channel_means(visit, 'weights', name)).to(bias))
        return before, self._error(visit, targets)

    def _error(self, visit: Visit, targets: list) -> float:
        outputs = (x for _, _, y in visit.outputs('weights', activation=False) for x in tensors_in(y))
        return sum_over_ranks(sum((x - load(t)).double().square().sum().item() for x, t in zip(outputs, targets)))[0]


def channel_means(visit: Visit, stream: str, name: str) -> torch.Tensor:
    """Mean of each output channel of a layer within the unit over all images, calls and places; float64 (channels,)."""
    layer = visit.context.model.architecture.get_submodule(name)
    totals, counts = [], []

    def add(owner, args, output) -> None:
        rows = output.movedim(output_axis(layer), 0).flatten(1).double()
        totals.append(rows.sum(1))
        counts.append(rows.shape[1])

    for _, call, arguments in visit.calls(stream):
        handle = layer.register_forward_hook(add)  # here: hooks also see the answers that a stream gives for a layer
        try:
            with visit.mode(stream):
                visit.run(arguments, call, activation=False)
        finally:
            handle.remove()
    count = sum_over_ranks(sum(counts))[0]
    return sum_tensor_over_ranks(torch.stack(totals).sum(0)) / max(count, 1)
