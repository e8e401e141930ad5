"""Unit-wise reconstruction: BRECQ (arXiv 2102.05426), and by its settings AdaRound and others of the family.

    weight stage:      min over roundings    E |unit(x_q; w_hat) - unit(x; w)|^p + lambda * sum(1 - |2 h - 1|^beta)
    activation stage:  min over step sizes   E |unit_q(x) - unit(x)|^p
    joint:             min over both         E |unit_q(x_q) - unit(x)|^p, and with a tail
                                             + lambda_s * E |tail(unit_q(x_q)) - tail(unit(x))|^p

Joint training, the roles with learning rates of their own, and the tail (the float net up to the end of the stage or of
the net) serve QDrop, RepAPQ and their relatives. x_q is the output of the prefix with its final quantized weights, x
the float one. Differences from the paper's code: a few calibration samples are held out and a unit keeps nearest
rounding (or its initial step sizes) if that is better there; zero is always representable; remainders of batches are
used; model and caches never leave eval mode.
"""
from __future__ import annotations

import contextlib
from collections.abc import Mapping

import torch

from mmquant.algorithms.step import CalibrationContext, Step
from mmquant.calibration.cache import load
from mmquant.calibration.stream import Stream
from mmquant.calibration.unit_inputs import join, run_in_chunks, tensors_in
from mmquant.calibration.unit_run import UnitRun
from mmquant.losses.objectives import build_objective
from mmquant.models.layers import fixed_weights
from mmquant.models.units import unit_module
from mmquant.quantizers import Quantizer
from mmquant.reconstruction.fisher import fisher_diagonal, of_divergence, of_loss
from mmquant.reconstruction.rest_of_net import TailLoss, Tails
from mmquant.reconstruction.several_sizes import RaggedProblem
from mmquant.reconstruction.training import ParamGroup, Problem, RoundingSchedule, fit, split_rows
from mmquant.reconstruction.variables import ROLES, UnitVariables
from mmquant.registry import LOSSES, MIXERS, ROUNDINGS, STEPS
from mmquant.structures.unit import GRANULARITIES, Unit
from mmquant.utils.building import ConfigError, build, check_keys, check_types
from mmquant.utils.random import seeded


def _rates(lr: float | dict) -> dict[str, float]:
    """Adam's rate of each role; one number holds for all."""
    rates = dict(lr) if isinstance(lr, Mapping) else {role: lr for role in ROLES}
    check_keys(rates, ROLES, 'Reconstruction.lr')
    for role, rate in rates.items():
        if rate < 0:
            raise ConfigError(f'lr of {role} must be at least 0, got {rate!r}')
    if not any(rates.values()):
        raise ConfigError(f'lr must be positive, got {lr!r}' if rates else 'lr names no role')
    return rates


