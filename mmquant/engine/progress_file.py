"""State of an unfinished run: saved after every unit, refused where it does not belong."""
from __future__ import annotations

import hashlib
import json
import os

import torch

from mmquant.algorithms.step import CalibrationContext
from mmquant.models.checkpoint import CheckpointError, read_tensors, write_atomically

NAME = 'progress.pth'


def digest(tensors) -> str:
    """SHA-256 over the bytes of tensors, in order."""
    total = hashlib.sha256()
    for x in tensors:
        total.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def fingerprint(context: CalibrationContext, settings: dict) -> dict[str, str]:
    """What must agree between a run and its resumption; taken before the first step."""
    text = json.dumps(settings, sort_keys=True, default=str)
    weights = (t for _, t in sorted(context.model.architecture.state_dict().items()))
    return dict(config=hashlib.sha256(text.encode()).hexdigest(), weights=digest(weights),
                calibration=digest(context.chunks))


class ProgressFile:
    """Writes and reads the state of a run.

    Args:
        path (str): File in the work dir.
        fingerprint (dict): From :func:`fingerprint`.
    """

    def __init__(self, path: str, fingerprint: dict[str, str]) -> None:
        self.path, self.fingerprint = path, fingerprint

    def save(self, context: CalibrationContext, step: int, unit: int, stages: list[dict],
             spent: dict | None = None) -> None:
        """Steps before ``step`` are done, in ``step`` the units up to ``unit`` (-1: none), at the cost of ``spent``."""
        model = context.model
        write_atomically(self.path, dict(
            fingerprint=self.fingerprint, step=step, unit=unit, stages=stages, records=context.records,
            spent=spent or {}, context_state=context.state,
            plan=model.plan.to_dict() if model.plan else None, state_dict=model.architecture.state_dict()))

    def load(self, path: str) -> dict:
        """The state saved in ``path``.

        Raises:
            CheckpointError: If there is none, it is damaged, or it belongs to another config, model or data.
        """
        if not os.path.isfile(path):
            raise CheckpointError(f'nothing to resume: {path} does not exist; start without --resume')
        data = read_tensors(path)
        for key, value in self.fingerprint.items():
            if data.get('fingerprint', {}).get(key) != value:
                raise CheckpointError(f'cannot resume from {path}: its {key} differs from this run\'s; use the same '
                                      'config, float weights and calibration images, or start without --resume')
        return data
