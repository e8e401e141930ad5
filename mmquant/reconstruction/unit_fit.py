"""Reconstruct one unit: bring it near its float output, and leave it decided."""
import contextlib
from collections.abc import Callable, Mapping
from functools import cached_property

import torch
from torch import nn

from mmquant.calibration.cache import load
from mmquant.calibration.context import Visit
from mmquant.calibration.unit_inputs import UnitRun, pick, run_in_chunks, tensors_in
from mmquant.models.layers import fixed_weights
from mmquant.reconstruction.fit import Pushes, fit
from mmquant.reconstruction.problem import Comparison, Problem, RaggedProblem, split_rows
from mmquant.reconstruction.settings import Settings
from mmquant.reconstruction.terms import UnitData
from mmquant.reconstruction.variables import State, UnitVariables
from mmquant.structures.unit import Unit
from mmquant.utils.contexts import seeded


class UnitFit:
    """What hooks and regularizers see of a fit: where it takes place, what is fitted, what trains and how."""

    def __init__(self, visit: Visit, problem: Problem | RaggedProblem, variables: UnitVariables,
                 settings: Settings) -> None:
        self.visit, self.problem, self.variables, self.settings = visit, problem, variables, settings
        self.num_iters = settings.num_iters

    @cached_property
    def initial(self) -> State:
        """The decided state before the fit: nearest rounding, or what weights were decided on."""
        state = self.variables.nearest()
        for name in self.variables.roundings:
            self.variables.layers[name].weight_quantizer.clear_codes()
        return state

    @cached_property
    def initial_loss(self) -> float:
        """Loss of :attr:`initial` on held-out rows."""
        return self.loss_of(self.initial)

    def loss_of(self, state: State) -> float:
        """Loss of a decided state on held-out rows."""
        with self.variables.at(state):
            return self.problem.held_loss(self.settings.pass_rows)

    def run(self, report: Callable) -> float:
        """Train; returns the loss. Whatever happens, nothing soft and nothing random is left behind."""
        settings, hooks = self.settings, self.settings.hooks.values()
        regularizers = {name: r.for_unit(self) for name, r in settings.regularizers.items()}
        pushes = Pushes({n: r for n, r in regularizers.items() if r is not None}, self, self.num_iters)

        def after_step(step):
            self.variables.constrain()
            changed = [groups for hook in hooks if (groups := hook.after_step(self, step)) is not None]
            return changed[-1] if changed else None

        try:
            groups = self.variables.start(settings.trainings)
            with self.variables.soft(), contextlib.ExitStack() as stack:
                if settings.mixer is not None:
                    stack.enter_context(seeded(self.visit.seed, self.problem.device))
                return fit(self.problem, groups, self.num_iters, settings.batch_size, self.visit.seed, pushes,
                           after_step, report) if groups else float('nan')
        finally:
            self.variables.stop()


def reconstruct(visit: Visit, settings: Settings) -> dict:
    """Reconstruct the unit of a visit, whose streams include those of the settings.

    Returns ``curve`` ([step, loss] now and then), ``loss`` (of the last steps), what hooks tell, and of learnt
    roundings the shares ``flipped`` (from nearest) and ``undecided`` (until hardening). FloatingPointError, with the
    unit, if inputs, targets or the loss are not finite; ValueError for layers that run without gradients.
    """
    model, unit = visit.context.model, visit.unit
    for term in settings.terms.values():
        term.look_ahead(visit, settings.pass_rows)
    problem = _problem(visit, settings)
    layers = {n: x for n, x in model.quantized_layers().items() if n in unit.layers}
    roundings = {name: settings.new_rounding() for name in layers} if settings.rounding is not None else {}
    for name, rounding in roundings.items():
        layers[name].weight_quantizer.clear_codes()
        rounding.start(layers[name].quantized_tensor, layers[name].weight_quantizer)
    variables = UnitVariables(layers, roundings, settings.activations(model, unit).values())
    # where nothing in the layers trains, weights are quantized once instead of in each step
    still = not roundings and not any(role in settings.trainings for slots in variables.slots.values()
                                      for slot in slots for role in slot.trainables())
    curve = []

    def report(step, loss):
        curve.append([step, loss])
        visit.tick(step, f'loss {loss:.4g}')

    check_gradients(unit, problem, layers)
    with model.quantization(*settings.mode), fixed_weights(layers.values() if still else ()):
        unit_fit = UnitFit(visit, problem, variables, settings)
        initial = unit_fit.initial
        for hook in settings.hooks.values():
            hook.before_fit(unit_fit)
        try:
            record = dict(curve=curve, loss=unit_fit.run(report))
        except FloatingPointError as error:
            raise FloatingPointError(f'unit {unit.name or "net"}: {error}') from error
        tuned = variables.tuned()
        variables.restore(tuned)
        for hook in settings.hooks.values():
            record.update(hook.after_fit(unit_fit))
    if roundings:
        count = max(1, variables.num_weights)
        record['flipped'] = sum((code != initial[0][n]).sum().item() for n, code in tuned[0].items()) / count
        record['undecided'] = sum(r.undecided() * layers[n].quantized_tensor.numel()
                                  for n, r in roundings.items()) / count
    return record


