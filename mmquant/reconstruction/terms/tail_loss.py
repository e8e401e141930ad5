"""Distance at the end of a unit's stage (RepAPQ, arXiv 2402.16121)."""
from mmquant.calibration.context import Visit
from mmquant.reconstruction.problem import Comparison
from mmquant.reconstruction.rest_of_net import Tails
from mmquant.reconstruction.terms.term import UnitData
from mmquant.reconstruction.terms.unit_loss import UnitLoss
from mmquant.registry import TERMS


@TERMS.register_module()
class TailLoss(UnitLoss):
    """``|tail(unit(x)) - tail(float unit(x))|^p``, the tail being the float net from the unit to the end of its stage.

    RepAPQ's across-block calibration (arXiv 2402.16121). A unit whose output is that of its stage or net, or that has
    none around it, has no tail: there the term counts nothing, or, as the only one, compares the unit's own output.

    Args:
        end (str): ``'stage'`` (default) or ``'net'``: where the outputs are compared.
        p, reduction: As in :class:`UnitLoss`.
        weight, inputs: See :class:`Term`.
    """

    def __init__(self, end: str = 'stage', p: float = 2.0, reduction: str = 'channel_sum', weight: float = 1.0,
                 inputs: str | None = None) -> None:
        super().__init__(p, reduction, weight, inputs)
        if end not in ('stage', 'net'):
            raise ValueError(f"end must be 'stage' or 'net', got {end!r}")
        self.end, self._tails, self._here = end, None, {}

    def look_ahead(self, visit: Visit, pass_rows: int) -> None:
        stream = visit.streams['float']
        if self._tails is None or self._tails.stream is not stream:
            self._tails = Tails(visit.context.model, stream, self.end, pass_rows)
        self._here = self._tails.of(visit.unit, visit.pending)
        visit.images.update({key: end.images for key, end in self._here.items()})

    def comparisons(self, visit: Visit, data: UnitData) -> dict[tuple, Comparison]:
        here, self._here = self._here, {}
        if any(visit.items[key].images != end.images for key, end in here.items()):
            raise ValueError(f'TailLoss: the images that belong together in unit {visit.unit.name} are not those of '
                             f'the {self.end} around it; leave the term out (terms=dict(tail=None))')
        return {key: Comparison(self.loss, end.targets, end.channel_dim, self.weight, None, self.inputs, end.tail)
                for key, end in here.items()}
