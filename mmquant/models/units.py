"""Discovery of reconstruction units from the data flow: layer, block, stage, net."""
from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from mmquant.models.dataflow import Call, DataFlow, Op
from mmquant.models.layers import has_own_weight, output_axis
from mmquant.structures.unit import GRANULARITIES, Unit

ACTIVATION_TYPES = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Sigmoid, nn.Tanh,
                    nn.ELU, nn.Hardsigmoid)


def layer_calls(model: nn.Module, flow: DataFlow) -> list[Call]:
    """Calls of modules whose weights can be quantized, in execution order."""
    modules = dict(model.named_modules())
    return [c for c in flow.calls if has_own_weight(modules[c.name]) and c.inputs and c.outputs]


def layers_within(model: nn.Module, flow: DataFlow, call: Call) -> tuple[str, ...]:
    """Distinct layers called inside a call, in execution order."""
    return tuple(dict.fromkeys(c.name for c in layer_calls(model, flow) if call.enter <= c.enter < call.exit))


def _is_residual_add(flow: DataFlow, op: Op) -> bool:
    roots = {flow.root(v) for v in op.inputs}
    return op.name == 'add' and len(roots) == 2 and len({flow.shapes[v] for v in op.inputs}) == 1


def _is_unit_call(model: nn.Module, flow: DataFlow, call: Call, times: int = 1, single: bool = True) -> bool:
    return (call.parent >= 0 and len(flow.calls_of[call.name]) == times and flow.is_closed(call, single)
            and bool(layers_within(model, flow, call)))


def _smallest_block(model: nn.Module, flow: DataFlow, op: Op) -> Call | None:
    """The innermost closed call around an add both of whose operands come from the call's input."""
    for call in flow.ancestors(op.call):
        if _is_unit_call(model, flow, call) and all(flow.depends_on(v, call.inputs[0]) for v in op.inputs):
            return call
    return None


def find_blocks(model: nn.Module, flow: DataFlow, block_types: tuple[str, ...] = ()) -> list[Call]:
    """Calls that are blocks, in execution order.

    A block is the smallest subtree that holds a residual add, with one tensor in, one out, and inner tensors read by
    nobody outside; and every other module of the same class that fits (MobileNetV2's inverted residuals without a
    shortcut). A candidate around another block is no block.

    Args:
        model (nn.Module): The model the flow was recorded on.
        flow (DataFlow): Its record.
        block_types (tuple[str, ...]): Names of further module classes that are blocks; these may have several tensors
            in and out (a feature pyramid).
    """
    modules = dict(model.named_modules())
    found = {c.index: c for op in flow.ops if _is_residual_add(flow, op)
             if (c := _smallest_block(model, flow, op)) is not None}
    found = _without_outer(found)
    classes = {type(modules[c.name]) for c in found.values()} - {nn.Sequential, nn.ModuleList}
    declared = {c.index: c for c in flow.calls if c.index not in found
                and (type(modules[c.name]) in classes or type(modules[c.name]).__name__ in block_types)
                and _is_unit_call(model, flow, c, single=type(modules[c.name]).__name__ not in block_types)}
    inside = [c for c in declared.values() if any(b.enter < c.enter < b.exit for b in found.values())]
    found.update({i: c for i, c in declared.items() if c not in inside})
    return sorted(_without_outer(found).values(), key=lambda c: c.enter)


def _without_outer(found: dict[int, Call]) -> dict[int, Call]:
    return {i: c for i, c in found.items() if not any(c.enter < o.enter and o.exit < c.exit for o in found.values())}


def _together(flow: DataFlow, calls: list[Call]) -> list[Call]:
    """Calls of one layer that do not depend on one another: the first one, and what other pyramid levels call."""
    kept = calls[:1]
    for call in calls[1:]:
        if not any(flow.depends_on(v, out) for v in call.inputs for first in kept for out in first.outputs):
            kept.append(call)
    return kept


