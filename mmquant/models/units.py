"""Discovery of reconstruction units from the data flow: layer, block, stage, net."""
from bisect import bisect_left
from collections import defaultdict
from dataclasses import replace

from torch import nn

from mmquant.models.dataflow import Call, DataFlow
from mmquant.models.layers import has_own_weight, output_axis
from mmquant.structures.unit import GRANULARITIES, Unit

ACTIVATION_TYPES = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Sigmoid, nn.Tanh,
                    nn.ELU, nn.Hardsigmoid)
FOREIGN = frozenset(('native_batch_norm', 'native_layer_norm', 'mul', 'mean'))  # no part of a layer's unit


def layer_calls(model: nn.Module, flow: DataFlow) -> list[Call]:
    """Calls of modules whose weights can be quantized, in execution order."""
    return flow.once('layer calls', lambda: [c for c in flow.calls if has_own_weight(model.get_submodule(c.name))
                                             and c.inputs and c.outputs])


def layers_within(model: nn.Module, flow: DataFlow, call: Call) -> tuple[str, ...]:
    """Distinct layers called inside a call, in execution order."""
    calls = layer_calls(model, flow)
    begins = flow.once('entries of layer calls', lambda: [c.enter for c in calls])
    inside = slice(bisect_left(begins, call.enter), bisect_left(begins, call.exit))
    return flow.once(('layers within', call.index), lambda: tuple(dict.fromkeys(c.name for c in calls[inside])))


def first_layers(model: nn.Module, flow: DataFlow) -> set[str]:
    """Layers that read an input of the network, through operations without weights at most."""
    return flow.once('first layers', lambda: {c.name for c in layer_calls(model, flow)
                                              if c.inputs[0] in flow.weightless})


def last_layers(flow: DataFlow) -> set[str]:
    """The nearest layers before what the network returns, or what the float post-processing of a detector takes."""
    return flow.once('last layers', lambda: flow.layers_before((*flow.calls[0].outputs, *flow.decoded)))


def _is_unit_call(model: nn.Module, flow: DataFlow, call: Call, times: int = 1, single: bool = True) -> bool:
    return (call.parent >= 0 and len(flow.calls_of[call.name]) == times and flow.is_closed(call, single)
            and bool(layers_within(model, flow, call)))


def find_blocks(model: nn.Module, flow: DataFlow, block_types: tuple[str, ...] = ()) -> list[Call]:
    """Calls that are blocks, in execution order.

    A block is the smallest subtree that holds a residual add, with one tensor in, one out, and inner tensors read by
    nobody outside; and every other module of its class that fits (inverted residuals without a shortcut) and holds no
    other block. ``block_types`` names further classes, which may have several tensors in and out (a feature pyramid).
    """
    return list(flow.once(('blocks', block_types), lambda: _find_blocks(model, flow, block_types)))


def _find_blocks(model: nn.Module, flow: DataFlow, block_types: tuple[str, ...]) -> list[Call]:
    modules = dict(model.named_modules())
    found = {}
    for op in flow.adds():  # the innermost closed call around an add both of whose operands come from its input
        for call in flow.ancestors(op.call):
            if _is_unit_call(model, flow, call) and flow.computed_inside(call).issuperset(op.inputs):
                found[call.index] = call
                break
    found = _without_outer(found)
    classes = {type(modules[c.name]) for c in found.values()} - {nn.Sequential, nn.ModuleList}
    declared = {c.index: c for c in flow.calls if c.index not in found
                and (type(modules[c.name]) in classes or type(modules[c.name]).__name__ in block_types)
                and _is_unit_call(model, flow, c, single=type(modules[c.name]).__name__ not in block_types)}
    # Blocks seen by their add come first: what merely has the class of one is none inside of another.
    begins = sorted(c.enter for c in found.values())
    exits = {c.enter: c.exit for c in found.values()}
    for index, call in declared.items():
        place = bisect_left(begins, call.enter)
        if not place or exits[begins[place - 1]] < call.enter:
            found[index] = call
    return sorted(_without_outer(found).values(), key=lambda c: c.enter)


def _without_outer(found: dict[int, Call]) -> dict[int, Call]:
    """Without calls around others: as calls nest, whatever lies inside of one is entered right after it."""
    ordered = sorted(found.values(), key=lambda c: c.enter)
    outer = {c.index for c, following in zip(ordered, ordered[1:]) if following.exit < c.exit}
    return {i: c for i, c in found.items() if i not in outer}


def _together(flow: DataFlow, calls: list[Call]) -> list[Call]:
    """Calls of one layer that do not depend on one another: the first one, and what other pyramid levels call."""
    kept = calls[:1]
    for call in calls[1:]:
        outputs = [out for first in kept for out in first.outputs]
        kept += [call] if not any(flow.depends_on(v, *outputs) for v in call.inputs) else []
    return kept


