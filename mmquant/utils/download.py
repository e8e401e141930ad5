"""Weights from the network: one file an address, whole, and what its name promises."""
import contextlib
import fcntl
import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from urllib.parse import unquote, urlsplit

import torch

from mmquant.utils.files import sha256_of, sync_folder, write_text
from mmquant.utils.tensor_files import CheckpointError

TIMEOUT = 20  # seconds without an answer, or without a byte
PROMISE = re.compile(r'-(?!20\d{6}[-_.])([0-9a-f]{8,64})(?=\.[^-]*$)')  # eight digits may also be a date


def is_address(source: str) -> bool:
    """Whether a source of weights is to be downloaded."""
    return source.startswith(('http://', 'https://'))


def fetch(source) -> str:
    """Local path of weights, from a path or an address; an address is downloaded once into torch's hub folder.

    A name that ends in a hash, as in ``resnet18-fbbb1da6.pth``, is held to it. Raises a CheckpointError if a download
    fails, ends early or stands still for 20 s, or the content is not what the name promises. What arrived is left only
    where the server can go on with it, as the next call asks it to.
    """
    source = os.fspath(source)
    if not is_address(source):
        if os.path.isfile(source):
            _check_promise(source, source)
        return source
    folder = os.path.join(torch.hub.get_dir(), 'checkpoints')
    name = os.path.basename(unquote(urlsplit(source).path)) or 'weights.pth'
    known = os.path.join(folder, name)  # where torch.hub puts it, by its name alone
    if PROMISE.search(name) and os.path.isfile(known) and _keeps_promise(known):
        return known
    target = os.path.join(folder, 'mmquant', hashlib.sha256(source.encode()).hexdigest()[:16], name)
    if not os.path.isfile(target):
        try:
            _download(source, target)
        except (http.client.HTTPException, OSError, ValueError) as error:
            raise CheckpointError(
                f'the weights {source} cannot be downloaded ({error}); download the file elsewhere and pass '
                'its path: --cfg-options model.float_checkpoint=PATH. The embedded config '
                'configs/brecq/resnet18_w2a4_digits.py needs no download') from error
    try:
        _check_promise(target, source)
    except CheckpointError:
        os.remove(target)
        raise
    return target


def _download(address: str, target: str) -> None:
    """Into ``target``.part, then renamed; another process that downloads the same is waited for."""
    part, version = f'{target}.part', f'{target}.part.version'
    with _alone(part, target) as stream:
        if os.path.isfile(target):  # by the process that held it
            _remove(part)
            return
        try:
            _receive(address, stream, version)
        except BaseException as error:
            arrived = os.fstat(stream.fileno()).st_size
            if not arrived or not _text_of(version):
                _remove(part, version)
                _remove_empty(os.path.dirname(target))
            elif isinstance(error, (http.client.HTTPException, OSError)):
                raise OSError(f'{error}; {arrived} bytes are kept: try again, which goes on there') from error
            raise
        os.fsync(stream.fileno())
        os.replace(part, target)
        sync_folder(os.path.dirname(target))
        _remove(version)


def _remove(*paths: str) -> None:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


def _remove_empty(folder: str) -> None:
    """Remove the folder of an address, and that of all addresses, unless something is there."""
    with contextlib.suppress(OSError):
        os.rmdir(folder)
        os.rmdir(os.path.dirname(folder))


@contextlib.contextmanager
def _alone(path: str, becomes: str):
    """The file for writing, held against other processes and threads; made unless it is there, or became another."""
    while True:
        os.makedirs(os.path.dirname(path), exist_ok=True)  # another may have removed it, empty, meanwhile
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        with open(handle, 'r+b', buffering=0) as stream:
            fcntl.flock(handle, fcntl.LOCK_EX)
            try:
                still = os.path.samestat(os.fstat(handle), os.stat(path))
            except FileNotFoundError:
                still = False  # renamed or removed by the one that was waited for
            if still or os.path.isfile(becomes):
                yield stream
                return


def _receive(address: str, stream, version: str) -> None:
    """Add to a stream what it lacks. ``version`` names the file that tells what the server called the rest."""
    have, known = os.fstat(stream.fileno()).st_size, _text_of(version)
    have = have if known else 0
    headers = {'User-Agent': 'mmquant', **({'Range': f'bytes={have}-', 'If-Range': known} if have else {})}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or not have:
            raise
        stream.truncate(0)
        return _receive(address, stream, version)
    with answer:
        begin = have if answer.status == http.client.PARTIAL_CONTENT else 0  # else the whole, which may have changed
        if begin and not answer.headers.get('Content-Range', '').startswith(f'bytes {begin}-'):
            stream.truncate(0)
            raise OSError(f'the server sent {answer.headers.get("Content-Range")}, not what follows byte {begin}')
        stream.seek(begin), stream.truncate()
        write_text(version, _version_of(answer, bool(begin)))
        length, received = answer.headers.get('Content-Length'), begin
        while block := answer.read1(2**20):
            if stream.write(block) != len(block):
                raise OSError('no room for the file')
            received += len(block)
        if length is not None and received != begin + int(length):
            raise OSError(f'{received} of {begin + int(length)} bytes arrived')


def _version_of(answer, partial: bool) -> str:
    """What an answer's content can be asked for again by; empty where the server gives no parts of it."""
    tag = answer.headers.get('ETag', '')
    ranges = partial or answer.headers.get('Accept-Ranges') == 'bytes'
    return (tag if tag and not tag.startswith('W/') else answer.headers.get('Last-Modified', '')) if ranges else ''


def _text_of(path: str) -> str:
    with contextlib.suppress(FileNotFoundError), open(path, encoding='utf-8') as stream:
        return stream.read()
    return ''


def _keeps_promise(path: str) -> bool:
    """Whether the SHA-256 of a file begins as its name ends."""
    return sha256_of(path).startswith(PROMISE.search(os.path.basename(path))[1])


def _check_promise(path: str, source: str) -> None:
    if PROMISE.search(os.path.basename(path)) and not _keeps_promise(path):
        raise CheckpointError(f'{source} is not what its name promises: its SHA-256 does not begin with the digits at '
                              'the end of the name. It is damaged or another file: get it again, or rename it')
