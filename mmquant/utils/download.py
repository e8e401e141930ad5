"""Weights from the network: one file an address, whole, and what its name promises."""
import hashlib
import http.client
import os
import re
import urllib.request
from urllib.parse import unquote, urlsplit

import torch

from mmquant.utils.files import replacing, sha256_of
from mmquant.utils.tensor_files import CheckpointError

TIMEOUT = 20  # seconds without an answer, or without a byte
PROMISE = re.compile(r'-(?!20\d{6}[-_.])([0-9a-f]{8,64})(?=\.[^-]*$)')  # eight digits may also be a date


def is_address(source: str) -> bool:
    """Whether a source of weights is to be downloaded."""
    return source.startswith(('http://', 'https://'))


def fetch(source) -> str:
    """Local path of weights, from a path or an address; an address is downloaded once into torch's hub folder.

    A name that ends in a hash, as in ``resnet18-fbbb1da6.pth``, is held to it. Raises a CheckpointError if a download
    fails, ends early or stands still for 20 s, or the content is not what the name promises; nothing is left then.
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
    request = urllib.request.Request(address, headers={'User-Agent': 'mmquant'})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer, replacing(target, 'wb') as stream:
        expected, received = answer.headers.get('Content-Length'), 0
        while block := answer.read(2**20):
            received += stream.write(block)
        if expected is not None and received != int(expected):
            raise OSError(f'{received} of {expected} bytes arrived')


def _keeps_promise(path: str) -> bool:
    """Whether the SHA-256 of a file begins as its name ends."""
    return sha256_of(path).startswith(PROMISE.search(os.path.basename(path))[1])


def _check_promise(path: str, source: str) -> None:
    if PROMISE.search(os.path.basename(path)) and not _keeps_promise(path):
        raise CheckpointError(f'{source} is not what its name promises: its SHA-256 does not begin with the digits at '
                              'the end of the name. It is damaged or another file: get it again, or rename it')
