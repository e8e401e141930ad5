"""Codes of the weights layer by layer by a solver, without back-propagation: GPTQ (arXiv 2210.17323) and its relatives.

    for each layer, in execution order:   moments of its input on the calibration images -> codes -> the next layer

Two guards stand after every solver, since rows are independent of each other and images differ: an output channel
whose error on the calibration rows is larger than with nearest rounding rounds to nearest, and so does a layer that is
worse on images kept out.
"""
import time

import torch
from torch import nn

from mmquant.algorithms.step import CalibrationContext, Step
from mmquant.calibration.context import MODES, Visit
from mmquant.calibration.moments import Moments, collect
from mmquant.models.layer_matrix import LayerMatrix, no_rows
from mmquant.models.layers import enabled
from mmquant.registry import SOLVERS, STEPS
from mmquant.solvers import Solver, better_rows
from mmquant.structures.unit import GRANULARITIES
from mmquant.utils.building import ConfigError, build


@STEPS.register_module()
class SolveWeights(Step):
    """Solve layer after layer; stands after the step that sets the ranges of the weights, which stay.

    Args:
        solver (dict): Of the registry SOLVERS. Default: GPTQ.
        inputs (str): What a layer is solved on, a stream of the context: ``'quantized'`` (default), the output of the
            layers before with their final weights and, once these have ranges, quantized activations; ``'weights'``,
            with float activations; ``'float'``, that of the float net.
        unit (str): Kind of the parts that inputs are cached for, see ``Reconstruction``: memory and time alone.
            Default ``'layer'``.
        max_rows (int | None): Rows of a layer's input at most, about, drawn at random from all images and places: saves
            time where there are many more of them than columns. Default 65536; None: all.

    Raises:
        ConfigError: For unknown choices.
        ValueError: If weights have no ranges, or a layer has no rows; names the layer.
    """
    evaluates = (True, False)

    def __init__(self, solver: dict | None = None, inputs: str = 'quantized', unit: str = 'layer',
                 max_rows: int | None = 65536, name: str | None = 'weights') -> None:
        super().__init__(name)
        for key, value, valid in (('inputs', inputs, tuple(MODES)), ('unit', unit, GRANULARITIES)):
            if value not in valid:
                raise ConfigError(f'SolveWeights.{key} must be one of {valid}, got {value!r}')
        self.solver: Solver = build(SOLVERS, solver or {'type': 'mmquant.GPTQ'}, 'SolveWeights.solver')
        if max_rows is not None and max_rows < 1:
            raise ConfigError(f'SolveWeights.max_rows must be None or at least 1, got {max_rows!r}')
        self.inputs, self.unit, self.max_rows = inputs, unit, max_rows

    @torch.no_grad()
    def run(self, context: CalibrationContext) -> None:
        model, layers = context.model, context.model.quantized_layers()
        for name, layer in layers.items():
            if not layer.weight_quantizer.initialized:
                raise ValueError(f'the weight of {name} has no range yet: put InitWeightRange before SolveWeights')
        lost = layers.keys() - {name for unit in model.units(self.unit) for name in unit.layers}
        if lost:
            raise ValueError(no_rows(min(lost)))
        weights, activations = MODES[self.inputs]
        streams: dict[str, object] = dict(inputs=(weights, activations and model.ready[1]))
        if self.solver.cross:
            streams['float'] = 'float'
        for visit in context.visits(self.unit, lambda unit: bool(layers.keys() & set(unit.layers)), streams, self.name):
            for name in (n for n in visit.unit.layers if n in layers):
                self._solve(visit, name, layers[name])

    def _solve(self, visit: Visit, name: str, layer: nn.Module) -> None:
        started, quantizer = time.monotonic(), layer.weight_quantizer
        matrix = LayerMatrix(layer, self.solver.max_columns)
        solved_on, held_out = collect(visit, name, matrix, tuple(visit.streams), self.max_rows)
        quantizer.clear_codes()
        weight = matrix.matrix(layer.quantized_tensor)
        columns = quantizer.columns(matrix.shape, matrix.matrix)
        nearest = columns.encode(weight)
        codes = better_rows(weight, solved_on, columns, self.solver.solve(weight, solved_on, columns), nearest)
        errors = []
        for found in (nearest, codes):
            quantizer.set_codes(matrix.tensor(found))
            errors.append([relative_error(moments, layer) for moments in (solved_on, held_out)])
        (loss_nearest, held_nearest), (loss, held_tuned) = errors
        kept = 'tuned' if held_tuned < held_nearest else 'nearest'
        if kept == 'nearest':
            quantizer.set_codes(matrix.tensor(nearest))
        visit.record(layer=name, loss_nearest=loss_nearest, loss=loss, held_nearest=held_nearest, held_tuned=held_tuned,
                     kept=kept, flipped=(codes != nearest).float().mean().item(), rows=solved_on.count,
                     columns=matrix.columns, groups=matrix.groups, blocks=matrix.blocks,
                     seconds=time.monotonic() - started)
        visit.tick(1, f'error {held_nearest:.4g} -> {held_tuned:.4g}')


def relative_error(moments: Moments, layer: nn.Module) -> float:
    """Squared error of a layer's output with its quantized weight, as a share of its squared output."""
    with enabled([layer.weight_quantizer], True):
        pair = layer._parameters['weight'], layer.quantized_weight
    weight, values = map(moments.matrix.matrix, pair)
    return (moments.error(weight, values).sum() / moments.energy(weight).sum().clamp_min(1e-30)).item()
