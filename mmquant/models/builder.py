"""From a float model to a quantized one: observe, edit, plan, insert; methods of QuantizedModel, all in place."""
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from mmquant.models.attention import splittable
from mmquant.models.dataflow import DataFlow
from mmquant.models.detection import DECODE, decoders, no_tensors
from mmquant.models.edits import CallsLayers, Edit, Folded, SplitAttention, planned_module
from mmquant.models.folding import foldable_pairs
from mmquant.models.layers import PerCall, channel_axis, has_own_weight, quantize_layer, quantize_output
from mmquant.models.matmul import quantize_matmuls
from mmquant.models.packed_weight import PackedWeight
from mmquant.models.placement import place_quantizers
from mmquant.models.plan import Place, Plan
from mmquant.models.proof import Proof
from mmquant.models.quantizer_index import QuantizerIndex, quantizer_at
from mmquant.models.recorder import record
from mmquant.quantizers import Quantizer
from mmquant.registry import QUANTIZERS
from mmquant.utils.building import ConfigError, build, closest


def observe(model, inputs, data_samples: list | None = None) -> DataFlow:
    """Record the data flow of one small batch in float mode, as ``model.flow``; arguments as of ``run``.

    Raises a ValueError if the model returns no tensor that it computed from the inputs.
    """
    returned = []
    with model.quantization(weights=False, activations=False):
        copied = tree_map_only(torch.Tensor, torch.clone, inputs)
        if model.flow is None:  # it may fail and lay out its memory anew, which is no part of its data flow
            model.run(inputs, data_samples)
        flow = record(model.architecture, lambda x: returned.append(model.raw(x, data_samples)), copied,
                      [(head, DECODE) for head in decoders(model.architecture).values()])
    if not flow.calls[0].outputs:
        raise ValueError(no_tensors(model.architecture, returned[0]))
    model.flow = flow
    return flow


def edit(model, edits: tuple[Edit, ...], inputs, data_samples: list | None = None, tolerance: float = 1e-4) -> None:
    """Change the structure in order, prove on one small batch that the float outputs stay, note it in the plan.

    ``inputs``, ``data_samples`` and ``tolerance`` as of :class:`Proof`. Raises a PlanError if a module that an edit
    needs is not there, a RuntimeError if the outputs change by more; the model is left changed.
    """
    if not edits:
        return
    proof = Proof(model, inputs, data_samples, tolerance)
    for change in edits:
        change.apply(model.architecture)
    proof.check(edits)
    before = model.plan or Plan()
    model.plan = replace(before, edits=(*before.edits, *edits))


def fold_batch_norm(model, inputs, data_samples: list | None = None) -> list[tuple[str, str]]:
    """Fold each BatchNorm that alone reads a layer's output; returns the pairs (layer, BatchNorm)."""
    pairs = foldable_pairs(model.architecture, model.observe(inputs, data_samples))
    model.edit(tuple(Folded(*pair) for pair in pairs), inputs, data_samples)
    return pairs


def make_plan(model, inputs, data_samples: list | None = None) -> Plan:
    """Decide where quantizers sit, without inserting them.

    Attention gets layers for its projections; modules that read a layer's weight are made to call the layer.
    """
    if splittable(model.architecture):
        model.edit((SplitAttention(), ), inputs, data_samples)
    flow = model.observe(inputs, data_samples)
    uncalled = any(has_own_weight(m) and n not in flow.calls_of for n, m in model.architecture.named_modules())
    if uncalled and flow.functional:
        model.edit(tuple(CallsLayers(o, tuple(n)) for o, n in flow.functional.items()), inputs, data_samples)
        flow = model.observe(inputs, data_samples)
    plan = place_quantizers(model.architecture, flow, model.policy)
    return replace(plan, edits=model.plan.edits if model.plan else ())


def insert_quantizers(model, plan: Plan) -> None:
    """Make the edits still to be made, and put a quantizer at each place; PlanError if a module is not there."""
    todo = [change for change in plan.edits if model.plan is None or change not in model.plan.edits]
    for change in (x for x in todo if not x.after_places):
        change.apply(model.architecture)
    _install(model.architecture, plan.places)
    for change in (x for x in todo if x.after_places):
        change.apply(model.architecture)
    model.plan = plan
    model.index = QuantizerIndex(model.architecture, plan)
    model.train(False)
    model.to(next(model.architecture.parameters()).device)


