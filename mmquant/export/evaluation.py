"""The ordinary test loop on exported files: the model's own post-processing, fed by a runtime."""
from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

import torch
from mmengine.logging import print_log
from torch import Tensor

from mmquant.export.executor.graph_executor import GraphExecutor
from mmquant.export.files import read_sidecar
from mmquant.export.parts import Run, in_runtime, padded
from mmquant.export.runtime import INTEGER_ONLY, RuntimeSession
from mmquant.export.saturation import cpu_saturates, saturates
from mmquant.models import QuantizedModel


class IntegerOnly:
    """The executor in the place of a runtime: fixed-point multipliers, one rounding, no float between input and output.

    Integer-arithmetic-only inference as of Jacob et al., arXiv 1712.05877, with one rounding instead of two.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.executor = GraphExecutor(path, 'single')
        self.inputs, self.output_names = self.executor.view.inputs, self.executor.view.outputs

    def run(self, inputs: dict) -> dict:
        """Outputs by name, as of :class:`RuntimeSession`."""
        return self.executor.run(inputs)


def files_of(path: str | os.PathLike, about: dict) -> list[Path]:
    """Files of all parts that belong to one of them, packed ones if that is packed, in order."""
    path, packed = Path(path), Path(path).stem.endswith('_packed')
    names = [x['name'] for x in about['files'] if x['name'].endswith('_packed.onnx') == packed]
    return [path.with_name(Path(name).name) for name in names]


def runner_of(session: RuntimeSession, batch: int | None) -> Run:
    """A part in a runtime; a file of a fixed batch size runs as often as needed."""
    name = session.inputs[0].name

    def run(x: Tensor) -> list[Tensor]:
        size = batch or max(len(x), 1)
        found = []
        for start in range(0, max(len(x), 1), size):
            rows = x[start:start + size].float().contiguous()
            count = len(rows)
            if batch and count < batch:
                rows = torch.cat([rows, rows[-1:].expand(batch - count, *rows.shape[1:])])
            outputs = session.run({name: rows.cpu().numpy()})
            found.append([torch.from_numpy(outputs[n])[:count] for n in session.output_names])
        return [torch.cat(pieces).to(x.device) for pieces in zip(*found)]

    return run


@contextlib.contextmanager
def deployed(model: QuantizedModel, path: str | os.PathLike, provider: str = 'onnxruntime', optimize: bool = True,
             threads: int = 1):
    """Let exported files answer for a model of the same architecture inside a ``with`` block; yields the sidecar.

    Weights and quantizers of ``model`` do not matter. A detector's images are padded to the size of the file.

    Raises:
        ExportError: The sidecar or a file is missing or altered.
        ValueError: The runtime cannot load a file, or the model has no head that could take its outputs.
    """
    about = read_sidecar(path)
    options = dict(provider=provider, threads=threads)
    if provider == 'onnxruntime':
        options |= dict(optimize=optimize, disabled_optimizers=about['runtime']['disabled_optimizers'])
    sessions = [IntegerOnly(file) if provider == INTEGER_ONLY else RuntimeSession(file, **options)
                for file in files_of(path, about)]
    _warn_of_saturation(provider, files_of(path, about))
    runs, shape = [runner_of(session, fixed_batch(session)) for session in sessions], tuple(about['input']['shape'])
    device = next(model.architecture.parameters()).device
    first = runs[0]
    runs[0] = lambda images: first(padded(images, shape))
    with in_runtime(model, runs, torch.zeros(1, *shape, device=device)):
        yield about


def _warn_of_saturation(provider: str, files: list[Path]) -> None:
    """OpenVINO has no switch for exact sums on x86 without VNNI."""
    wrong = [name for file in files for name in saturates(file)] if provider == 'openvino' and cpu_saturates() else []
    if wrong:
        print_log(f'openvino: this CPU has no VNNI; sums of two products are cut off to 16 bits in {len(wrong)} layers '
                  f'(first: {wrong[0]}), whose weights leave -64..63. Accuracies are too low here; CPUs with VNNI have '
                  'no such limit', 'current', logging.WARNING)


def fixed_batch(session: RuntimeSession) -> int | None:
    """Fixed first size of a file's input."""
    first = session.inputs[0].type.tensor_type.shape.dim[0]
    return first.dim_value if first.HasField('dim_value') else None