def _layer_unit(model: nn.Module, modules: dict, flow: DataFlow, calls: list[Call]) -> Unit:
    """A layer with what belongs to it alone: its ConvModule, or the activation that alone reads its output."""
    layer, outer, times = calls[0].name, calls, len(calls)
    for level, around in enumerate(flow.ancestors(calls[0].parent)):
        if not _is_unit_call(model, flow, around, times) or len(layers_within(model, flow, around)) > 1 \
                or len(flow.shapes[around.outputs[0]]) != len(flow.shapes[calls[0].outputs[0]]) \
                or not FOREIGN.isdisjoint(op.name for op in flow.ops_within(around)):
            break
        mates = [chain[level] for c in calls if len(chain := flow.ancestors(c.parent)) > level]
        if len({c.index for c in mates}) != times or any(
                c.name != around.name or not flow.is_closed(c) for c in mates):
            break
        outer = mates
    dim = output_axis(modules[layer])
    behind = {_following_activation(modules, flow, c) for c in outer}
    return Unit(outer[0].name, 'layer', (layer,), outer[0].enter, outer[0].exit, dim,
                behind.pop() if len(behind) == 1 else None, tuple((c.enter, c.exit) for c in outer[1:]))


def _following_activation(modules: dict, flow: DataFlow, call: Call) -> str | None:
    """The activation module that alone reads what a call returned."""
    value = call.outputs[0]
    readers = flow.readers.get(value)
    for after in flow.taken_by.get(value, ()) if readers else ():
        if (isinstance(modules[after.name], ACTIVATION_TYPES) and after.enter > call.exit
                and after.inputs == call.outputs and all(after.enter < op.tick < after.exit for op in readers)):
            return after.name
    return None


def _call_unit(model: nn.Module, flow: DataFlow, call: Call, kind: str) -> Unit:
    dim = {4: 1, 3: -1 if kind != 'net' else 1}.get(len(flow.shapes[call.outputs[0]]) if call.outputs else 4, 1)
    return Unit(call.name, kind, layers_within(model, flow, call), call.enter, call.exit, dim)


def find_units(model: nn.Module, flow: DataFlow, granularity: str = 'block',
               block_types: tuple[str, ...] = ()) -> list[Unit]:
    """Ordered units that together hold every reachable layer exactly once.

    ``granularity`` is ``'layer'``, ``'block'``, ``'stage'`` or ``'net'``, else a ValueError is raised; what fits none
    becomes layer units. ``block_types``: see :func:`find_blocks`.
    """
    if granularity not in GRANULARITIES:
        raise ValueError(f'unknown unit granularity {granularity!r}; choose one of {", ".join(GRANULARITIES)}')
    key = 'units', granularity, block_types
    return list(flow.once(key, lambda: _find_units(model, flow, granularity, block_types)))


def _find_units(model: nn.Module, flow: DataFlow, granularity: str, block_types: tuple[str, ...]) -> list[Unit]:
    if granularity == 'net':
        return [_call_unit(model, flow, flow.calls[0], 'net')]
    calls = [] if granularity == 'layer' else find_blocks(model, flow, block_types)
    if granularity == 'stage':
        stages = []  # the closed call around consecutive blocks; without one, or only with one around all, the block
        for block in calls:
            around = flow.calls[block.parent]
            holds_all = around.enter < calls[0].enter and calls[-1].enter < around.exit
            stages.append(around if _is_unit_call(model, flow, around) and not holds_all else block)
        calls = _without_outer({c.index: c for c in stages}).values()
    units = [_call_unit(model, flow, c, granularity) for c in calls]
    covered = {name for unit in units for name in unit.layers}
    called = defaultdict(list)
    for call in layer_calls(model, flow):
        if call.name not in covered:
            called[call.name].append(call)
    modules = dict(model.named_modules())
    units += [_layer_unit(model, modules, flow, _together(flow, calls)) for calls in called.values()]
    seen, kept = set(), []
    for unit in sorted(units, key=lambda u: u.enter):
        own = tuple(n for n in unit.layers if n not in seen)  # a layer of several units belongs to the first
        seen.update(own)
        kept += [replace(unit, layers=own)] if own else []
    return kept


def unit_module(model: nn.Module, unit: Unit) -> nn.Module:
    """The module a unit names."""
    return model.get_submodule(unit.name)


def activation_of(model: nn.Module, unit: Unit) -> nn.Module:
    """The activation function behind a unit, identity where there is none."""
    return model.get_submodule(unit.activation) if unit.activation else nn.Identity()
