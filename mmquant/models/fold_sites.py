"""Places where a factor of channels can be moved from what makes a tensor into the layers that read it.

    homogeneous   layer -> relu, leaky_relu, prelu, max pooling, movement -> layers     (equalization: CLE, DFQ)
    norm          LayerNorm -> linear layers                                            (AWQ, SmoothQuant, OS+)
    value         V of an attention, or a slice of QKV -> projection                    (AWQ)

A site is sound where the producer's channels are the readers' input channels, one to one, and nothing else reads them;
:func:`scale_channels` then changes no output.
"""
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mmquant.models.dataflow import MOVEMENT, Call, DataFlow, Op
from mmquant.models.layer_matrix import LayerMatrix
from mmquant.models.layers import has_own_weight, is_depthwise, num_outputs, output_axis, replace_parameter

# f(s x) = s f(x) for every s > 0 and for each channel by itself; then operations that leave elements in their places
CHANNELWISE = frozenset('relu leaky_relu prelu _prelu_kernel clone contiguous alias detach _to_copy lift_fresh '
                        'constant_pad_nd roll'.split())
WINDOWED = frozenset('max_pool2d max_pool2d_with_indices avg_pool2d adaptive_avg_pool2d _adaptive_avg_pool2d'.split())
FACTORED = frozenset('view _unsafe_view reshape _reshape_alias flatten squeeze unsqueeze'.split())


@dataclass(frozen=True)
class FoldSite:
    """Channels ``rows`` (begin, end) of what a layer or LayerNorm makes, and the layers that alone read them."""
    kind: str
    producer: str
    consumers: tuple[str, ...]
    rows: tuple[int, int]

    @property
    def channels(self) -> int:
        return self.rows[1] - self.rows[0]


def fold_sites(model: nn.Module, flow: DataFlow, kinds: Iterable[str] = ('homogeneous', 'norm'),
               run: Callable[[], object] | None = None) -> list[FoldSite]:
    """All sites of some kinds in a float model, BatchNorms folded; producers in execution order, each called once.

    ``run`` runs the model on some images and returns its outputs. ``'value'`` sites need it: heads may be cut from
    channels in any order, so each one is tried out.
    """
    modules, sites = dict(model.named_modules()), []
    for call in flow.calls:
        module = modules[call.name]
        if len(flow.calls_of[call.name]) > 1 or len(call.outputs) != 1 or call.name in flow.foreign:
            continue
        kind = 'norm' if isinstance(module, nn.LayerNorm) else 'homogeneous' if has_own_weight(module) else None
        scaled = kind == 'homogeneous' or kind and module.weight is not None and len(module.normalized_shape) == 1
        if kind in kinds and scaled:
            value, shape = call.outputs[0], flow.shapes[call.outputs[0]]
            axis = (-1 if kind == 'norm' else output_axis(module)) % len(shape)
            if consumers := _readers(modules, flow, value, axis):
                sites.append(FoldSite(kind, call.name, tuple(dict.fromkeys(consumers)), (0, shape[axis])))
        if kind == 'homogeneous' and 'value' in kinds:
            sites += [s for s in _value_sites(modules, flow, call) if changes_nothing(model, s, run)]
    return sites


def depthwise_chains(model: nn.Module, sites: Iterable[FoldSite]) -> list[tuple[str, str, str]]:
    """(layer, depthwise layer, layer) along homogeneous sites with one reader each: equalized together by CLE."""
    following = {s.producer: s.consumers[0] for s in sites if s.kind == 'homogeneous' and len(s.consumers) == 1}
    return [(first, middle, following[middle]) for first, middle in following.items()
            if middle in following and is_depthwise(model.get_submodule(middle))]


def _readers(modules: dict, flow: DataFlow, value: int, axis: int) -> list[str] | None:
    """Layers that alone read the channels on ``axis`` of a value, as their input channels; None if anything else."""
    if value in flow.calls[0].outputs or value in flow.decoded or value in flow.mutated:
        return None
    names, shape = [], flow.shapes[value]
    for op in flow.readers.get(value, ()):
        if layer := flow.layer_around(op):
            module = modules[layer.name]
            width = module.in_features if isinstance(module, nn.Linear) else getattr(module, 'in_channels', None)
            deeper = [layer.name] if (has_own_weight(module) and len(flow.calls_of[layer.name]) == 1
                                      and layer.name not in flow.foreign and layer.inputs == (value, )
                                      and axis == output_axis(module) % len(shape)
                                      and shape[axis] == width) else None
        else:
            after = None if any(map(flow.readers.get, op.outputs[1:])) else _axis_after(flow, op, value, axis)
            deeper = None if after is None else _readers(modules, flow, op.outputs[0], after)
        if deeper is None:
            return None
        names += deeper
    return names


