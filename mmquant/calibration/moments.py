"""Sums over the rows that a layer multiplies: all that layer-wise solvers know of the calibration images.

    gram  H = sum x x^T      cross  G = sum x y^T      exact  F = sum y y^T      for each group of channels

x is a row of the deployed layer's input and y the float network's row at the same place; G and F are only summed for
solvers that ask for them. Images that are kept out, to choose by, get sums of their own.
"""
from math import prod

import torch
from torch import Tensor

from mmquant.calibration.context import CalibrationContext, Visit
from mmquant.models.layer_matrix import PIECE, LayerMatrix, no_rows
from mmquant.models.layers import num_outputs
from mmquant.utils.distributed import sum_over_ranks, sum_tensor_over_ranks

DOUBLE_COLUMNS = 1024  # wider sums are kept in float32: their factors would take too long in float64
HELD_OUT = 8  # one image in so many is kept out


class Moments:
    """The sums of one layer: ``gram``, ``cross`` and ``exact``, (g, C, C), over ``count`` rows.

    Without ``cross`` (default) G and F are None. Sums are float64 up to 1024 columns, else float32.
    """

    def __init__(self, matrix: LayerMatrix, cross: bool = False) -> None:
        self.matrix, self.count = matrix, 0
        self.gram = matrix.layer._parameters['weight'].new_zeros(
            (matrix.groups, matrix.columns, matrix.columns),
            dtype=torch.float64 if matrix.columns <= DOUBLE_COLUMNS else torch.float32)
        self.cross, self.exact = (torch.zeros_like(self.gram), torch.zeros_like(self.gram)) if cross else (None, None)

    @torch.no_grad()
    def add(self, windows: Tensor, exact: Tensor | None = None) -> None:
        """Sum over what :meth:`LayerMatrix.caught` saw; ``exact``: the same call of the float network."""
        others = self.matrix.pieces(exact) if self.cross is not None else None
        for rows in self.matrix.pieces(windows):
            add_squares(self.gram, rows)
            self.count += rows.shape[1]
            if others is not None:
                y = next(others)
                self.cross += rows.mT @ y
                add_squares(self.exact, y)

    def over_ranks(self) -> 'Moments':
        """Sum over all processes, in place."""
        self.gram, self.cross, self.exact = (x if x is None else sum_tensor_over_ranks(x)
                                             for x in (self.gram, self.cross, self.exact))
        self.count = int(sum_over_ranks(self.count)[0])
        return self

    def error(self, weight: Tensor, values: Tensor) -> Tensor:
        """Squared error of each output channel, (g, R), summed over the rows, if ``values`` replace ``weight``.

        Without cross sums ``|(W - Q) x|^2``, with them ``|W y - Q x|^2``.
        """
        weight, values = weight.to(self.gram), values.to(self.gram)
        if self.cross is None:
            return quadratic(self.gram, weight - values)
        mixed = ((values @ self.cross) * weight).sum(-1)
        return quadratic(self.exact, weight) - 2 * mixed + quadratic(self.gram, values)

    def energy(self, weight: Tensor) -> Tensor:
        """Squared output of each channel, (g, R), that the error is measured against."""
        return quadratic(self.gram if self.cross is None else self.exact, weight.to(self.gram))


def add_squares(gram: Tensor, rows: Tensor, strip: int = 512) -> None:
    """Add ``rows^T rows`` in place; of what lies below the diagonal's strips, only the mirror image is computed."""
    for begin in range(0, gram.shape[-1], strip):
        end = begin + strip
        product = rows[..., begin:end].mT @ rows[..., begin:]
        gram[..., begin:end, begin:] += product
        gram[..., end:, begin:end] += product[..., strip:].mT


def quadratic(gram: Tensor, rows: Tensor) -> Tensor:
    """``r H r^T`` of each row; (g, C, C) and (g, R, C) to (g, R)."""
    return ((rows @ gram) * rows).sum(-1)


@torch.no_grad()
def collect(visit: Visit, name: str, matrix: LayerMatrix, streams: tuple[str, ...],
            max_rows: int | None = None) -> tuple[Moments, Moments]:
    """Moments of a layer of a visit's unit over all its calls: of the images to solve on, and of those kept out.

    The latter are the last eighth of each chunk, every eighth chunk where chunks are smaller than that; with too few
    images both are all.

    Args:
        streams (tuple[str, ...]): Names of the visit's stream that feeds the layer, and of the float one if the cross
            sums are wanted.
        max_rows (int | None): About as many rows at most in all, drawn at random. Default: all.

    Raises:
        ValueError: If the layer has no rows.
        FloatingPointError: If the input of the layer holds NaN or infinite values.
    """
    solved, held = (Moments(matrix, len(streams) > 1) for _ in range(2))
    context, generator = visit.context, torch.Generator().manual_seed(visit.seed)
    stride = 1 if max_rows is None else max(1, _places(context, name) // max_rows)
    for calls in zip(*(visit.calls(stream) for stream in streams), strict=True):
        chunk, seen = calls[0][0], []
        for stream, (_, call, arguments) in zip(streams, calls):
            seen.append([])
            with visit.mode(stream), matrix.caught(seen[-1].append):
                visit.run(arguments, call, activation=False)
        for windows in zip(*seen, strict=True):
            count = len(windows[0])
            if len(context.chunks[chunk]) >= HELD_OUT:
                last = count - count // HELD_OUT
            else:
                last = 0 if chunk % HELD_OUT == HELD_OUT - 1 else count
            for sums, part in ((solved, slice(0, last)), (held, slice(last, None))):
                for some in _drawn(tuple(w[part] for w in windows), stride, generator):
                    sums.add(*some)
    solved.over_ranks()
    held.over_ranks()
    if not solved.count:
        raise ValueError(no_rows(name))
    if not bool(torch.isfinite(solved.gram).all()):
        raise FloatingPointError(f'the input of {name} holds NaN or infinite values; check the calibration images, the '
                                 'float checkpoint and the input normalisation')
    return solved, held if held.count else solved


def _places(context: CalibrationContext, name: str) -> int:
    """Rows of a layer on all images, by the shapes that the data flow saw."""
    layer, flow = context.model.architecture.get_submodule(name), context.model.flow
    rows = sum(prod(flow.shapes[call.outputs[0]]) for call in flow.calls_of[name]) // num_outputs(layer)
    return int(sum_over_ranks(sum(context.sizes))[0]) * rows // len(context.sample)


def _drawn(windows: tuple[Tensor, ...], stride: int, generator: torch.Generator):
    """Yields one in about ``stride`` places of windows of the same shape, at random, as windows of one place each."""
    if stride == 1:
        yield windows
        return
    shape = windows[0].shape
    places = shape[0], *shape[3:3 + (len(shape) - 3) // 2]
    drawn = (torch.rand(prod(places), generator=generator) * stride < 1).nonzero()[:, 0].to(windows[0].device)
    for part in drawn.split(max(1, PIECE * prod(places) // max(1, prod(shape)))):
        image, *spot = torch.unravel_index(part, places)
        yield tuple(w[(image, slice(None), slice(None), *spot)].flatten(2) for w in windows)
