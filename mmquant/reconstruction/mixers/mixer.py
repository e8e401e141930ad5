"""What a unit is given while it is fitted: the contract of all mixers."""
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType


class Mixer(ABC):
    """Makes a unit's input from several streams, and, inside the unit, activations from quantized and float ones.

    Only steps of the fit are mixed: losses on held-out rows, hardening and evaluation never are. Random numbers come
    from torch's global generator, which is seeded for each unit.
    """
    # What a call is given, in this order; the first one alone is the unit's input where nothing is mixed.
    streams: tuple[str, ...] = ('quant', 'float')
    inside = False  # mix inside the unit's activation quantizers too
    # Streams of its own beside these two, as `CalibrationContext.stream` takes them.
    modes: Mapping[str, object] = MappingProxyType({})

    @abstractmethod
    def __call__(self, *rows):
        """Mix rows of the streams, each a tensor or a tuple of several, all of the same shapes."""

    def within(self, x_hat, x):
        """Result of an activation quantizer for ``x``, which it rounded to ``x_hat``. Default: mixed as the inputs."""
        return self(x_hat, x)
