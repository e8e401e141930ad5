"""Files of tensors: no code in them runs, no memory is taken that they do not hold, and they are written at once."""
import io
import os
import zipfile
import zlib
from collections.abc import Sequence

import torch

from mmquant.utils.files import replacing

SMALL = 2**20  # bytes that a broadcast tensor may take beyond its storage


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the text says what to do."""


class _Ignored:
    """Stands for any object of an unknown class in a checkpoint's meta data; holds nothing and does nothing."""

    def __init__(self, *args, **kwargs) -> None:
        pass

    __setstate__ = __init__


def read_tensors(path, known: Sequence = ()) -> dict:
    """Load a checkpoint with ``weights_only=True``; foreign objects in its meta data become inert placeholders.

    Classes and functions ``known`` are used as they are. Raises a CheckpointError if the file is missing, truncated,
    damaged or no checkpoint, or claims more memory than it has.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise CheckpointError(f'checkpoint {path} does not exist; give the path of a file, or download the '
                              'weights first')
    with open(path, 'rb') as file:  # once: another process may put a new file in its place
        return _read(file, path, known)


def from_bytes(raw: bytes, name: str):
    """As :func:`read_tensors`, for the content of a file."""
    return _read(io.BytesIO(raw), name)


def _read(file, name: str, known: Sequence = ()):
    try:
        records = _check_records(file)
        with torch.serialization.safe_globals([*known]):
            try:
                foreign = torch.serialization.get_unsafe_globals_in_checkpoint(_rewound(file))
            except Exception:  # no zip archive, or a damaged one: the next lines say so
                foreign = []
        with torch.serialization.safe_globals([*known, *((_Ignored, name) for name in foreign)]):
            data = torch.load(_rewound(file), map_location='cpu', weights_only=True)
        _check_claims(data, records)
        return data
    except Exception as error:  # torch.load raises almost anything on damaged files
        if isinstance(error, _RefusedError):
            reason = str(error)
        else:  # of torch's text what is wrong, without its advice to load unsafely
            told = str(error).rpartition('WeightsUnpickler error:')[2].strip().partition('\n')[0].partition('. ')[0]
            reason = 'no further information' if not told or 'weights_only' in told or 'globals' in told else told
            reason = f'{type(error).__name__}: {reason}'
        raise CheckpointError(f'checkpoint {name} cannot be read ({reason}); it is truncated, damaged, or holds '
                              'objects other than tensors and plain values. Copy or download it again, or save its '
                              'state_dict alone') from None


class _RefusedError(ValueError):
    """What is wrong with a file, in a few words."""


def _rewound(file):
    file.seek(0)
    return file


def _check_records(file) -> int | None:
    """Bytes of an archive's records, None for the format before archives.

    Raises _RefusedError for compressed or overlapping records, which could claim any size, and for a wrong checksum:
    torch.load compares none, and a flipped bit would be a wrong weight.
    """
    if not zipfile.is_zipfile(_rewound(file)):
        return None
    with zipfile.ZipFile(_rewound(file)) as archive:
        infos = archive.infolist()
        total = sum(x.file_size for x in infos)
        size = file.seek(0, os.SEEK_END)
        packed = [x.filename for x in infos if x.compress_type != zipfile.ZIP_STORED]
        if packed or total > size:
            raise _RefusedError(f'compressed record {packed[0]}' if packed else
                                f'its records claim {total} bytes of {size}')
        reader = torch._C.PyTorchFileReader(_rewound(file))  # what torch.load reads with
        broken = [x.filename for x in infos
                  if zlib.crc32(reader.get_record(x.filename.partition('/')[2])) != x.CRC]
    if broken:
        raise _RefusedError(f'wrong checksum: {broken[0]}')
    return total


def _check_claims(data, records: int | None) -> None:
    """Raise _RefusedError for tensors that are larger than what the file holds of them."""
    todo, storages = [data], {}
    seen = set()
    while todo:
        value = todo.pop()
        if isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            todo += value.values() if isinstance(value, dict) else value
        elif isinstance(value, torch.Tensor) and value.layout == torch.strided:
            held = value.untyped_storage()
            storages[held.data_ptr()] = held.nbytes()
            size = value.numel() * value.element_size()
            if value.is_meta or size > max(held.nbytes(), SMALL):
                raise _RefusedError(f'a tensor of shape {tuple(value.shape)} on {held.nbytes()} bytes')
    if records is not None and sum(storages.values()) > records:
        raise _RefusedError(f'its tensors claim {sum(storages.values())} bytes of {records}')


def write_atomically(path, data: dict) -> str:
    """Write with ``torch.save`` to a temporary file, flush it to disk, then rename; returns the path.

    A process that is killed leaves the old file. Raises a CheckpointError if the disk is full or the folder cannot be
    written.
    """
    path = os.fspath(path)
    try:
        with replacing(path, 'wb') as stream:
            torch.save(data, stream)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f'cannot write {path} ({error}); free some disk space or choose another --work-dir. '
                              'The previous file is untouched') from error
    return path