def _axis_after(flow: DataFlow, op: Op, value: int, axis: int) -> int | None:
    """Axis of the channels after an operation; None where they are mixed, joined or cut."""
    before, after = flow.shapes[value], flow.shapes[op.outputs[0]]
    if op.inputs != (value, ):
        return None
    axes = [x % len(before) for x in op.args if type(x) is int]
    if op.name in CHANNELWISE or (op.name in WINDOWED and axis == len(before) - 3):
        return axis if len(after) == len(before) and after[axis] == before[axis] else None
    if op.name in ('transpose', 't'):
        first, second = axes or (0, 1)
        return {first: second, second: first}.get(axis, axis)
    if op.name == 'permute':
        return axes.index(axis)
    if op.name == 'mean' and axis not in (axes or range(len(before))):
        return axis if len(after) == len(before) else axis - sum(a < axis for a in axes)
    if op.name in ('select', 'slice') and axes and axes[0] != axis:
        return axis - (op.name == 'select' and axes[0] < axis)
    if op.name in FACTORED:
        matching = [k for k in range(len(after))
                    if after[k] == before[axis] and prod(after[:k]) == prod(before[:axis])]
        return matching[-1] if matching else None  # several ones where the channels are one
    return None


def _value_sites(modules: dict, flow: DataFlow, projection: Call) -> list[FoldSite]:
    """Parts of a layer that may be the values which an attention multiplies before the layer ``projection``."""
    product = flow.producer.get(flow.root(projection.inputs[0])) if len(projection.inputs) == 1 else None
    fused = product is not None and 'scaled_dot_product' in product.name
    if product is None or not (fused or product.name in ('bmm', 'matmul')) or len(product.inputs) != 2 + fused:
        return []
    readers, others = flow.layers_reading(product.outputs[0])
    value = product.inputs[-1]
    while (op := flow.producer.get(value)) and op.name in MOVEMENT and flow.layer_around(op) is None:
        value = op.inputs[0]
    layer, width = flow.maker(value), getattr(modules[projection.name], 'in_features', None)
    if others or [c.name for c in readers] != [projection.name] or not width or layer is None \
            or layer.name not in flow.layers or len(flow.calls_of[layer.name]) > 1:
        return []
    parts, rest = divmod(num_outputs(modules[layer.name]), width)
    return [FoldSite('value', layer.name, (projection.name, ), (k * width, (k + 1) * width))
            for k in range(parts if rest == 0 else 0)]


@torch.no_grad()
def changes_nothing(model: nn.Module, site: FoldSite, run: Callable[[], object]) -> bool:
    """Whether outputs stay what they are when channels of a site are scaled; tried out, then undone exactly."""
    powers = 2.0**(torch.arange(site.channels) % 3 - 1)  # of two: multiplied without rounding
    factor = powers.to(model.get_submodule(site.producer).weight)
    before = [x.clone() for x in tree_leaves(run()) if isinstance(x, Tensor)]
    scale_channels(model, site, factor)
    try:
        after = [x for x in tree_leaves(run()) if isinstance(x, Tensor)]
    finally:
        scale_channels(model, site, 1 / factor)
    return all(torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max())) for a, b in zip(after, before))


@torch.no_grad()
def scale_channels(model: nn.Module, site: FoldSite, factor: Tensor) -> None:
    """Multiply the producer's channels by ``factor`` and divide the readers' by it: the function stays what it was.

    The model has no quantizers. ``factor`` (channels,) is positive and finite, else a ValueError is raised.
    """
    if factor.shape != (site.channels, ) or not bool((torch.isfinite(factor) & (factor > 0)).all()):
        raise ValueError(f'{site.producer} takes {site.channels} positive factors, got {tuple(factor.shape)} with '
                         f'values in {factor.min():.4g}..{factor.max():.4g}')
    producer = model.get_submodule(site.producer)
    if site.kind == 'norm':
        scale = factor
        replace_parameter(producer, 'weight', producer.weight * scale)
    else:
        scale = factor.new_ones(num_outputs(producer))
        scale[slice(*site.rows)] = factor
        replace_parameter(producer, 'weight', LayerMatrix(producer).scaled(producer.weight, scale))
    if producer.bias is not None:
        replace_parameter(producer, 'bias', producer.bias * scale)
    if hasattr(producer, 'folded_bn'):
        producer.folded_bn.scale(scale)
    for name in site.consumers:
        matrix = LayerMatrix(layer := model.get_submodule(name))
        columns = matrix.matrix(layer.weight)
        by_group = factor.view(columns.shape[0], 1, -1, 1)
        divided = columns.unflatten(2, (by_group.shape[2], -1)) / by_group
        replace_parameter(layer, 'weight', matrix.tensor(divided.flatten(2)))
