"""Proposals that stay the same, so that a detector's float and quantized outputs can be compared row by row."""
from __future__ import annotations

import contextlib

from torch import nn

from mmquant.models.detection import DECODE


class Decisions:
    """Boxes that a detector selects between its parts: a region proposal network hands them to the second stage.

    The selection is discrete, so a quantized net selects other boxes in another order, and the outputs of the second
    stage cannot be compared row by row. Inside :meth:`pinned` the first run of a batch, which should be the float
    model's, keeps what it selected; later runs of that batch get the same.
    """

    def __init__(self) -> None:
        self.settled = False  # whether the float model has run on every batch
        self._kept: dict = {}
        self._heads: list | None = None

    @property
    def made(self) -> bool:
        """Whether a model selected anything; its batches are then run whole."""
        return bool(self._kept)

    @contextlib.contextmanager
    def pinned(self, model: nn.Module, batch: int):
        """Pin the selections while ``model`` runs batch number ``batch`` in tensor mode."""
        if self._heads is None:
            self._heads = [(n, m) for n, m in model.named_modules() if callable(getattr(type(m), DECODE, None))]
        try:
            for name, head in self._heads:
                head.__dict__[DECODE] = self._answer(head, (batch, name))
            yield
        finally:
            for _, head in self._heads:
                head.__dict__.pop(DECODE, None)

    def _answer(self, head: nn.Module, key):
        def decode(*args, **kwargs):
            if key not in self._kept:
                self._kept[key] = getattr(type(head), DECODE)(head, *args, **kwargs)
            kept = self._kept[key]
            return [x.clone() for x in kept] if isinstance(kept, list) else kept

        return decode