@STEPS.register_module()
class Reconstruction(Step):
    """Reconstruct unit after unit.

    Args:
        target (str): ``'weight'`` (learn roundings), ``'activation'`` (learn step sizes) or ``'joint'`` (both at once,
            with quantized activations).
        unit (str): ``'layer'``, ``'block'`` (default), ``'stage'`` or ``'net'``.
        num_iters (int): Steps a unit. Default 20000 (weights in the paper); at least 1.
        batch_size (int): Rows a step. Default 32.
        lr (float | dict): Adam's rate. Default 1e-3; the paper's code uses 4e-4 for activations, with cosine decay. A
            dict gives each role its own: ``rounding``, ``weight``, ``weight_scale``, ``affine``, ``bias``,
            ``activation_scale``; what is not named stays as it is. All but ``rounding`` fall along a cosine.
        loss (dict): Default ``LpLoss(p=2)``; ``FisherDiagLoss`` weighs by squared gradients.
        rounding (dict | None): For weights. Default ``AdaRound``; ``StraightThrough`` trains weights and scales.
        regularizer (dict | None): ``weight``, ``relative``, ``beta_start``, ``beta_end``, ``warmup``; see
            :class:`RoundingSchedule`.
        inputs (str | None): ``'quant'`` or ``'float'`` prefix. Default ``'quant'`` for weights, ``'float'`` for
            activations, as in the paper's code.
        mix (dict | None): Mixes inputs of the quantized and the float prefix while fitting, such as ``ElementMix``.
        tail (dict | None): Adds the loss at the end of the stage or the net; see :class:`TailLoss`. Not for
            ``'activation'``.
        held_out (int): Calibration rows kept out of fitting to choose by; at most one in eight. Default 64.
        keep_best (bool): Fall back to nearest rounding (initial step sizes) where it is better on held-out rows.
        max_activation_bits (int | None): Quantizers of activations with more bits keep their step sizes: a step of 8
            bits is 16 times smaller than one of 4, and a rate that suits this one overshoots that one. Default None:
            no limit.
        skip_first (bool): Leave a unit of first layers only, at 8 or more bits, at nearest rounding. Default True.
        chunk (int): Rows a forward pass outside fitting. Default 64.

    Raises:
        ConfigError: For unknown choices and values out of range.
    """

    def __init__(self, target: str = 'weight', unit: str = 'block', num_iters: int = 20000, batch_size: int = 32,
                 lr: float | dict = 1e-3, loss: dict | None = None, rounding: dict | None = None,
                 regularizer: dict | None = None, inputs: str | None = None, mix: dict | None = None,
                 tail: dict | None = None, held_out: int = 64, keep_best: bool = True,
                 max_activation_bits: int | None = None, skip_first: bool = True, chunk: int = 64,
                 name: str | None = None) -> None:
        super().__init__(name or {'weight': 'weights', 'activation': 'activations', 'joint': 'joint'}.get(target))
        for key, value, valid in (('target', target, ('weight', 'activation', 'joint')), ('unit', unit, GRANULARITIES),
                                  ('inputs', inputs, (None, 'quant', 'float'))):
            if value not in valid:
                raise ConfigError(f'{key} must be one of {valid}, got {value!r}')
        for key, value in (('num_iters', num_iters), ('batch_size', batch_size), ('chunk', chunk)):
            if not value > 0:
                raise ConfigError(f'{key} must be positive, got {value!r}')
        self.target, self.unit, self.num_iters, self.batch_size = target, unit, num_iters, batch_size
        self.rates = _rates(lr)
        self.loss = build(LOSSES, loss or {'type': 'mmquant.LpLoss'}, 'Reconstruction.loss')
        self.rounding = rounding or {'type': 'mmquant.AdaRound'}
        build(ROUNDINGS, self.rounding, 'Reconstruction.rounding')
        check_keys(regularizer or {}, RoundingSchedule.__dataclass_fields__, 'Reconstruction.regularizer')
        check_types(regularizer or {}, RoundingSchedule, 'Reconstruction.regularizer')
        self.schedule = RoundingSchedule(**(regularizer or {}))
        self.inputs = inputs or ('float' if target == 'activation' else 'quant')
        self.mix = build(MIXERS, mix, 'Reconstruction.mix') if mix else None
        check_keys(tail or {}, TailLoss.__dataclass_fields__, 'Reconstruction.tail')
        self.tail = TailLoss(**tail) if tail else None
        if (self.mix or self.tail) and (target == 'activation' or self.inputs == 'float'):
            raise ConfigError("mix and tail need target='weight' or 'joint' and inputs='quant', got "
                              f'target={target!r}, inputs={self.inputs!r}')
        if max_activation_bits is not None and max_activation_bits < 2:
            raise ConfigError(f'max_activation_bits must be None or at least 2, got {max_activation_bits!r}')
        self.max_activation_bits = max_activation_bits
        self.held_out, self.keep_best, self.skip_first, self.chunk = held_out, keep_best, skip_first, chunk
        self.evaluates = (True, target != 'weight')

    def image_passes(self, units: int) -> int:
        """Of all units together, each step a batch."""
        return self.num_iters * self.batch_size

    # ---- the walk over units --------------------------------------------------------------------------------------
    def run(self, context: CalibrationContext) -> None:
        """Reconstruct every unit in execution order; reports one record a unit."""
        model = context.model
        todo = [(i, u) for i, u in enumerate(model.units(self.unit)) if self._has_work(context, u)]
        todo = [(i, u) for i, u in todo if i >= context.first_unit]
        if not todo:
            return
        float_stream = context.stream('float')
        quant_stream = context.stream(self._mode()) if self.inputs == 'quant' else None
        slopes = self._output_gradients(context) if self.loss.needs_fisher else None
        tails = Tails(model, float_stream, self.tail, self.chunk) if self.tail else None
        with context.progress(f'{self.name} ({len(todo)} units)', len(todo) * self.num_iters) as bar:
            for done, (index, unit) in enumerate(todo):
                pending = frozenset(n for _, u in todo[done:] for n in u.layers)
                terms = tails.terms(unit, pending) if tails else {}
                problem = self._problem(context, unit, float_stream, quant_stream, slopes, pending, terms)
                curve = []
                report = self._reporter(bar, unit, done, curve)
                tune = self._tune_activations if self.target == 'activation' else self._tune_weights
                record = tune(context, unit, problem, context.seed_for(index), report)
                context.records.append(dict(kind='unit', step=self.name, unit=unit.name, curve=curve, **record))
                context.unit_done(index)

    def _reporter(self, bar, unit: Unit, done: int, curve: list):

        def report(step, loss):
            curve.append([step, loss])
            bar.update(done * self.num_iters + step, f'{unit.name or "net"} loss {loss:.4g}')

        return report

    def _has_work(self, context: CalibrationContext, unit: Unit) -> bool:
        if self.target == 'activation':
            return bool(self._tunable(context, unit))
        layers = context.model.quantized_layers()
        own = [layers[n] for n in unit.layers if n in layers]
        first = {c.name for c in context.model.flow.calls
                 if c.inputs and context.model.flow.root(c.inputs[0]) in context.model.flow.network_inputs}
        stem = self.skip_first and set(unit.layers) <= first and all(x.weight_quantizer.bit_width >= 8 for x in own)
        return bool(own) and not stem or self.target == 'joint' and bool(self._tunable(context, unit))

    def _unit_activations(self, context: CalibrationContext, unit: Unit) -> dict[str, Quantizer]:
        model = context.model.architecture
        inside = set(unit_module(model, unit).modules())
        if unit.activation:
            inside |= set(model.get_submodule(unit.activation).modules())
        return {n: q for n, q in context.model.activation_quantizers().items() if q in inside}

    def _tunable(self, context: CalibrationContext, unit: Unit) -> list[Quantizer]:
        """Quantizers of activations of the unit whose step sizes are learned."""
        return [q for q in self._unit_activations(context, unit).values()
                if not self.max_activation_bits or q.bit_width <= self.max_activation_bits]

    def _mode(self) -> tuple[bool, bool]:
        return True, self.target != 'weight'

    def _problem(self, context: CalibrationContext, unit: Unit, float_stream: Stream, quant_stream: Stream | None,
                 slopes, pending: frozenset[str], tails: dict) -> Problem | RaggedProblem:
        """What to fit: one problem for each size of images and call of the unit."""
        data, exact, targets = self._data(context, unit, float_stream, quant_stream, pending)
        weights = self._importance(context, unit, quant_stream or float_stream, slopes)
        groups: dict[tuple, list[Problem]] = {}
        for (size, call), x in data.items():
            train, held = split_rows(len(x), self.held_out, context.seed)
            groups.setdefault(size, []).append(Problem(
                UnitRun(context.model, unit, call, x), x.data, targets[size, call], weights.get((size, call)),
                self.loss, unit.channel_dim, train, held, context.device, context.amp, self.mix,
                exact[size, call].data if self.mix else None, tails.get((size, call)),
                half_inputs=self.target == 'weight'))
        problems = list(groups.values())
        return problems[0][0] if len(data) == 1 else RaggedProblem(problems)

    @torch.no_grad()
    def _data(self, context: CalibrationContext, unit: Unit, float_stream: Stream, quant_stream: Stream | None,
              pending: frozenset[str]):
        """Inputs and float outputs of the unit, by size of the images and number of the call."""
        model, cache = context.model, context.cache
        with model.quantization(weights=False, activations=False):
            data = exact = float_stream.gather(unit, pending)
            targets = {key: run_in_chunks(UnitRun(model, unit, key[1], x), x.data, self.chunk, cache)
                       for key, x in data.items()}
        if quant_stream is not None:
            del data
            exact = exact if self.mix else None
            data = quant_stream.gather(unit, pending)
        for what, found in (('input', [x.data for x in data.values()]), ('float output', list(targets.values()))):
            if not all(torch.isfinite(load(x)).all() for x in tensors_in(tuple(found)) if x.dtype.is_floating_point):
                raise FloatingPointError(f'{what} of unit {unit.name or "net"} holds NaN or infinite values; check the '
                                         'calibration images, the float checkpoint and the input normalisation')
        return data, exact, targets

    @torch.no_grad()
    def _output_gradients(self, context: CalibrationContext):
        """Of the loss whose squared gradients weigh the errors, at the outputs of the net."""
        if self.loss.objective is not None:
            return of_loss(build_objective(context, self.loss.objective, 'Reconstruction.loss.objective'))
        with context.model.quantization(weights=False, activations=False):
            return of_divergence([context.run(index) for index in range(len(context.chunks))])

    def _importance(self, context: CalibrationContext, unit: Unit, stream: Stream, slopes) -> dict:
        if slopes is None:
            return {}
        layers = context.model.quantized_layers()
        quantizers = [layers[n].weight_quantizer for n in unit.layers if n in layers]
        if self.target != 'weight':
            quantizers += list(self._unit_activations(context, unit).values())
        with context.model.quantization(weights=False, activations=False):
            weights = fisher_diagonal(stream, unit, quantizers, slopes)
        found: dict[tuple, list] = {}
        for chunk, calls in zip(context.chunks, weights):
            for call, weight in enumerate(calls):
                found.setdefault((tuple(chunk.shape[1:]), call), []).append(weight)
        return {key: join(parts, context.cache) for key, parts in found.items()}

    # ---- the two stages -------------------------------------------------------------------------------------------
    def _tune_weights(self, context: CalibrationContext, unit: Unit, problem: Problem, seed: int, report) -> dict:
        layers = context.model.quantized_layers()
        layers = {n: layers[n] for n in unit.layers if n in layers}
        roundings = {}
        for name, layer in layers.items():
            layer.weight_quantizer.clear_codes()
            roundings[name] = build(ROUNDINGS, self.rounding, 'Reconstruction.rounding')
            roundings[name].start(layer.quantized_tensor, layer.weight_quantizer)
        joint = self._tunable(context, unit) if self.target == 'joint' else ()
        variables = UnitVariables(layers, roundings, joint)
        with context.model.quantization(*self._mode()):
            nearest = variables.nearest()
            variables.restore(nearest)
            held = dict(nearest=problem.held_loss(self.chunk))
            for layer in layers.values():
                layer.weight_quantizer.clear_codes()
            count = max(1, sum(codes.numel() for codes in nearest[0].values()))
            schedule = self.schedule.for_unit(held['nearest'], count)
            loss = self._fit(context, problem, variables, schedule, seed, report)
            tuned = variables.tuned()
            variables.restore(tuned)
            held['tuned'] = problem.held_loss(self.chunk)
        kept = 'nearest' if self.keep_best and held['nearest'] < held['tuned'] else 'tuned'
        variables.restore(nearest if kept == 'nearest' else tuned)
        nearest, tuned = nearest[0], tuned[0]
        flipped = sum((tuned[n] != nearest[n]).sum().item() for n in tuned) / count
        undecided = sum(r.undecided() * tuned[n].numel() for n, r in roundings.items()) / count
        return dict(loss=loss, held_nearest=held['nearest'], held_tuned=held['tuned'], kept=kept, flipped=flipped,
                    undecided=undecided)

    def _fit(self, context: CalibrationContext, problem: Problem, variables: UnitVariables, schedule: RoundingSchedule,
             seed: int, report) -> float:
        """Train; returns the loss. Whatever happens, nothing soft and nothing random is left behind."""
        try:
            groups = variables.start(self.rates)
            for name, rounding in variables.roundings.items():
                variables.layers[name].weight_quantizer.rounding = rounding
            with seeded(seed, context.device) if self.mix else contextlib.nullcontext():
                return fit(problem, groups, self.num_iters, self.batch_size, seed, schedule,
                           list(variables.roundings.values()), lambda step: variables.constrain(),
                           report) if groups else float('nan')
        finally:
            for layer in variables.layers.values():
                layer.weight_quantizer.rounding = None
            variables.stop()

    def _tune_activations(self, context: CalibrationContext, unit: Unit, problem: Problem, seed: int, report) -> dict:
        layers = context.model.quantized_layers()
        quantizers = self._tunable(context, unit)
        scales = [x for q in quantizers for xs in q.trainables().values() for x in xs]
        initial = [s.clone() for s in scales]
        every = max(1, self.num_iters // 4)
        own = [layers[n] for n in unit.layers if n in layers]
        with context.model.quantization(weights=True, activations=True), fixed_weights(own):
            best, best_loss = initial, problem.held_loss(self.chunk)
            first_loss = best_loss

            def after_step(step):
                nonlocal best, best_loss
                for quantizer in quantizers:
                    quantizer.constrain()
                if (step + 1) % every == 0 or step + 1 == self.num_iters:
                    held = problem.held_loss(self.chunk)
                    if held < best_loss or not self.keep_best:
                        best, best_loss = [s.detach().clone() for s in scales], held

            for scale in scales:
                scale.requires_grad_(True)
            try:
                group = ParamGroup(scales, self.rates['activation_scale'], cosine=True)
                loss = fit(problem, [group], self.num_iters, self.batch_size, seed, after_step=after_step,
                           report=report)
            finally:
                for scale, value in zip(scales, best):
                    scale.requires_grad_(False)
                    scale.copy_(value)
        return dict(loss=loss, held_nearest=first_loss, held_tuned=best_loss, kept='tuned' if best is not initial
                    else 'nearest')
