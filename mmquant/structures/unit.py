"""What is reconstructed at once."""
from dataclasses import dataclass

GRANULARITIES = ('layer', 'block', 'stage', 'net')


@dataclass(frozen=True)
class Unit:
    """One module whose output is reconstructed."""
    name: str  # path of the module in the model; '' is the whole net
    kind: str  # 'layer', 'block', 'stage' or 'net'
    layers: tuple[str, ...]  # paths of the layers with weights inside, in execution order
    enter: int  # tick of the call on the data flow's clock, which units are ordered by
    exit: int
    channel_dim: int = 1  # axis of the output that counts channels
    activation: str | None = None  # path of the activation that alone reads the output: the loss is taken after it
    more: tuple[tuple[int, int], ...] = ()  # ticks of its other calls, fitted together: a head over pyramid levels

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """Ticks (enter, exit) of all its calls."""
        return (self.enter, self.exit), *self.more
