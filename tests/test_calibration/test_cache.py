import gc
import os

import pytest
import torch
from models_for_tests import full_disk, images

from mmquant.calibration.cache import Cache, CachedTensor, load, parse_bytes
from mmquant.calibration.unit_inputs import Rows, join, pick, run_in_chunks
from mmquant.utils.building import ConfigError


def test_sizes():
    assert [parse_bytes(x, 'k') for x in ('2GiB', '1.5 MiB', '3kb', 7, None)] == [2**31, 3 * 2**19, 3000, 7, None]
    for wrong in ('2 Gigs', '', -1, True, 1.5):
        with pytest.raises(ConfigError, match='train_cfg.cache.host must be a number of bytes such as'):
            parse_bytes(wrong, 'train_cfg.cache.host')


def test_without_limit_nothing_is_copied():
    x = images(3, 4)
    assert Cache().put(x) is x and load(x) is x and not Cache(disk=5).has_budget


@pytest.mark.parametrize('shape', [(5, 3), (5, 3, 4, 4), (5, ), ()])
def test_what_does_not_fit_goes_to_disk_and_comes_back(shape, tmp_path):
    cache = Cache(host=0, folder=str(tmp_path))
    x = torch.randn(shape)
    if len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    kept = cache.put(x)
    assert isinstance(kept, CachedTensor) and kept.tensor is None and not os.listdir(tmp_path)
    assert cache.used['disk'] == x.numel() * 4
    assert torch.equal(load(kept), x)
    if shape:
        rows = torch.tensor([4, 0, 4])
        assert torch.equal(kept.rows(rows), x[rows])
        assert kept.rows(rows).dim() != 4 or kept.rows(rows).is_contiguous(memory_format=torch.channels_last)
    del kept
    gc.collect()
    assert cache.file.end == 0 and cache.used == dict(device=0, host=0, disk=0)


def test_rooms_of_the_file_are_used_again(tmp_path):
    cache = Cache(host=0, folder=tmp_path)
    x = [images(n, 10, seed=n) for n in (3, 5, 2, 4, 5, 2)]
    a, b, c = (cache.put(t) for t in x[:3])
    assert [t.begin for t in (a, b, c)] == [0, 120, 320] and cache.file.end == 400
    del b
    gc.collect()
    d = cache.put(x[3])  # into the room of the second
    assert d.begin == 120 and cache.file.end == 400 and cache.file.free == [(280, 320)]
    assert all(torch.equal(load(t), v) for t, v in zip((a, c, d), (x[0], x[2], x[3])))
    del c, d
    gc.collect()
    assert cache.file.end == 120 and not cache.file.free and torch.equal(load(a), x[0])


def test_a_full_disk_leaves_nothing_and_counts_nothing(tmp_path):
    cache = Cache(host=0, folder=tmp_path)
    with full_disk(2**16), pytest.raises(OSError, match='65540 bytes of activations do not fit into .*cache.folder'):
        cache.put(torch.zeros(2**14 + 1))
    assert not os.listdir(tmp_path) and cache.used['disk'] == 0 == cache.file.end
    kept = cache.put(torch.ones(2**10))
    assert torch.equal(load(kept), torch.ones(2**10))


def test_memory_first_then_disk_then_an_error(tmp_path):
    cache = Cache(host=100, disk='48B', folder=str(tmp_path))
    kept = [cache.put(torch.zeros(3, 4)) for _ in range(3)]
    assert [k.tensor is None for k in kept] == [False, False, True]
    assert cache.peak == dict(device=0, host=96, disk=48)
    with pytest.raises(MemoryError, match='the cache is full .host 0.00 GiB, disk 0.00.*raise train_cfg.cache.disk'):
        cache.put(torch.zeros(3, 4))


def test_rows_of_several_chunks(tmp_path):
    cache = Cache(host=250, folder=str(tmp_path))
    chunks = [images(n, 3, 2, 2, seed=n) for n in (4, 1, 3)]
    together = torch.cat(chunks)
    rows = join(chunks, cache)
    assert isinstance(rows, Rows) and len(rows) == 8
    index = torch.tensor([7, 0, 4, 5, 0])
    assert torch.equal(pick(rows, index), together[index])
    both = pick((rows, together), index)
    assert torch.equal(both[0], both[1])
    doubled = run_in_chunks(lambda x: x * 2, rows, 3, cache)
    assert torch.equal(doubled.pick(torch.arange(8)), together * 2)
