"""Files that are whole or not there, and folders with one writer."""
import contextlib
import fcntl
import hashlib
import json
import math
import os
import secrets
import socket
from pathlib import Path

HELD: dict[tuple[int, str], int] = {}  # (process, folder) -> how often it is locked
LOCK = '.lock'


class InUseError(ValueError):
    """A folder that another process writes into."""


@contextlib.contextmanager
def replacing(path, mode: str = 'w'):
    """A new file that takes the place of ``path``, a str or Path, once the block has ended and all is on disk.

    Its temporary name is unique and follows no link; after an error nothing is left of it and ``path`` is as it was.
    What a killed process leaves is removed by the next :func:`locked` of the folder.
    """
    path = os.path.abspath(path)
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f'.{name[:200]}.{secrets.token_hex(8)}.tmp')
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    try:
        with open(handle, mode, **({} if 'b' in mode else dict(encoding='utf-8', newline=''))) as stream:
            yield stream
            stream.flush()
            os.fsync(handle)
        os.replace(temporary, path)
    except BaseException:
        os.remove(temporary)
        raise
    sync_folder(folder)


def sync_folder(folder: str) -> None:
    """Wait until what was renamed in a folder is on disk."""
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def sha256_of(path) -> str:
    """SHA-256 of a file's bytes."""
    total = hashlib.sha256()
    with open(path, 'rb') as stream:
        while block := stream.read(2**20):
            total.update(block)
    return total.hexdigest()


def write_text(path, text: str) -> str:
    """Write a text at once (:func:`replacing`); returns the path."""
    with replacing(path) as stream:
        stream.write(text)
    return str(path)


def write_json(path, data, sort_keys: bool = False) -> str:
    """Write plain values at once (:func:`replacing`), with a line end; returns the path.

    Numbers that are not finite become null: strict JSON has none, and most readers refuse ``Infinity`` and ``NaN``.
    """
    return write_text(path, json.dumps(_finite(data), indent=1, sort_keys=sort_keys, allow_nan=False) + '\n')


def read_json(path):
    """What a JSON file holds; ``Infinity`` and ``NaN`` are None, as :func:`write_json` has them."""
    with open(path, encoding='utf-8') as stream:
        return json.load(stream, parse_constant=lambda _: None)


def _finite(value):
    if isinstance(value, float):  # numpy's float64 is one, too
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


@contextlib.contextmanager
def locked(folder):
    """Hold a folder, made if need be, for this process alone; again inside is fine. The lock ends with the process.

    Raises an InUseError, which names the other process, where there is one.
    """
    folder = os.path.realpath(folder)
    key = os.getpid(), folder
    if HELD.get(key):  # a second opening of the file would end the lock when it is closed
        HELD[key] += 1
        try:
            yield
        finally:
            HELD[key] -= 1
        return
    os.makedirs(folder, exist_ok=True)
    # a lock of POSIX, not of flock, which the workers of data loaders would hold after the process was killed
    handle = os.open(os.path.join(folder, LOCK), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    with open(handle, 'r+') as stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise InUseError(f'{folder} is in use by {stream.read().strip() or "another process"}; wait until it has '
                             'ended, or choose another --work-dir') from error
        stream.truncate(0)
        stream.write(f'process {os.getpid()} on {socket.gethostname()}')
        stream.flush()
        for rest in Path(folder).glob('.*.' + '[0-9a-f]' * 16 + '.tmp'):
            rest.unlink(missing_ok=True)
        HELD[key] = 1
        try:
            yield
        finally:
            del HELD[key]
