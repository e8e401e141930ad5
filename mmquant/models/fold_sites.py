"""Places where a factor of channels can be moved from what makes a tensor into the layers that read it.

    homogeneous   layer -> relu, leaky_relu, prelu, max pooling, movement -> layers     (equalization: CLE, DFQ)
    norm          LayerNorm -> linear layers                                            (AWQ, SmoothQuant, OS+)
    value         V of an attention, or a slice of QKV -> projection                    (AWQ)

A site is sound where the producer's channels are the readers' input channels, one to one, and nothing else reads them;
:func:`scale_channels` then changes no output.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mmquant.models.dataflow import MOVEMENT, Call, DataFlow, Op
from mmquant.models.layer_matrix import LayerMatrix
from mmquant.models.layers import has_own_weight, is_depthwise, num_outputs, output_axis

# f(s x) = s f(x) for every s > 0 and for each channel by itself
POSITIVE = frozenset('relu leaky_relu prelu _prelu_kernel'.split())
WINDOWED = frozenset('max_pool2d max_pool2d_with_indices avg_pool2d adaptive_avg_pool2d _adaptive_avg_pool2d'.split())
SAME_PLACE = frozenset('clone contiguous alias detach _to_copy lift_fresh constant_pad_nd roll'.split())
FACTORED = frozenset('view _unsafe_view reshape _reshape_alias flatten squeeze unsqueeze'.split())
PRODUCTS = frozenset('bmm matmul'.split())


@dataclass(frozen=True)
class FoldSite:
    """Channels of one tensor: a site of a ``kind`` (``'homogeneous'``, ``'norm'``, ``'value'``).

    The layer or LayerNorm ``producer`` makes them, as its output channels ``rows`` (begin, end); the ``consumers`` are
    the layers that read them, and nothing else does.
    """
    kind: str
    producer: str
    consumers: tuple[str, ...]
    rows: tuple[int, int]

    @property
    def channels(self) -> int:
        return self.rows[1] - self.rows[0]


def fold_sites(model: nn.Module, flow: DataFlow, kinds: Iterable[str] = ('homogeneous', 'norm'),
               run: Callable[[], object] | None = None) -> list[FoldSite]:
    """All sites of some kinds, producers in execution order; each module in them is called once.

    Args:
        model (nn.Module): The float model, BatchNorms folded.
        flow (DataFlow): Its record.
        kinds (Iterable[str]): Which.
        run (Callable | None): Runs the model on some images and returns its outputs. ``'value'`` sites need it: heads
            may be cut from channels in any order, so each one is tried out.
    """
    modules = dict(model.named_modules())
    sites = []
    for call in flow.calls:
        module = modules[call.name]
        if len(flow.calls_of[call.name]) > 1 or len(call.outputs) != 1:
            continue
        kind = 'norm' if isinstance(module, nn.LayerNorm) else 'homogeneous' if has_own_weight(module) else None
        if kind in kinds and (site := _site(kind, modules, flow, call)):
            sites.append(site)
        if kind == 'homogeneous' and 'value' in kinds and (site := _value_site(modules, flow, call)):
            sites += [site] if changes_nothing(model, site, run) else []
    return sites


def depthwise_chains(model: nn.Module, sites: Iterable[FoldSite]) -> list[tuple[str, str, str]]:
    """(layer, depthwise layer, layer) along homogeneous sites with one reader each: equalized together by CLE."""
    following = {s.producer: s.consumers[0] for s in sites if s.kind == 'homogeneous' and len(s.consumers) == 1}
    return [(first, middle, following[middle]) for first, middle in following.items()
            if middle in following and is_depthwise(model.get_submodule(middle))]


def _site(kind: str, modules: dict, flow: DataFlow, call: Call) -> FoldSite | None:
    module, value = modules[call.name], call.outputs[0]
    if kind == 'norm' and (module.weight is None or len(module.normalized_shape) > 1):
        return None
    axis = (-1 if kind == 'norm' else output_axis(module)) % len(flow.shapes[value])
    consumers = _readers(modules, flow, value, axis)
    return FoldSite(kind, call.name, tuple(consumers), (0, flow.shapes[value][axis])) if consumers else None


def _readers(modules: dict, flow: DataFlow, value: int, axis: int) -> list[str] | None:
    """Layers that alone read the channels on ``axis`` of a value, as their input channels; None if anything else."""
    if value in flow.calls[0].outputs or value in flow.decoded or value in flow.mutated:
        return None
    names: list[str] = []
    for op in flow.readers.get(value, ()):
        layer = flow.layer_around(op)
        if layer is not None:
            if not _reads_channels(modules, flow, layer, value, axis):
                return None
            names.append(layer.name)
            continue
        new_axis = _axis_after(flow, op, value, axis)
        deeper = None if new_axis is None else _readers(modules, flow, op.outputs[0], new_axis)
        if deeper is None or any(flow.readers.get(v) for v in op.outputs[1:]):
            return None
        names += deeper
    return list(dict.fromkeys(names))


def _reads_channels(modules: dict, flow: DataFlow, layer: Call, value: int, axis: int) -> bool:
    module, shape = modules[layer.name], flow.shapes[value]
    width = module.in_features if isinstance(module, nn.Linear) else getattr(module, 'in_channels', None)
    return (has_own_weight(module) and len(flow.calls_of[layer.name]) == 1 and layer.inputs == (value, )
            and axis == output_axis(module) % len(shape) and shape[axis] == width)


def _axis_after(flow: DataFlow, op: Op, value: int, axis: int) -> int | None:
    """Axis of the channels after an operation; None where they are mixed, joined or cut."""
    before, after = flow.shapes[value], flow.shapes[op.outputs[0]]
    axes = [x for x in op.args if type(x) is int]
    if op.inputs != (value, ):
        return None
    if op.name in POSITIVE or op.name in SAME_PLACE or (op.name in WINDOWED and axis == len(before) - 3):
        return axis if len(after) == len(before) and after[axis] == before[axis] else None
    if op.name in ('transpose', 't'):
        first, second = (a % len(before) for a in (axes or (0, 1)))
        return {first: second, second: first}.get(axis, axis)
    if op.name == 'permute':
        return [a % len(before) for a in axes].index(axis)
    if op.name == 'mean' and axis not in [a % len(before) for a in axes or range(len(before))]:
        kept = len(after) == len(before)
        return axis if kept else axis - sum(a % len(before) < axis for a in axes)
    if op.name in ('select', 'slice') and axes and axes[0] % len(before) != axis:
        return axis - (op.name == 'select' and axes[0] % len(before) < axis)
    if op.name in FACTORED:
        matching = [k for k in range(len(after))
                    if after[k] == before[axis] and prod(after[:k]) == prod(before[:axis])]
        return matching[-1] if matching else None  # several ones where the channels are one
    return None


def _value_site(modules: dict, flow: DataFlow, projection: Call) -> FoldSite | None:
    """The site whose reader is ``projection``: what it multiplies is the product of an attention and its values."""
    product = flow.producer.get(flow.root(projection.inputs[0])) if len(projection.inputs) == 1 else None
    fused = product is not None and 'scaled_dot_product' in product.name
    if product is None or not (fused or product.name in PRODUCTS) or len(product.inputs) != 2 + fused:
        return None
    readers, others = flow.layers_reading(product.outputs[0])
    value, part, parts = product.inputs[-1], 0, 1
    while (op := flow.producer.get(value)) is not None and op.name in MOVEMENT and flow.layer_around(op) is None:
        cut = _part(flow, op, value)
        if cut is None or len(flow.readers[value]) > 1:
            return None
        part, parts = cut if cut[1] > 1 else (part, parts)
        value = op.inputs[0]
    layer = flow.maker(value)
    if others or [c.name for c in readers] != [projection.name] or layer is None or layer.name not in flow.layers:
        return None
    width = flow.shapes[value][output_axis(modules[layer.name])] // parts
    if len(flow.calls_of[layer.name]) > 1 or width != getattr(modules[projection.name], 'in_features', None):
        return None
    return FoldSite('value', layer.name, (projection.name, ), (part * width, (part + 1) * width))


def _part(flow: DataFlow, op: Op, value: int) -> tuple[int, int] | None:
    """Which of how many equal parts of a fused projection ``value`` is, (0, 1) where it is all of it; None where the
    parts do not lie one after another among its channels."""
    before, after = flow.shapes[op.inputs[0]], flow.shapes[value]
    parts = prod(before) // prod(after)
    if parts == 1:
        return 0, 1
    if op.name in ('unbind', 'split', 'chunk', 'split_with_sizes') and len(op.outputs) == parts:
        return op.outputs.index(value), parts
    numbers = [x for x in op.args if type(x) is int]
    if op.name == 'select' and before[numbers[0]] == parts:
        return numbers[1] % parts, parts
    return None


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

    Args:
        model (nn.Module): The model the site was found in, without quantizers.
        site (FoldSite): Where.
        factor (Tensor): (channels,), positive and finite; a ValueError if not.
    """
    if factor.shape != (site.channels, ) or not bool((torch.isfinite(factor) & (factor > 0)).all()):
        raise ValueError(f'{site.producer} takes {site.channels} positive factors, got {tuple(factor.shape)} with '
                         f'values in {factor.min():.4g}..{factor.max():.4g}')
    producer = model.get_submodule(site.producer)
    if site.kind == 'norm':
        scale = factor
        producer.weight.mul_(scale)
    else:
        scale = factor.new_ones(num_outputs(producer))
        scale[slice(*site.rows)] = factor
        matrix = LayerMatrix(producer)
        rows = matrix.matrix(producer.weight)
        producer.weight.copy_(matrix.tensor(rows * scale.view(rows.shape[0], -1, 1)))
    if producer.bias is not None:
        producer.bias.mul_(scale)
    if hasattr(producer, 'folded_bn'):
        producer.folded_bn.scale(scale)
    for name in site.consumers:
        matrix = LayerMatrix(layer := model.get_submodule(name))
        columns = matrix.matrix(layer.weight)
        by_group = factor.view(columns.shape[0], 1, -1, 1)
        divided = columns.unflatten(2, (by_group.shape[2], -1)) / by_group
        layer.weight.copy_(matrix.tensor(divided.flatten(2)))
