"""What is reconstructed at once."""
from __future__ import annotations

from dataclasses import dataclass

GRANULARITIES = ('layer', 'block', 'stage', 'net')


@dataclass(frozen=True)
class Unit:
    """One module call whose output is reconstructed.

    Attributes:
        name (str): Path of the module in the model; ``''`` is the whole net.
        kind (str): ``'layer'``, ``'block'``, ``'stage'`` or ``'net'``.
        layers (tuple[str, ...]): Paths of the layers with weights inside, in execution order.
        enter, exit (int): Ticks of the call on the data flow's clock; units are ordered by them.
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
