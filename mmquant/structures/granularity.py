"""Which elements of a tensor share one scale."""
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

Shape = tuple[int, ...]


class Granularity:
    """Which elements share a scale: the contract, and what scales along an ``axis`` have in common."""

    def scale_shape(self, x_shape: Shape) -> Shape:
        """Shape in which the scale of a tensor of ``x_shape`` is stored."""
        raise NotImplementedError

    def to_groups(self, x: Tensor) -> Tensor:
        """``x`` with one row per scale, (num_scales, n); a view where that is possible."""
        raise NotImplementedError

    def expand(self, scale: Tensor, x_shape: Shape) -> Tensor:
        """Make a stored scale broadcastable against a tensor of ``x_shape`` (differentiable)."""
        return scale

    def on_axis(self, axis: int) -> 'Granularity':
        """The same with channels on another axis."""
        return replace(self, axis=axis)

    def of_channels(self, values: Tensor, dim: int) -> Tensor | None:
        """Values of channels (C,), broadcastable against a stored scale of ``dim`` axes; None: they share it."""
        return None


@dataclass(frozen=True)
class PerTensor(Granularity):
    """One scale for the whole tensor; scale shape ``()``."""

    def scale_shape(self, x_shape: Shape) -> Shape:
        return ()

    def to_groups(self, x: Tensor) -> Tensor:
        return x.reshape(1, -1)

    def on_axis(self, axis: int) -> 'PerTensor':
        return self


@dataclass(frozen=True)
class PerChannel(Granularity):
    """One scale per index of ``axis``; scale shape ``(1, .., C, .., 1)``.

    Args:
        axis: The channel axis: 0 for weights (output channels), 1 or -1 for activations.
    """

    axis: int = 0

    def scale_shape(self, x_shape: Shape) -> Shape:
        axis = _checked_axis(self.axis, x_shape)
        return tuple(size if dim == axis else 1 for dim, size in enumerate(x_shape))

    def to_groups(self, x: Tensor) -> Tensor:
        axis = _checked_axis(self.axis, x.shape)
        return x.movedim(axis, 0).reshape(x.shape[axis], -1)

    def of_channels(self, values: Tensor, dim: int) -> Tensor:
        return values.view([-1 if d == self.axis % dim else 1 for d in range(dim)])


@dataclass(frozen=True)
class PerGroup(Granularity):
    """One scale per ``group_size`` consecutive elements within a channel; scale shape ``(C, groups per channel)``.

    A channel's elements are taken in the order of the remaining axes, so a linear weight (O, I) with group size g has
    scales (O, I / g), and a convolution (O, I, kh, kw) has (O, I * kh * kw / g). The last group may be shorter.

    Args:
        group_size: Elements per group, > 0.
        axis: The channel axis, as in ``PerChannel``.

    Raises:
        ValueError: ``group_size`` is no positive int.
    """

    group_size: int
    axis: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.group_size, bool) or not isinstance(self.group_size, int) or self.group_size < 1:
            raise ValueError(f'group_size={self.group_size!r} is not supported: expected an int > 0.')

    def scale_shape(self, x_shape: Shape) -> Shape:
        axis = _checked_axis(self.axis, x_shape)
        return x_shape[axis], -(-prod((*x_shape[:axis], *x_shape[axis + 1:])) // self.group_size)

    def to_groups(self, x: Tensor) -> Tensor:
        """As the base; a shorter last group is filled up with repetitions of its own elements."""
        moved = x.movedim(_checked_axis(self.axis, x.shape), 0)
        row = x.numel() // len(moved)
        rest = row % self.group_size
        if not rest:
            return moved.reshape(-1, self.group_size)
        last = row - rest + torch.arange(self.group_size - rest, device=x.device) % rest
        flat = moved.reshape(len(moved), row)
        return torch.cat([flat, flat[:, last]], dim=1).reshape(-1, self.group_size)

    def expand(self, scale: Tensor, x_shape: Shape) -> Tensor:
        """As the base; as large as ``x``."""
        axis = _checked_axis(self.axis, x_shape)
        moved = (x_shape[axis], *x_shape[:axis], *x_shape[axis + 1:])
        each = scale.unsqueeze(-1).expand(*scale.shape, self.group_size).flatten(1)
        return each[:, :prod(moved[1:])].reshape(moved).movedim(0, axis)

    def of_channels(self, values: Tensor, dim: int) -> Tensor:
        return values.view(-1, 1)


def build_granularity(spec: str | dict | Granularity = 'tensor', channel_axis: int = 0,
                      group_size: int | None = None) -> Granularity:
    """Turn what a config says into a granularity.

    ``spec`` is ``'tensor'``, ``'channel'`` or ``'group'``, to which the other arguments belong, a dict such as
    ``dict(type='PerGroup', group_size=64)``, or a granularity, which is returned unchanged.

    Raises:
        ValueError: An unknown name or type, or ``'group'`` without ``group_size``.
    """
    if isinstance(spec, Granularity):
        return spec
    if spec == 'tensor':
        return PerTensor()
    if spec == 'channel':
        return PerChannel(channel_axis)
    if spec == 'group':
        if group_size is None:
            raise ValueError("granularity='group' needs a group_size: pass group_size=64, for example.")
        return PerGroup(group_size, channel_axis)
    classes = dict(PerTensor=PerTensor, PerChannel=PerChannel, PerGroup=PerGroup)
    name = str(spec.get('type', '')).rsplit('.', 1)[-1] if isinstance(spec, dict) else None
    if name in classes:
        return classes[name](**{key: value for key, value in spec.items() if key != 'type'})
    raise ValueError(f"Unknown granularity {spec!r}: expected 'tensor', 'channel', 'group', a dict with type "
                     'PerTensor, PerChannel or PerGroup, or an object of these classes.')


def _checked_axis(axis: int, shape: Shape) -> int:
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f'Channel axis {axis} does not exist in a tensor of shape {tuple(shape)}: expected '
                         f'{-len(shape)}..{len(shape) - 1}, or a per-tensor scale.')
    return axis % len(shape)
