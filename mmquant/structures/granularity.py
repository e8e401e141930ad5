"""Which elements of a tensor share one scale."""
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Shape = tuple[int, ...]
Restore = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor; scale shape ``()``."""

    def scale_shape(self, x_shape: Shape) -> Shape:
        """Shape in which the scale of a tensor of ``x_shape`` is stored."""
        return ()

    def to_groups(self, x: Tensor) -> tuple[Tensor, Restore]:
        """View ``x`` with one row per scale.

        Returns:
            x2d of shape (1, x.numel()), and a function that brings a tensor of x2d's shape back to ``x``'s shape.
        """
        shape = x.shape
        return x.reshape(1, -1), lambda rows: rows.reshape(shape)

    def expand(self, scale: Tensor, x_shape: Shape) -> Tensor:
        """Make a stored scale broadcastable against a tensor of ``x_shape`` (differentiable)."""
        return scale


@dataclass(frozen=True)
class PerChannel:
    """One scale per index of ``axis``; scale shape ``(1, .., C, .., 1)``.

    Args:
        axis: The channel axis: 0 for weights (output channels), 1 or -1 for activations.
    """

    axis: int = 0

    def scale_shape(self, x_shape: Shape) -> Shape:
        """Shape in which the scale of a tensor of ``x_shape`` is stored."""
        axis = _checked_axis(self.axis, x_shape)
        return tuple(size if dim == axis else 1 for dim, size in enumerate(x_shape))

    def to_groups(self, x: Tensor) -> tuple[Tensor, Restore]:
        """View ``x`` with one row per scale.

        Returns:
            x2d of shape (C, x.numel() / C), and a function that brings a tensor of x2d's shape back to ``x``'s shape.
        """
        axis = _checked_axis(self.axis, x.shape)
        moved = x.movedim(axis, 0)
        shape = moved.shape
        return moved.reshape(shape[0], -1), lambda rows: rows.reshape(shape).movedim(0, axis)

    def expand(self, scale: Tensor, x_shape: Shape) -> Tensor:
        """Make a stored scale broadcastable against a tensor of ``x_shape`` (differentiable)."""
        return scale


@dataclass(frozen=True)
class PerGroup:
    """One scale per ``group_size`` consecutive elements within a channel; scale shape ``(C, groups per channel)``.

    A channel's elements are taken in the order of the remaining axes, so a linear weight (O, I) with group size g has
    scales (O, I / g), and a convolution (O, I, kh, kw) has (O, I * kh * kw / g).

    Args:
        group_size: Elements per group, > 0; must divide the elements of a channel.
        axis: The channel axis, as in ``PerChannel``.

    Raises:
        ValueError: ``group_size`` is no positive int, or (on use) does not divide the elements of a channel.
    """

    group_size: int
    axis: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.group_size, bool) or not isinstance(self.group_size, int) or self.group_size < 1:
            raise ValueError(f'group_size={self.group_size!r} is not supported: expected an int > 0.')

    def scale_shape(self, x_shape: Shape) -> Shape:
        """Shape in which the scale of a tensor of ``x_shape`` is stored."""
        axis = _checked_axis(self.axis, x_shape)
        row = 1
        for dim, size in enumerate(x_shape):
            row *= 1 if dim == axis else size
        if row == 0 or row % self.group_size:
            raise ValueError(f'group_size={self.group_size} does not divide the {row} elements of a channel of a '
                             f'tensor of shape {tuple(x_shape)} (axis {self.axis}): choose a divisor of '
                             f'{row}, or per-channel scales.')
        return (x_shape[axis], row // self.group_size)

    def to_groups(self, x: Tensor) -> tuple[Tensor, Restore]:
        """View ``x`` with one row per scale.

        Returns:
            x2d of shape (num_scales, group_size), and a function that brings a tensor of x2d's shape back to ``x``'s.
        """
        self.scale_shape(tuple(x.shape))
        axis = _checked_axis(self.axis, x.shape)
        moved = x.movedim(axis, 0)
        shape = moved.shape
        return moved.reshape(-1, self.group_size), lambda rows: rows.reshape(shape).movedim(0, axis)

    def expand(self, scale: Tensor, x_shape: Shape) -> Tensor:
        """Make a stored scale broadcastable against a tensor of ``x_shape`` (differentiable; as large as ``x``)."""
        axis = _checked_axis(self.axis, x_shape)
        moved = (x_shape[axis], *(size for dim, size in enumerate(x_shape) if dim != axis))
        return scale.unsqueeze(-1).expand(*scale.shape, self.group_size).reshape(moved).movedim(0, axis)


Granularity = PerTensor | PerChannel | PerGroup


def build_granularity(spec: str | dict | Granularity = 'tensor', channel_axis: int = 0,
                      group_size: int | None = None) -> Granularity:
    """Turn what a config says into a granularity.

    Args:
        spec: ``'tensor'``, ``'channel'``, ``'group'``, a dict such as ``dict(type='PerGroup', group_size=64)``, or an
            object of one of the three classes, which is returned unchanged.
        channel_axis: The axis for ``'channel'`` and ``'group'``.
        group_size: Elements per group for ``'group'``.

    Raises:
        ValueError: An unknown name or type, or ``'group'`` without ``group_size``.
    """
    if isinstance(spec, (PerTensor, PerChannel, PerGroup)):
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
    if isinstance(spec, dict) and str(spec.get('type', '')).rsplit('.', 1)[-1] in classes:
        arguments = {key: value for key, value in spec.items() if key != 'type'}
        return classes[spec['type'].rsplit('.', 1)[-1]](**arguments)
    raise ValueError(f"Unknown granularity {spec!r}: expected 'tensor', 'channel', 'group', a dict with type "
                     'PerTensor, PerChannel or PerGroup, or an object of these classes.')


def _checked_axis(axis: int, shape: Shape) -> int:
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f'Channel axis {axis} does not exist in a tensor of shape {tuple(shape)}: expected '
                         f'{-len(shape)}..{len(shape) - 1}, or a per-tensor scale.')
    return axis % len(shape)
