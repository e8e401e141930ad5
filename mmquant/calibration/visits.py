"""The walk over the units of a network: where to go on, what comes in at each of them, how far it is.

    for visit in context.visits('block', streams=('float', 'quantized'), name='weights'):
        for (_, call, exact), (_, _, rough) in zip(visit.calls('float'), visit.calls('quantized')):
            ...
        visit.record(loss=loss)

A step changes what is inside ``visit.unit``; when the loop asks for the next visit, the unit is done: it is saved, and
a resumed run begins after it. A stream is carried on when it is asked for, so a quantized one meets the final state of
all units before.
"""
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from mmquant.calibration.stream import Stream
from mmquant.calibration.unit_inputs import UnitInput
from mmquant.calibration.unit_run import UnitRun
from mmquant.structures.unit import Unit

if TYPE_CHECKING:
    from mmquant.calibration.context import CalibrationContext


class Visit:
    """The stop at one unit.

    Attributes:
        context (CalibrationContext), unit (Unit): Of the run, and where it stands.
        index (int): Its number among all units of its kind.
        seed (int): Of its random numbers: the same in a resumed run.
        pending (frozenset[str]): Layers of this unit and of all that are still to be visited, see :meth:`Stream.walk`.
        streams (dict[str, Stream]): By name; before or at the entry of the unit.
    """

    def __init__(self, context: 'CalibrationContext', unit: Unit, index: int, pending: frozenset[str],
                 streams: dict[str, Stream], name: str, update: Callable[[float, str], None]) -> None:
        self.context, self.unit, self.index, self.pending, self.streams = context, unit, index, pending, streams
        self.seed = context.seed_for(index)
        self._name, self._update = name, update
        self._runs: dict[tuple[int, bool], UnitRun] = {}

    def mode(self, stream: str):
        """Context manager: quantize what a stream quantizes."""
        return self.streams[stream].mode()

    def gather(self, stream: str) -> dict[tuple, UnitInput]:
        """Inputs of the unit on all images, by (shape of an image, number of the unit's call)."""
        return self.streams[stream].gather(self.unit, self.pending)

    def calls(self, stream: str) -> Iterator[tuple[int, int, tuple[tuple, dict]]]:
        """Yields (chunk, call of the unit, (args, kwargs)), without gradients; as often as it is asked.

        Several streams may be asked in turns: each has its own mode, whatever mode is active. To see inside, hook
        modules around :meth:`run` only: while the stream moves, hooks see its placeholders too.
        """
        return self.streams[stream].walk(self.unit, self.pending)

    def run(self, arguments: tuple[tuple, dict], call: int = 0, activation: bool = True):
        """Output of a call of the unit in the mode that is active, one tensor or a tuple; see :class:`UnitRun`."""
        key = call, activation
        if key not in self._runs:
            self._runs[key] = UnitRun(self.context.model, self.unit, call, activation=activation)
        return self._runs[key].on(arguments)

    def outputs(self, stream: str, activation: bool = True) -> Iterator[tuple[int, int, object]]:
        """Yields (chunk, call, output) of the unit in the stream's mode, on the stream's inputs."""
        for chunk, call, arguments in self.calls(stream):
            with self.mode(stream):
                output = self.run(arguments, call, activation)
            yield chunk, call, output

    def tick(self, done: float, text: str = '') -> None:
        """Show that ``done`` ticks of this unit are over."""
        self._update(done, f'{self.unit.name or "net"} {text}')

    def record(self, kind: str = 'unit', **facts) -> None:
        """Report plain facts about this unit."""
        self.context.records.append(dict(kind=kind, step=self._name, unit=self.unit.name, **facts))
