"""Files that are whole or not there, and folders with one writer."""
import json
import multiprocessing
import os
import stat

import numpy as np
import pytest
import torch

from mmquant.utils.files import InUseError, locked, read_json, replacing, sha256_of, write_json, write_text
from mmquant.utils.tensor_files import CheckpointError, read_tensors, write_atomically


def in_a_fork(function, *args) -> multiprocessing.Process:
    child = multiprocessing.get_context('fork').Process(target=function, args=args)
    child.start()
    return child


def test_what_is_written_is_whole(tmp_path):
    path = tmp_path / 'deep' / 'a.json'
    assert write_json(path, dict(b=1, a='é'), sort_keys=True) == str(path)
    assert json.loads(path.read_text()) == dict(a='é', b=1) and path.read_text().endswith('\n')
    assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600 and os.listdir(path.parent) == ['a.json']
    with pytest.raises(KeyError), replacing(path) as stream:
        stream.write('half')
        raise KeyError
    assert json.loads(path.read_text())['b'] == 1 and os.listdir(path.parent) == ['a.json']
    write_text(path, 'x')
    assert sha256_of(path).startswith('2d711642b726b04401627ca9fbac32f5')


def test_json_is_strict(tmp_path):
    """Readers outside of Python refuse Infinity and NaN; those of older files are read as what they are now."""
    def refuse(name):
        raise AssertionError(name)
    path = tmp_path / 'a.json'
    write_json(path, dict(a=float('inf'), b=[1.5, (float('nan'), -float('inf'))], c=dict(d=np.float64('nan'), e='NaN')))
    found = json.loads(path.read_text(), parse_constant=refuse)
    assert found == read_json(path) == dict(a=None, b=[1.5, [None, None]], c=dict(d=None, e='NaN'))
    path.write_text('{"a": NaN, "b": [-Infinity, 2.5]}')
    assert read_json(path) == dict(a=None, b=[None, 2.5])


def test_links_are_not_followed(tmp_path):
    (tmp_path / 'victim').write_text('precious')
    for name in ('s.pth', 's.pth.tmp', '.s.pth.tmp'):
        (tmp_path / name).symlink_to(tmp_path / 'victim')
    write_atomically(tmp_path / 's.pth', dict(x=1))
    assert (tmp_path / 'victim').read_text() == 'precious' and read_tensors(tmp_path / 's.pth') == dict(x=1)


def write_often(path, number: int) -> None:
    try:
        for _ in range(30):
            write_atomically(path, dict(x=torch.full((20000 * (1 + number), ), float(number))))
    except BaseException:
        os._exit(1)
    os._exit(0)


def test_two_writers_of_one_file(tmp_path):
    """Each writes it whole; whoever reads sees the one's or the other's."""
    path, found = tmp_path / 'r.pth', set()
    children = [in_a_fork(write_often, path, n) for n in (1, 2)]
    while any(child.is_alive() for child in children):
        if path.exists():
            x = read_tensors(path)['x']
            assert len(x) == 20000 * (1 + int(x[0])) and (x == x[0]).all()
            found.add(int(x[0]))
    assert [child.exitcode for child in children] == [0, 0] and found <= {1, 2} and os.listdir(tmp_path) == ['r.pth']


def try_lock(path) -> None:
    try:
        with locked(path):
            os._exit(0)
    except InUseError as error:
        os._exit(7 if f'in use by process {os.getppid()} on' in str(error) else 1)


def test_a_folder_has_one_writer(tmp_path):
    folder = tmp_path / 'w'
    rest = folder / f'.progress.pth.{"0f" * 8}.tmp'  # of a process that was killed
    with locked(folder), locked(folder):
        with locked(folder):
            pass
        child = in_a_fork(try_lock, folder)
        child.join()
        assert child.exitcode == 7
        rest.touch()
    child = in_a_fork(try_lock, folder)
    child.join()
    assert child.exitcode == 0 and not rest.exists()


def test_a_full_folder_is_told(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(CheckpointError, match='cannot write .*choose another --work-dir'):
        write_atomically(tmp_path / 'file' / 'q.pth', dict(a=1))
