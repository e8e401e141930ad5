"""Hostile and damaged files of tensors: nothing runs, no memory is taken that they do not hold."""
import io
import os
import resource
import zipfile
import zlib

import pytest
import torch

from mmquant.models.packed_state import PackedError, grow
from mmquant.utils.tensor_files import CheckpointError, read_tensors


class Payload:

    def __reduce__(self):
        return os.system, ('true', )


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def repacked(path, compression) -> str:
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(f'{path}.zip', 'w', compression) as target:
        for x in source.infolist():
            target.writestr(x.filename, source.read(x.filename))
    return f'{path}.zip'


def test_compressed_records_are_refused_before_memory_is_taken(tmp_path):
    torch.save(dict(x=torch.zeros(2**20)), tmp_path / 'w.pth')
    path = repacked(tmp_path / 'w.pth', zipfile.ZIP_DEFLATED)
    assert os.path.getsize(path) < 2**14
    with zipfile.ZipFile(path, 'a', zipfile.ZIP_DEFLATED) as archive, archive.open('w/data/9', 'w') as record:
        for _ in range(64):
            record.write(bytes(2**23))  # 512 MiB
    before = peak()
    with pytest.raises(CheckpointError, match=r'cannot be read \(compressed record '):
        read_tensors(path)
    assert peak() - before < 2**27


@pytest.mark.parametrize('place', ['outside', 'inside'])
def test_broadcast_tensors_are_refused(tmp_path, place):
    data = dict(state_dict=dict(x=torch.zeros(1).expand(2**40)), small=torch.ones(1, 1).expand(3, 4))
    torch.save(data if place == 'outside' else [dict(y=(data, ))], tmp_path / 'w.pth')
    with pytest.raises(CheckpointError, match=r'a tensor of shape \(1099511627776,\) on 4 bytes'):
        read_tensors(tmp_path / 'w.pth')
    torch.save(data['small'], tmp_path / 'w.pth')
    assert read_tensors(tmp_path / 'w.pth').shape == (3, 4)


def test_a_description_of_zeros_is_not_inflated():
    packer, data = zlib.compressobj(9), b''
    for _ in range(512):
        data += packer.compress(bytes(2**20))
    before = peak()
    with pytest.raises(PackedError, match='is cut, or larger than'):
        grow(torch.frombuffer(bytearray(data + packer.flush()), dtype=torch.uint8))
    assert peak() - before < 2**28


@pytest.mark.parametrize('zipped', [True, False])
def test_no_error_advises_to_load_unsafely(tmp_path, zipped):
    for data in (Payload(), dict(a=Payload()), {'a': [Payload(), torch.ones(1)]}):
        torch.save(data, tmp_path / 'p.pth', _use_new_zipfile_serialization=zipped)
        try:
            read_tensors(tmp_path / 'p.pth')
        except CheckpointError as error:
            text = f'{error}{error.__cause__}'
            assert error.__suppress_context__ and 'save its state_dict alone' in text
            assert 'weights_only' not in text and 'add_safe_globals' not in text


def test_claims_of_storages_beyond_the_file(tmp_path):
    buffer = io.BytesIO()
    torch.save(torch.zeros(4), buffer)
    with zipfile.ZipFile(buffer) as archive:
        records = {x.filename: archive.read(x.filename) for x in archive.infolist()}
    key = next(k for k in records if k.endswith('data.pkl'))
    forged = records[key].replace(b'K\x04tq', b'M\xff\x7ftq')  # 32767 numbers in a storage of 4
    assert forged != records[key]
    with zipfile.ZipFile(tmp_path / 'w.pth', 'w') as archive:
        for name, content in {**records, key: forged}.items():
            archive.writestr(name, content)
    with pytest.raises(CheckpointError, match='cannot be read'):
        read_tensors(tmp_path / 'w.pth')
