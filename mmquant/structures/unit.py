"""What is reconstructed at once."""
from __future__ import annotations

from dataclasses import dataclass

GRANULARITIES = ('layer', 'block', 'stage', 'net')


@dataclass(frozen=True)
class Unit:
    """One module whose output is reconstructed.

    Attributes:
        name (str): Path of the module in the model; ``''`` is the whole net.
        kind (str): ``'layer'``, ``'block'``, ``'stage'`` or ``'net'``.
        layers (tuple[str, ...]): Paths of the layers with weights inside, in execution order.
        enter, exit (int): Ticks of the call on the data flow's clock; units are ordered by them.
        more (tuple[tuple[int, int], ...]): Ticks (enter, exit) of its other calls that are reconstructed with the first
            one: those of a head shared over pyramid levels.
        channel_dim (int): Axis of the output that counts channels.
        activation (str | None): Path of the activation module that alone reads the output: the loss is taken behind it.
    """
    name: str
    kind: str
    layers: tuple[str, ...]
    enter: int
    exit: int
    channel_dim: int = 1
    activation: str | None = None
    more: tuple[tuple[int, int], ...] = ()

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Ticks (enter, exit) of all its calls."""
        return (self.enter, self.exit), *self.more
