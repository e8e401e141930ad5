"""Where cached activations live: on the device, in host memory or on disk, each within a number of bytes."""
import os
import re
import tempfile
import weakref
from math import prod

import torch

from mmquant.utils.building import ConfigError

UNITS = dict(b=1, kib=2**10, mib=2**20, gib=2**30, tib=2**40, kb=10**3, mb=10**6, gb=10**9, tb=10**12)
TIERS = ('device', 'host', 'disk')


def parse_bytes(size: int | str | None, key: str) -> int | None:
    """Bytes of ``'2GiB'``, ``'500MB'`` or a plain number; None: no limit. ConfigError if it is neither."""
    if size is None or (isinstance(size, int) and not isinstance(size, bool) and size >= 0):
        return size
    found = re.fullmatch(r'\s*([0-9.]+)\s*([a-z]+)\s*', size.lower()) if isinstance(size, str) else None
    if found is None or found[2] not in UNITS:
        raise ConfigError(f'{key} must be a number of bytes such as 2**31 or "2GiB", or None for no limit, got '
                          f'{size!r}')
    return int(float(found[1]) * UNITS[found[2]])


class Cache:
    """Keeps tensors within a budget; what does not fit on a tier goes to the next one.

    Args:
        device, host, disk (int | str | None): Bytes of cached tensors on the accelerator, in host memory and in files,
            see :func:`parse_bytes`. Tensors of a model on the CPU begin at ``host``.
        folder (str | PathLike | None): Where the file goes, which has no name and ends with the process. Default: the
            system's temporary folder.
    """

    def __init__(self, device: int | str | None = None, host: int | str | None = None, disk: int | str | None = None,
                 folder: str | os.PathLike | None = None) -> None:
        self.limits = {tier: parse_bytes(size, f'cache.{tier}') for tier, size in zip(TIERS, (device, host, disk))}
        self.used, self.peak, self.file = dict.fromkeys(TIERS, 0), dict.fromkeys(TIERS, 0), _Rooms(folder)

    @property
    def has_budget(self) -> bool:
        """Whether memory is limited; if not, :meth:`put` returns what it is given."""
        return self.limits['device'] is not None or self.limits['host'] is not None

    def put(self, x: torch.Tensor) -> 'torch.Tensor | CachedTensor':
        """Keep a tensor; read it with :func:`load` or :meth:`CachedTensor.rows`.

        Raises a MemoryError if it fits nowhere, an OSError if the disk is full before its limit is reached.
        """
        if not self.has_budget:
            return x
        size = x.numel() * x.element_size()
        for tier in TIERS[x.device.type == 'cpu':]:
            limit = self.limits[tier]
            if limit is None or self.used[tier] + size <= limit:
                return CachedTensor(self, x.detach(), tier, size)
        limits = ', '.join(f'{tier} {n / 2**30:.2f} GiB' for tier, n in self.limits.items() if n is not None)
        raise MemoryError(f'the cache is full ({limits}): {size / 2**20:.0f} MiB more are needed; raise '
                          'train_cfg.cache.disk, or calibrate with fewer or smaller images')

    def _account(self, tier: str, size: int) -> None:
        self.used[tier] += size
        self.peak[tier] = max(self.peak[tier], self.used[tier])


class _Rooms:
    """A file without a name, so that nothing is left of it whatever happens; rooms of it are used again."""

    def __init__(self, folder) -> None:
        self.folder, self.stream, self.end = folder, None, 0
        self.free: list[tuple[int, int]] = []  # (begin, end) of rooms below ``end``, in order, none touching another

    def write(self, data: memoryview) -> int:
        """Where the data begin now."""
        if self.stream is None:
            self.stream = tempfile.TemporaryFile(dir=self.folder, buffering=0)
        begin = next((b for b, e in self.free if e - b >= len(data)), self.end)
        self.free = [(b + len(data) if b == begin else b, e) for b, e in self.free if (b, e) != (begin, b + len(data))]
        self.end = max(self.end, begin + len(data))
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(self.stream.fileno(), data[done:], begin + done)
        except OSError as error:
            self.release(begin, len(data))
            where = self.folder or tempfile.gettempdir()
            raise OSError(error.errno, f'{os.strerror(error.errno)}: {len(data)} bytes of activations do not fit into '
                          f'{where}; set train_cfg.cache.folder to a larger disk') from error
        return begin

    def read(self, into: memoryview, begin: int) -> None:
        while len(into):
            count = os.preadv(self.stream.fileno(), [into], begin)
            if not count:
                raise OSError('the file of cached activations was cut')
            into, begin = into[count:], begin + count

    def release(self, begin: int, size: int) -> None:
        joined = []
        for b, e in sorted([*self.free, (begin, begin + size)] if size else self.free):
            if joined and joined[-1][1] == b:
                joined[-1] = joined[-1][0], e
            else:
                joined.append((b, e))
        if joined and joined[-1][1] == self.end:
            self.end = joined.pop()[0]
            os.ftruncate(self.stream.fileno(), self.end)
        self.free = joined


class CachedTensor:
    """A tensor in a :class:`Cache`; its room is given back when nobody refers to it any more."""

    def __init__(self, cache: Cache, x: torch.Tensor, tier: str, size: int) -> None:
        self.shape, self.dtype, self.device = x.shape, x.dtype, x.device
        self.last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
        if tier == 'disk':
            rows = (x.permute(0, 2, 3, 1) if self.last else x.contiguous()).cpu()
            self.tensor, self.file = None, cache.file
            self.begin = self.file.write(rows.reshape(-1).view(torch.uint8).numpy().data)
            weakref.finalize(self, self.file.release, self.begin, size)
        else:
            self.tensor = x.cpu() if tier == 'host' else x
        cache._account(tier, size)
        weakref.finalize(self, cache._account, tier, -size)

    def load(self) -> torch.Tensor:
        """The tensor, on its device."""
        return self._read([0], prod(self.shape), self.shape) if self.tensor is None else self.tensor.to(self.device)

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """``tensor[index]``; of a file, only these rows are read."""
        if self.tensor is not None:
            return self.tensor.index_select(0, index.to(self.tensor.device)).to(self.device)
        return self._read(index.tolist(), prod(self.shape[1:]), (len(index), *self.shape[1:]))

    def _read(self, pieces: list[int], elements: int, shape: tuple[int, ...]) -> torch.Tensor:
        """Pieces of so many elements each, joined to ``shape``."""
        size = elements * self.dtype.itemsize
        content = bytearray(size * len(pieces))
        for i, piece in enumerate(pieces):
            self.file.read(memoryview(content)[i * size:(i + 1) * size], self.begin + piece * size)
        x = torch.frombuffer(content, dtype=self.dtype) if content else torch.empty(0, dtype=self.dtype)
        if self.last:
            n, c, h, w = shape
            return x.view(n, h, w, c).permute(0, 3, 1, 2).to(self.device)
        return x.view(shape).to(self.device)


def load(x):
    """The tensor that :meth:`Cache.put` was given; anything else as it is."""
    return x.load() if isinstance(x, CachedTensor) else x