def _install(model: nn.Module, places: tuple[Place, ...]) -> None:
    """Build the quantizers and hand them to the modules; layers become quantized ones."""
    weights: dict[str, Place] = {}
    inputs: dict[str, list[Quantizer]] = defaultdict(list)  # layer -> quantizers of its input, by call
    operands: dict[str, dict[str, nn.ModuleDict]] = defaultdict(lambda: defaultdict(nn.ModuleDict))
    for place in places:
        module = planned_module(model, place.name, f'place of the {place.what} of {place.name}')
        if place.what == 'weight':
            weights[place.name] = place
        elif place.what == 'input':
            quantizer = _quantizer(place)
            for name in place.readers:
                inputs[name].append(quantizer)
        elif place.what == 'output':
            quantize_output(module, _quantizer(place))
        else:
            operands[place.name][str(place.call)][place.role] = _quantizer(place)
    for name in dict.fromkeys((*weights, *inputs)):
        layer = planned_module(model, name, f'place of the input of {name}')
        sources = inputs.get(name, [None])
        quantize_layer(layer, _quantizer(weights[name], layer) if name in weights else None,
                       PerCall(sources) if len(sources) > 1 else sources[0])
    for name, sites in operands.items():
        quantize_matmuls(model.get_submodule(name), sites)


def _quantizer(place: Place, layer: nn.Module | None = None) -> Quantizer:
    """The quantizer of an activation, or of a layer's weights, with room for its scales."""
    quantizer = build(QUANTIZERS, place.quantizer, f'{place.what} of {place.name}')
    if layer is not None:
        quantizer.allocate(layer.weight.shape, channel_axis(layer))
    elif place.shape is not None:
        quantizer.allocate(place.shape, 1)
    return quantizer


def set_bits(model, bits: Mapping[str, tuple[int | None, int | None]]) -> None:
    """Change the widths of inserted quantizers; the plan, and with it costs and tables, follow.

    Codes are dropped, and ranges must be set again where a width changed. ``bits``: layer -> (bits of its weights, bits
    of its input); None leaves a width as it is. An input that several layers read takes the widest wish; layers that
    are not named wish what it has. The name of a module with matrix products stands for its operands.

    Raises, with nothing changed, a ConfigError for an unknown layer, a float tensor, or bits that the grid does not
    take, and NoFloatWeight for weights of a packed checkpoint.
    """
    plan = model.plan or Plan()
    wanted: dict[int, dict[str, int]] = defaultdict(dict)  # number of the place -> wishes by layer
    names = {*plan.layers, *(p.name for p in plan.places if p.what == 'operand')}
    for name, (w_bits, a_bits) in bits.items():
        if name not in names:
            raise ConfigError(f'set_bits: no layer {name!r} is planned; {closest(name, names)}')
        for what, value in (('weight', w_bits), ('activation', a_bits)):
            found = [i for i, p in enumerate(plan.places) if (p.what == 'weight') == (what == 'weight')
                     and (name in p.readers or p.what == 'operand' and p.name == name)]
            if value is not None and not found:
                raise ConfigError(f'set_bits: the {what} of {name} is float, so that it takes no bits (got {value!r}); '
                                  'quantize it by the config, or give None')
            for i in found if value is not None else ():
                wanted[i][name] = value
    changed = {}
    for i, wishes in wanted.items():
        place = plan.places[i]
        for value in wishes.values():  # the grid says which it takes, before anything is changed
            build(QUANTIZERS, place.with_bits(value).quantizer, f'set_bits, {place.what} of {place.name}')
        silent = set() if wishes.keys() >= set(place.readers) else {place.bits}
        changed[i] = place.with_bits(max({*wishes.values(), *silent}))
    for place in changed.values():
        weight = model.architecture.get_submodule(place.name)._parameters.get('weight')
        if place.what == 'weight' and isinstance(weight, PackedWeight):
            raise weight.missing()
    for place in changed.values():
        quantizer_at(model.architecture, place).set_bits(place.bits)
    model.plan = replace(plan, places=tuple(changed.get(i, p) for i, p in enumerate(plan.places)))
