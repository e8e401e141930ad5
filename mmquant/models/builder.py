"""From a float model to a quantized one: observe, edit, plan, insert; methods of QuantizedModel, all in place."""
import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import torch
from mmengine.logging import print_log
from torch import nn
from torch.utils._pytree import tree_map_only

from mmquant.models.attention import splittable
from mmquant.models.dataflow import DataFlow
from mmquant.models.detection import DECODE, decoders, no_tensors
from mmquant.models.edits import CallsLayers, Edit, Folded, PlainMemory, ReadElsewhere, SplitAttention, planned_module
from mmquant.models.folding import candidates
from mmquant.models.layers import (
    PerCall,
    channel_axis,
    has_own_weight,
    quantize_layer,
    quantize_output,
    use_channels_last,
    use_plain_memory,
)
from mmquant.models.matmul import quantize_matmuls
from mmquant.models.packed_weight import PackedWeight
from mmquant.models.placement import place_quantizers
from mmquant.models.plan import Place, Plan
from mmquant.models.proof import Proof
from mmquant.models.quantizer_index import QuantizerIndex, quantizer_at
from mmquant.models.recorder import record
from mmquant.models.reference import Reference, change_of
from mmquant.models.usage import check_used, remedy
from mmquant.quantizers import Quantizer
from mmquant.registry import QUANTIZERS
from mmquant.utils.building import ConfigError, build, closest

LARGEST_REFERENCE = 2**28
"""Bytes of outputs of the original model that are kept, unless two images have more."""


def observe(model, inputs, data_samples: list | None = None) -> DataFlow:
    """Record the data flow of one small batch in float mode, as ``model.flow``; arguments as of ``run``.

    Raises a ValueError if the model returns no tensor that it computed from the inputs, or a layer to quantize has a
    ``forward`` set on the instance.
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
    patched = [n for n in flow.calls_of if n in flow.layers and 'forward' in vars(model.architecture.get_submodule(n))
               and model.policy.weight(n, False, False)]
    if patched:
        raise ValueError(remedy('weight', patched))
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


def remember(model, batches: list[tuple]) -> None:
    """Keep what the float model returns for (inputs, data samples) as ``model.reference``, before its first change.

    The layout of its weights in memory is taken back meanwhile, and for good where it changes the outputs.
    """
    if model.reference is not None or model.plan is not None:
        return
    use_plain_memory(model.architecture)
    model.reference = Reference(model, batches)
    if sum(x.nbytes for outputs in model.reference.outputs for x in outputs) > LARGEST_REFERENCE:
        images, samples = batches[0]
        model.reference = Reference(model, [(images[:2], samples and samples[:2])])
    if model.plain_memory:
        return
    use_channels_last(model.architecture)
    if change_of(model.reference.outputs[0], model.reference.run(model), 1e-4)[0] > 1e-4:
        (plain := PlainMemory()).apply(model.architecture)
        model.plan = Plan(edits=(plain, ))


def fold_batch_norm(model, inputs, data_samples: list | None = None) -> list[tuple[str, str]]:
    """Fold each BatchNorm that alone reads a layer's output; returns pairs (layer, BatchNorm), logs what is left."""
    found = candidates(model.architecture, model.observe(inputs, data_samples))
    pairs = [(layer, bn) for layer, bn, why in found if not why]
    if left := [f'{bn} ({why})' for _, bn, why in found if why]:
        print_log(f'{len(left)} BatchNorms behind layers stay as they are: {"; ".join(left[:5])}', 'current',
                  logging.WARNING)
    model.edit(tuple(Folded(*pair) for pair in pairs), inputs, data_samples)
    return pairs


def make_plan(model, inputs, data_samples: list | None = None) -> Plan:
    """Decide where quantizers sit, without inserting them.

    Attention gets layers for its projections; modules that read a layer's weight are made to call the layer.
    """
    flow = model.observe(inputs, data_samples)
    attention = splittable(model.architecture)
    skipped = tuple(n for n in attention if n not in flow.calls_of or n in flow.foreign)
    if len(skipped) < len(attention):
        model.edit((SplitAttention(skipped), ), inputs, data_samples)
        flow = model.observe(inputs, data_samples)
    uncalled = any(has_own_weight(m) and n not in flow.calls_of for n, m in model.architecture.named_modules())
    if uncalled and flow.functional:
        model.edit(tuple(CallsLayers(o, tuple(n)) for o, n in flow.functional.items()), inputs, data_samples)
        flow = model.observe(inputs, data_samples)
    read = [n for n in flow.foreign if n in flow.layers and n in flow.calls_of and model.policy.weight(n, False, False)
            and not model.architecture.get_submodule(n).__dict__.get('read_elsewhere')]
    if read:
        print_log(f'the weights of {", ".join(read)} are read elsewhere, too ('
                  f'{flow.foreign[read[0]][0] or "by the model itself"}): they are quantized there as well, the '
                  'activations that they meet there stay float', 'current', logging.WARNING)
        model.edit(tuple(map(ReadElsewhere, read)), inputs, data_samples)
    plan = place_quantizers(model.architecture, flow, model.policy)
    return replace(plan, edits=model.plan.edits if model.plan else ())


def insert_quantizers(model, plan: Plan, inputs=None, data_samples: list | None = None) -> None:
    """Make the edits still to be made, and put a quantizer at each place; PlanError if a module is not there.

    With ``inputs`` each must be used by that batch, and float outputs must stay: see :func:`check_used`.
    """
    proof = None if inputs is None else Proof(model, inputs, data_samples)
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
    if proof is not None:
        check_used(model, proof)


def add_places(model, places: tuple[Place, ...], inputs, data_samples: list | None = None) -> None:
    """Put more quantizers into a quantized model: of inputs and outputs that have none; state of the others stays.

    Float outputs must stay, and each new one must be used by the batch ``inputs``: see :func:`check_used`.
    """
    proof = Proof(model, inputs, data_samples)
    for place in places:
        quantizer = quantizer_of(place)
        if place.what == 'output':
            quantize_output(planned_module(model.architecture, place.name, str(place)), quantizer)
        for name in place.readers if place.what == 'input' else ():
            layer = planned_module(model.architecture, name, str(place))
            layer.input_quantizer = quantizer
    model.plan = replace(model.plan, places=(*model.plan.places, *places))
    model.index = QuantizerIndex(model.architecture, model.plan)
    model.train(False)
    model.to(next(model.architecture.parameters()).device)
    check_used(model, proof)


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
            quantizer = quantizer_of(place)
            for name in place.readers:
                inputs[name].append(quantizer)
        elif place.what == 'output':
            quantize_output(module, quantizer_of(place))
        else:
            operands[place.name][str(place.call)][place.role] = quantizer_of(place)
    for name in dict.fromkeys((*weights, *inputs)):
        layer = planned_module(model, name, f'place of the input of {name}')
        sources = inputs.get(name, [None])
        quantize_layer(layer, quantizer_of(weights[name], layer) if name in weights else None,
                       PerCall(sources) if len(sources) > 1 else sources[0])
    for name, sites in operands.items():
        quantize_matmuls(model.get_submodule(name), sites)


def quantizer_of(place: Place, layer: nn.Module | None = None) -> Quantizer:
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
