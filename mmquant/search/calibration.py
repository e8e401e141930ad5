"""The calibration images of a search, and how a model runs on them."""
from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch

from mmquant.calibration.cache import Cache
from mmquant.calibration.stream import Stream
from mmquant.losses.objectives import Objective, build_objective, labels_of
from mmquant.models import QuantizedModel
from mmquant.models.detection import Decisions


@dataclass
class Calibration:
    """Images in chunks, with what running a model on them needs.

    Attributes:
        model (QuantizedModel): The model.
        chunks (list[Tensor]): Preprocessed inputs, one forward pass each.
        samples (list[list] | None): Data samples of each chunk.
        decisions (Decisions): Proposals of the float model, pinned in its first run.
        cache (Cache): Where activations are kept.
    """
    model: QuantizedModel
    chunks: list
    samples: list[list] | None = None
    decisions: Decisions = field(default_factory=Decisions)
    cache: Cache = field(default_factory=Cache)

    @property
    def sizes(self) -> list[int]:
        """Images of each chunk."""
        return [len(chunk) for chunk in self.chunks]

    @cached_property
    def labels(self) -> list[torch.Tensor] | None:
        """Class numbers of each chunk, on the model's device; None where images have none, or several."""
        found = labels_of(self.samples)
        return found and [x.to(self.device) for x in found]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.architecture.parameters()).device

    def run(self, chunk: int, rows: torch.Tensor | None = None):
        """Raw outputs for a chunk, or for some images of it."""
        images, samples = self.chunks[chunk], self.samples and self.samples[chunk]
        if rows is not None:
            images, samples = images[rows], samples and [samples[i] for i in rows.tolist()]
        with self.decisions.pinned(self.model.architecture, chunk):
            return self.model.run(images, samples)

    def stream(self) -> Stream:
        """Activations of all chunks, before the first layer."""
        return Stream(self.model, self.chunks, self.samples, self.decisions, self.cache)

    @torch.no_grad()
    def objective(self, cfg: dict | None, where: str) -> Objective:
        """Build an objective and prepare it; the network is float meanwhile."""
        objective = build_objective(cfg, self.labels, where)
        with self.model.quantization(weights=False, activations=False):
            objective.prepare(self)
        return objective
