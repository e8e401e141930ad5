"""Bias correction: quantization shifts the mean of each output channel of a layer, the layer's bias shifts it back.

    b_q = b + E[y] - E[y_q]     over images and places; y of the float net, y_q behind the layers corrected before

The empirical form of DFQ's correction (arXiv 1906.04721, section 4.2). The squared error of one layer's output only
falls, by the squared shift. The layers of a block may have been tuned to each other, though, so a block whose output is
farther from the float one with corrected layers keeps the biases it had.
"""
from __future__ import annotations

import torch
from torch.utils._pytree import tree_map_only

from mmquant.algorithms.step import CalibrationContext, Step
from mmquant.calibration.cache import Kept, load
from mmquant.losses.divergence import float_tensors
from mmquant.models.layers import output_axis
from mmquant.models.units import unit_module
from mmquant.registry import STEPS
from mmquant.structures.unit import Unit
from mmquant.utils.building import ConfigError
from mmquant.utils.distributed import sum_over_ranks


@STEPS.register_module()
class CorrectBias(Step):
    """Give each output channel its float mean back, block by block; activations and the float net stay as they are.

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
        """Correct the layers of each block in execution order; reports their largest shifts."""
        model = context.model
        layers = {n: x for n, x in model.quantized_layers().items() if x.output_affine is not None}
        if not layers:
            raise ConfigError("CorrectBias found no bias to change: put InsertOutputAffine with layers='all' before it")
        todo = [(i, u) for i, u in enumerate(model.units('block')) if layers.keys() & set(u.layers)]
        todo = [(i, u) for i, u in todo if i >= context.first_unit]
        streams = context.stream(), context.stream()
        with context.progress(f'{self.name} ({len(todo)} units)', len(todo)) as bar:
            for done, (index, unit) in enumerate(todo):
                pending = frozenset(n for _, u in todo[done:] for n in u.layers)
                own = {n: layers[n] for n in unit.layers if n in layers}
                before, after, shifts = self._correct(context, unit, own, *streams, pending)
                kept = 'corrected' if after < before else 'initial'
                context.records += [dict(kind='bias', layer=n, shift=s, kept=kept) for n, s in shifts.items()]
                context.unit_done(index)
                bar.update(done + 1, f'{unit.name or "net"} error {before:.4g} -> {after:.4g}')

    def _correct(self, context: CalibrationContext, unit: Unit, layers: dict, exact, quantized, pending: frozenset[str]
                 ) -> tuple[float, float, dict[str, float]]:
        """Squared error of the unit's output before and after, and the largest shift of each layer."""
        model = context.model
        with model.quantization(weights=False, activations=False):
            run = UnitPass(context, unit, exact, pending)
            targets = [context.cache.put(x) for x in run()]
            means = {name: run.mean(name) for name in layers}
        biases = {name: layer.output_affine.bias for name, layer in layers.items()}
        initial = {name: bias.clone() for name, bias in biases.items()}
        with model.quantization(weights=True, activations=False):
            run = UnitPass(context, unit, quantized, pending)
            before = run.error(targets)
            for name, bias in biases.items():
                bias.add_((means[name] - run.mean(name)).to(bias))
            after = run.error(targets)
        shifts = {name: (bias - initial[name]).abs().max().item() for name, bias in biases.items()}
        if not after < before:
            for name, bias in biases.items():
                bias.copy_(initial[name])
        return before, after, shifts


class UnitPass:
    """All calls of a unit on all images, as often as needed, in the quantization mode that is active.

    Args:
        context (CalibrationContext): Of the run.
        unit (Unit): The unit.
        stream (Stream): Moves to the entry of the unit.
        pending (frozenset[str]): See :meth:`Stream.walk`.
    """

    def __init__(self, context: CalibrationContext, unit: Unit, stream, pending: frozenset[str]) -> None:
        self.model, self.unit = context.model, unit
        self.calls = [(call, tree_map_only(torch.Tensor, context.cache.put, arguments))
                      for _, call, arguments in stream.walk(unit, pending)]

    def __call__(self):
        """Yields the floating-point outputs of each call."""
        module = unit_module(self.model.architecture, self.unit)
        for call, arguments in self.calls:
            for quantizer, position in self.model.per_call_within(self.unit, call):
                quantizer.position = position
            # the unit may write into its arguments
            args, kwargs = tree_map_only((torch.Tensor, Kept), lambda x: load(x).clone(), arguments)
            yield from float_tensors(module(*args, **kwargs))

    def error(self, targets: list) -> float:
        """Summed squared error of the outputs."""
        return sum_over_ranks(sum((x - load(t)).double().square().sum().item() for x, t in zip(self(), targets)))[0]

    def mean(self, name: str) -> torch.Tensor:
        """Mean of each output channel of a layer within, float64 (channels,)."""
        layer = self.model.architecture.get_submodule(name)
        totals, counts = [], []

        def add(owner, args, output) -> None:
            rows = output.movedim(output_axis(layer), 0).flatten(1).double()
            totals.append(rows.sum(1))
            counts.append(rows.shape[1])

        handle = layer.register_forward_hook(add)
        try:
            for _ in self():
                pass
        finally:
            handle.remove()
        *total, count = sum_over_ranks(*torch.stack(totals).sum(0).tolist(), sum(counts))
        return torch.tensor(total, dtype=torch.float64, device=totals[0].device) / max(count, 1)
