"""Bias correction: quantization shifts the mean of each output channel of a layer, the layer's bias shifts it back.

    b_q = b + E[y] - E[y_q]     over images and places; y of the float net, y_q behind the layers corrected before

The empirical form of DFQ's correction (arXiv 1906.04721, section 4.2). The squared error of a layer's output only falls
on the calibration images, by the squared shift, so no guard is needed there.
"""
from __future__ import annotations

import torch
from torch import nn

from mmquant.algorithms.step import CalibrationContext, Step
from mmquant.models.units import unit_module
from mmquant.reconstruction.replay import Stream
from mmquant.registry import STEPS
from mmquant.structures.unit import Unit
from mmquant.utils.building import ConfigError
from mmquant.utils.distributed import sum_over_ranks


@STEPS.register_module()
class CorrectBias(Step):
    """Give each output channel its float mean back, layer by layer, activations float; the float net keeps its biases.

    Runs behind ``InsertOutputAffine(layers='all')``, whose biases hold only while weights are quantized, and behind
    the step that fixed the weights. Layers without an output affine (transposed convolutions) stay as they are.

    Raises:
        ConfigError: If no layer has an output affine.
    """
    distributed = True
    evaluates = (True, False)

    def __init__(self, name: str = 'biases') -> None:
        super().__init__(name)

    @torch.no_grad()
    def run(self, context: CalibrationContext) -> None:
        """Correct every layer in execution order; reports the largest shift of each."""
        model = context.model
        layers = {n: x for n, x in model.quantized_layers().items() if x.output_affine is not None}
        if not layers:
            raise ConfigError("CorrectBias found no bias to change: put InsertOutputAffine with layers='all' before it")
        todo = [(i, u) for i, u in enumerate(model.units('layer')) if u.layers[0] in layers and i >= context.first_unit]
        exact, quantized = context.stream(), context.stream()
        with context.progress(f'{self.name} ({len(todo)} layers)', len(todo)) as bar:
            for done, (index, unit) in enumerate(todo):
                name, pending = unit.layers[0], frozenset(u.layers[0] for _, u in todo[done:])
                with model.quantization(weights=False, activations=False):
                    target = self._means(context, unit, exact, pending)
                with model.quantization(weights=True, activations=False):
                    shift = target - self._means(context, unit, quantized, pending)
                bias = layers[name].output_affine.bias
                bias.add_(shift.to(bias))
                context.records.append(dict(kind='bias', layer=name, shift=shift.abs().max().item()))
                context.unit_done(index)
                bar.update(done + 1, f'{name} shifted by up to {shift.abs().max().item():.3g}')

    def _means(self, context: CalibrationContext, unit: Unit, stream: Stream, pending: frozenset[str]
               ) -> torch.Tensor:
        """Mean of each output channel of the unit's layer over all calls and images, float64 (channels,)."""
        model = context.model
        module, layer = unit_module(model.architecture, unit), model.architecture.get_submodule(unit.layers[0])
        totals, counts = [], []

        def add(owner, args, output) -> None:
            rows = output.movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).flatten(1).double()
            totals.append(rows.sum(1))
            counts.append(rows.shape[1])

        for _, call, (args, kwargs) in stream.walk(unit, pending):
            for quantizer, position in model.per_call_within(unit, call):
                quantizer.position = position
            handle = layer.register_forward_hook(add)  # not while the stream runs the model
            try:
                module(*args, **kwargs)
            finally:
                handle.remove()
        *total, count = sum_over_ranks(*torch.stack(totals).sum(0).tolist(), sum(counts))
        return torch.tensor(total, dtype=torch.float64, device=totals[0].device) / max(count, 1)