def check_gradients(unit: Unit, problem: Problem | RaggedProblem, layers: Mapping[str, nn.Module]) -> None:
    """Raise ValueError, which names them, if layers of a unit run under ``torch.no_grad``: they would not train."""
    off: list[str] = []
    handles = [layer.register_forward_pre_hook(lambda *_, n=name: None if torch.is_grad_enabled() else off.append(n))
               for name, layer in layers.items()]
    try:
        with torch.enable_grad():
            for part in problem.parts:
                part.forward(pick(next(iter(part.streams.values())), part.train_rows[:1]))
    finally:
        for handle in handles:
            handle.remove()
    if off:
        raise ValueError(f'unit {unit.name or "net"} runs {", ".join(dict.fromkeys(off))} without gradients '
                         '(torch.no_grad or inference_mode in a forward), so that nothing there can be fitted: take it '
                         "out of the model's code, or leave these layers at nearest rounding (another recipe) or float "
                         '(quantizer.overrides)')


def _problem(visit: Visit, settings: Settings) -> Problem | RaggedProblem:
    """What to fit: one problem for each size of images and call of the unit."""
    context, unit = visit.context, visit.unit
    data, runs, targets = _data(visit, settings)
    activations = tuple(settings.activations(context.model, unit).values())
    layers = context.model.quantized_layers()
    quantizers = [*(layers[n].weight_quantizer for n in unit.layers if n in layers), *activations]
    facts = UnitData(targets, settings.stream, quantizers, settings.pass_rows)
    found = [(term, term.comparisons(visit, facts)) for term in settings.terms.values()]
    groups: dict[tuple, list[Problem]] = {}
    for (size, call), target in targets.items():
        comparisons = [c[size, call] for _, c in found if (size, call) in c]
        if not comparisons:  # the end that a tail leads to is the unit's own output
            comparisons = [Comparison(found[0][0].loss, target, unit.channel_dim, inputs=found[0][0].inputs)]
        items = runs[size, call].data.items
        train, held = split_rows(len(runs[size, call].data), items.rows(settings.held_out), context.seed)
        groups.setdefault(size, []).append(Problem(
            runs[size, call], {name: x[size, call].data for name, x in data.items()}, tuple(comparisons), train, held,
            context.device, context.amp, not settings.mode[1], settings.mixer, activations, items))
    problems = list(groups.values())
    return problems[0][0] if len(targets) == 1 else RaggedProblem(problems)


@torch.no_grad()
def _data(visit: Visit, settings: Settings):
    """Inputs of the unit of each stream that the fit reads, and, by size of the images and number of the call, the unit
    as a function of its inputs, and its float outputs."""
    model, unit = visit.context.model, visit.unit
    gathered = {'float': visit.gather('float')}
    with visit.mode('float'):
        targets = {key: run_in_chunks(UnitRun(model, unit, key[1], x), x.data, x.items.rows(settings.pass_rows),
                                      visit.context.cache, x.items.outputs) for key, x in gathered['float'].items()}
    read = dict.fromkeys([settings.stream, *(settings.mixer.streams if settings.mixer else ()),
                          *(t.inputs for t in settings.terms.values() if t.inputs)])
    if 'float' not in read:
        gathered.clear()  # before the next stream takes its room
    data = {name: gathered.get(name) or visit.gather(name) for name in read}
    first = data[settings.stream]
    for what, found in (('input', [x.data for x in first.values()]), ('float output', list(targets.values()))):
        if not all(torch.isfinite(load(x)).all() for x in tensors_in(tuple(found)) if x.dtype.is_floating_point):
            raise FloatingPointError(f'{what} of unit {unit.name or "net"} holds NaN or infinite values; check the '
                                     'calibration images, the float checkpoint and the input normalisation')
    return data, {key: UnitRun(model, unit, key[1], x) for key, x in first.items()}, targets
