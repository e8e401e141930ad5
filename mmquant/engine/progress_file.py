"""State of an unfinished run: saved after every unit, refused where it does not belong."""
import hashlib
import json
import os

import torch

from mmquant.algorithms.step import CalibrationContext
from mmquant.models.checkpoint import CheckpointError, read_tensors, write_atomically
from mmquant.utils.building import differing_keys
from mmquant.utils.distributed import gather_list, one_writes

NAME = 'progress.pth'
MADE_WITH = {'config': 'another config', 'model': 'another model', 'weights': 'other float weights',
             'calibration': 'other calibration images', 'evaluation': 'another evaluation'}


def digest(tensors) -> str:
    """SHA-256 over the bytes of tensors, in order."""
    total = hashlib.sha256()
    for x in tensors:  # a module may have a state that is no tensor
        total.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
                     if isinstance(x, torch.Tensor) else repr(x).encode())
    return total.hexdigest()


def fingerprint(context: CalibrationContext, settings: dict, evaluation: dict | None = None) -> dict[str, str]:
    """What must agree between a run and its resumption; taken before the first step.

    ``evaluation``: plain values that say on which images a run measures, and how.
    """
    def of(value) -> str:
        return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()

    weights = (t for _, t in sorted(context.model.architecture.state_dict().items()))
    images = gather_list([digest([image]) for chunk in context.chunks for image in chunk])
    return dict(config=of(settings), model=of(context.model.structure), weights=digest(weights),
                calibration=hashlib.sha256(''.join(images).encode()).hexdigest(), evaluation=of(evaluation))


class ProgressFile:
    """Writes and reads the state of a run.

    Args:
        path (str): File in the work dir.
        fingerprint (dict): From :func:`fingerprint`.
        told (dict | None): Plain values by the fingerprint's keys, for the text of a mismatch.
    """

    def __init__(self, path: str, fingerprint: dict[str, str], told: dict | None = None) -> None:
        self.path, self.fingerprint, self.told = path, fingerprint, told or {}

    @one_writes
    def save(self, context: CalibrationContext, step: int, unit: int, stages: list[dict],
             spent: dict | None = None) -> None:
        """Steps before ``step`` are done, in ``step`` the units up to ``unit`` (-1: none), at the cost of ``spent``."""
        model = context.model
        write_atomically(self.path, dict(
            fingerprint=self.fingerprint, told=self.told, step=step, unit=unit, stages=stages, records=context.records,
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
        if not isinstance(data, dict) or not isinstance(data.get('fingerprint'), dict):
            raise CheckpointError(f'cannot resume from {path}: it holds no state of a run; give the {NAME} of a '
                                  'work dir')
        changed = [f'{text}{self._difference(key, data)}' for key, text in MADE_WITH.items() if key in self.fingerprint
                   and data['fingerprint'].get(key) != self.fingerprint[key]]
        if changed:
            raise CheckpointError(f'cannot resume from {path}: it was made with {" and ".join(changed)}; use the same '
                                  'config, model, float weights and images, or start without --resume')
        return data

    def _difference(self, key: str, data: dict) -> str:
        if key not in data['fingerprint']:
            return ' (an older mmquant did not record it)'
        keys = differing_keys(data['told'][key], self.told[key]) if key in data.get('told', {}) else []
        more = f' and {len(keys) - 5} more' if len(keys) > 5 else ''
        return f' ({", ".join(keys[:5])}{more})' if keys else ''