def _layer_unit(model: nn.Module, flow: DataFlow, calls: list[Call]) -> Unit:
    """A layer with what belongs to it alone: its ConvModule, or the activation that alone reads its output."""
    modules = dict(model.named_modules())
    layer, outer, times = calls[0].name, calls, len(calls)
    for level, around in enumerate(flow.ancestors(calls[0].parent)):
        if not _is_unit_call(model, flow, around, times) or len(layers_within(model, flow, around)) > 1:
            break
        if len(flow.shapes[around.outputs[0]]) != len(flow.shapes[calls[0].outputs[0]]):
            break
        if any(op.name in ('native_batch_norm', 'native_layer_norm', 'mul', 'mean') for op in flow.ops_within(around)):
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
    readers = flow.readers.get(call.outputs[0], [])
    for after in flow.calls:
        alone = readers and all(after.enter < op.tick < after.exit for op in readers)
        if (alone and after.enter > call.exit and after.inputs == call.outputs
                and isinstance(modules[after.name], ACTIVATION_TYPES)):
            return after.name
    return None


def _call_unit(model: nn.Module, flow: DataFlow, call: Call, kind: str) -> Unit:
    dim = {4: 1, 3: -1 if kind != 'net' else 1}.get(len(flow.shapes[call.outputs[0]]) if call.outputs else 4, 1)
    return Unit(call.name, kind, layers_within(model, flow, call), call.enter, call.exit, dim)


def _stage_calls(model: nn.Module, flow: DataFlow, blocks: list[Call]) -> list[Call]:
    """The closed call around consecutive blocks; a block without one, or only with one around all, stays alone."""
    stages = {}
    for block in blocks:
        around = flow.calls[block.parent]
        holds_all = all(around.enter < b.enter < around.exit for b in blocks)
        stage = around if _is_unit_call(model, flow, around) and not holds_all else block
        stages[stage.index] = stage
    return list(_without_outer(stages).values())


def find_units(model: nn.Module, flow: DataFlow, granularity: str = 'block',
               block_types: tuple[str, ...] = ()) -> list[Unit]:
    """Ordered units that together hold every reachable layer exactly once.

    Args:
        model (nn.Module): The model the flow was recorded on.
        flow (DataFlow): Its record.
        granularity (str): ``'layer'``, ``'block'``, ``'stage'`` or ``'net'``; what fits none becomes layer units.
        block_types (tuple[str, ...]): Names of further module classes that are blocks.

    Raises:
        ValueError: If the granularity is unknown.
    """
    if granularity not in GRANULARITIES:
        raise ValueError(f'unknown unit granularity {granularity!r}; choose one of {", ".join(GRANULARITIES)}')
    if granularity == 'net':
        return [_call_unit(model, flow, flow.calls[0], 'net')]
    calls = [] if granularity == 'layer' else find_blocks(model, flow, block_types)
    if granularity == 'stage':
        calls = _stage_calls(model, flow, calls)
    units = [_call_unit(model, flow, c, granularity) for c in calls]
    covered = {name for unit in units for name in unit.layers}
    called: dict[str, list[Call]] = {}
    for call in layer_calls(model, flow):
        if call.name not in covered:
            called.setdefault(call.name, []).append(call)
    units += [_layer_unit(model, flow, _together(flow, calls)) for calls in called.values()]
    return _each_layer_once(sorted(units, key=lambda u: u.enter))


def _each_layer_once(units: list[Unit]) -> list[Unit]:
    """A layer shared by several units belongs to the first; a unit left without layers is none."""
    seen, kept = set(), []
    for unit in units:
        own = tuple(n for n in unit.layers if n not in seen)
        seen |= set(own)
        if own:
            kept.append(replace(unit, layers=own))
    return kept


def unit_module(model: nn.Module, unit: Unit) -> nn.Module:
    """The module a unit names."""
    return model.get_submodule(unit.name)


def activation_of(model: nn.Module, unit: Unit):
    """The activation function behind a unit, identity where there is none."""
    return model.get_submodule(unit.activation) if unit.activation else _same


def _same(x: torch.Tensor) -> torch.Tensor:
    return x
