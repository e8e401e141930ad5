"""Exported files: QDQ, packed, and the sidecar; each whole or not there."""
from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mmquant.export.packed import pack
from mmquant.export.parts import REGION_HEADS, Regions, parts_of
from mmquant.export.preparation import float_stand_ins, prepare
from mmquant.export.qdq import export_qdq
from mmquant.export.sidecar import FORMAT, sidecar
from mmquant.export.tracing import ExportError
from mmquant.models import QuantizedModel
from mmquant.models.deploy_profiles import find_profile
from mmquant.registry import EXPORTERS
from mmquant.utils.files import replacing, sha256_of, write_json


@dataclass(frozen=True)
class Exported:
    """Where the files of a model are, in the order of its parts; ``packed`` is empty unless asked for."""
    qdq: tuple[str, ...]
    packed: tuple[str, ...]
    sidecar: str


@EXPORTERS.register_module('onnx')
def export(model: QuantizedModel, path: str | os.PathLike, images: Tensor | Sequence[Tensor], profile: str = 'ort_cpu',
           packed: bool = False, batch: int | None = None, allow_float: bool = False,
           samples: list[list] | None = None) -> Exported:
    """Write a quantized model as ONNX files that integer kernels run, and ``.json`` beside them.

    The model gets what it lacks for that (quantizers between operations, rounded biases: :func:`prepare`), so that it
    computes what the files do.

    Args:
        model (QuantizedModel): With ranges.
        path (str | PathLike): ``model.onnx``; a detector of two stages becomes ``model_features.onnx`` and
            ``model_regions.onnx``, of several heads ``model_bbox_head_0.onnx``, ...; packed files end in
            ``_packed.onnx``.
        images (Tensor | Sequence[Tensor]): Preprocessed calibration images (N, C, H, W) of the size that the file shall
            take; chunks of them.
        profile (str): Name of a :class:`DeployProfile`. Default ``'ort_cpu'``.
        packed (bool): Also write files whose weights take 4 or 2 bits. Default False.
        batch (int | None): Fixed batch size. Default: any.
        allow_float (bool): Keep layers that the profile does not take in float, instead of an error. Default False.
        samples (list | None): Data samples of each chunk, for detectors.

    Raises:
        ExportError: For what the profile cannot express, with the layer and the way out; for images of several sizes.
        ImportError: The packages of requirements/export.txt are missing.
        OSError: The file cannot be written; there is no half of it.
    """
    chunks = [images] if isinstance(images, Tensor) else list(images)
    if not chunks or not len(chunks[0]):
        raise ExportError('there are no images: give some calibration images of the size that the file shall take')
    if len({tuple(x.shape[1:]) for x in chunks}) > 1:
        raise ExportError('the images have several sizes, a file takes one: give images of one size')
    prepare(model, chunks, profile, samples)
    kept: dict[str, str] = {}
    path, qdq, small = Path(path), [], []
    with float_stand_ins(model), torch.no_grad():
        for part in parts_of(model):
            proto = export_qdq(model, part, part.example(model, chunks[0][:2]), profile,
                               None if isinstance(part, Regions) else batch, kept if allow_float else None)
            qdq.append(_write(_named(path, part.title), proto))
            if packed:
                tiny = pack(proto, find_profile(profile).smallest_packed)
                small.append(_write(_named(path, part.title, 'packed'), tiny))
        about = sidecar(model, tuple(chunks[0].shape[1:]), profile, kept)
    about['files'] = [dict(name=Path(x).name, sha256=sha256_of(x)) for x in (*qdq, *small)]
    return Exported(tuple(qdq), tuple(small), write_json(path.with_suffix('.json'), about))


def _named(path: Path, *words: str) -> Path:
    return path.with_name('_'.join(x for x in (path.stem, *words) if x) + '.onnx')


def _write(path: Path, proto) -> str:
    with replacing(path, 'wb') as stream:
        stream.write(proto.SerializeToString(deterministic=True))
    return str(path)


def read_sidecar(path: str | os.PathLike) -> dict:
    """The sidecar of an exported file, itself or beside it, its files checked by their hashes.

    Raises:
        ExportError: It is missing or damaged, of a newer version, or a file is missing, truncated or altered.
    """
    path = Path(path)
    stems = [path.stem.removesuffix('_packed')]
    stems.append(re.sub(rf'_(features|regions|({"|".join(REGION_HEADS)})(_\d+)?)$', '', stems[0]))
    found = next((p for stem in stems if (p := path.with_name(f'{stem}.json')).is_file()), None)
    if found is None:
        raise ExportError(f'{path} has no sidecar: expected {path.with_name(stems[-1] + ".json")}, which '
                          'tools/export.py writes beside the file; export again')
    try:
        about = json.loads(found.read_text(encoding='utf-8'))
        files, newest = about['files'], about['format'] > FORMAT
    except (KeyError, TypeError, ValueError) as error:
        raise ExportError(f'{found} is no sidecar of an exported model ({type(error).__name__}: {error}); export again'
                          ) from error
    if newest:
        raise ExportError(f'{found} has format {about["format"]}, this mmquant reads up to {FORMAT}; update mmquant')
    for entry in files:
        file = found.with_name(Path(str(entry['name'])).name)
        if not file.is_file():
            raise ExportError(f'{file}, which {found.name} names, is missing; export again')
        if sha256_of(file) != entry['sha256']:
            raise ExportError(f'{file} is not the file that was exported (its SHA-256 differs): truncated or altered; '
                              'copy it again or export again')
    return about
