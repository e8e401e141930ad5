"""Images in tar archives."""
import io
import tarfile

import cv2
import numpy as np
import pytest
from mmengine.dataset import pseudo_collate
from torch.utils.data import DataLoader

from mmquant.datasets import LoadImageFromTar, TarImageDataset


def write_tar(path, names, mode='w'):
    """Write PNG images whose pixels all hold the number of the member."""
    with tarfile.open(path, mode) as archive:
        for number, name in enumerate(names):
            content = cv2.imencode('.png', np.full((4, 6, 3), number, np.uint8))[1].tobytes()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return str(path)


@pytest.fixture
def archive(tmp_path):
    return write_tar(tmp_path / 'a.tar', ['t/dog/1.png', 't/cat/2.png', 't/cat/1.PNG', 't/readme.txt'])


def test_index(archive):
    dataset = TarImageDataset(archive)
    assert dataset.metainfo['classes'] == ('cat', 'dog')
    assert [dataset.get_data_info(i)['img_path'] for i in range(3)] == ['t/cat/1.PNG', 't/cat/2.png', 't/dog/1.png']
    assert dataset.get_gt_labels().tolist() == [0, 0, 1]


def test_data_root(archive, tmp_path):
    assert len(TarImageDataset('a.tar', data_root=str(tmp_path))) == 3


def test_images_in_worker_processes(archive):
    dataset = TarImageDataset(archive, pipeline=[dict(type='mmquant.LoadImageFromTar')], test_mode=True)
    batches = list(DataLoader(dataset, batch_size=1, num_workers=2, collate_fn=pseudo_collate))
    assert [int(batch['img'][0].max()) for batch in batches] == [2, 1, 0]
    assert dataset[0]['img'].shape == (4, 6, 3) and dataset[0]['img_shape'] == (4, 6)


def test_given_classes(archive):
    dataset = TarImageDataset(archive, metainfo=dict(classes=('horse', 'dog', 'cat')))
    assert dataset.get_gt_labels().tolist() == [2, 2, 1]
    with pytest.raises(ValueError, match=r"folders \['cat'\].*metainfo"):
        TarImageDataset(archive, metainfo=dict(classes=('dog', )))


def test_compressed_archive(tmp_path):
    path = write_tar(tmp_path / 'a.tar.gz', ['cat/1.png'], 'w:gz')
    with pytest.raises(ValueError, match='not an uncompressed tar archive.*Decompress it first'):
        TarImageDataset(path)


def test_no_image(tmp_path):
    with pytest.raises(ValueError, match='holds no file that ends with'):
        TarImageDataset(write_tar(tmp_path / 'a.tar', ['cat/1.txt']))


def test_missing_archive(tmp_path):
    with pytest.raises(FileNotFoundError):
        TarImageDataset('none.tar', data_root=str(tmp_path))


def test_undecodable_bytes(tmp_path):
    path = tmp_path / 'broken'
    path.write_bytes(b'no image at all')
    with pytest.raises(ValueError, match='cat/1.png in .*broken cannot be decoded'):
        LoadImageFromTar().transform(dict(tar_path=str(path), tar_offset=0, tar_size=15, img_path='cat/1.png'))


def test_half_an_archive_is_no_smaller_one(tmp_path):
    """Cut between members, Python's reader sees nothing wrong."""
    data = open(write_tar(tmp_path / 'a.tar', [f'c/{i}.png' for i in range(10)]), 'rb').read()
    assert len(TarImageDataset(str(tmp_path / 'a.tar'))) == 10
    for size in (1024 * 5, 1024 * 5 + 512, 1024 * 5 + 700, 1024 * 10):
        (tmp_path / 'half.tar').write_bytes(data[:size])
        with pytest.raises(ValueError, match=r'half\.tar is (cut off|not an uncompressed tar archive)'):
            TarImageDataset(str(tmp_path / 'half.tar'))
    end = data.rstrip(b'\0')
    (tmp_path / 'one.tar').write_bytes(data[:-(-len(end) // 512) * 512 + 512])  # one block of zeros is an end
    assert len(TarImageDataset(str(tmp_path / 'one.tar'))) == 10
    broken = bytearray(data)
    broken[1024 * 4] ^= 255  # in a header: another end for Python
    for content in (bytes(broken), data + data):
        (tmp_path / 'odd.tar').write_bytes(content)
        with pytest.raises(ValueError, match='is cut off, damaged, or several archives in one'):
            TarImageDataset(str(tmp_path / 'odd.tar'))


@pytest.mark.parametrize('kind, text', [(tarfile.LNKTYPE, 'link'), (tarfile.SYMTYPE, 'link'),
                                        (tarfile.GNUTYPE_SPARSE, 'sparse file')])
def test_members_without_bytes_of_their_own(tmp_path, kind, text):
    path = write_tar(tmp_path / 'a.tar', ['c/1.png'])
    with tarfile.open(path, 'a') as archive:
        member = tarfile.TarInfo('c/2.png')
        member.type, member.linkname = kind, 'c/1.png'
        archive.addfile(member)
    with pytest.raises(ValueError, match=f'holds c/2.png as a {text}, which cannot be read in place'):
        TarImageDataset(path)


def test_of_one_name_the_last_counts(tmp_path):
    dataset = TarImageDataset(write_tar(tmp_path / 'a.tar', ['c/1.png', 'c/2.png', 'c/1.png']), test_mode=True,
                              pipeline=[dict(type='mmquant.LoadImageFromTar')])
    assert len(dataset) == 2 and dataset[0]['img'].max() == 2


def test_an_archive_that_became_shorter(tmp_path):
    path = tmp_path / 'a.tar'
    dataset = TarImageDataset(write_tar(path, ['c/1.png']), pipeline=[dict(type='mmquant.LoadImageFromTar')],
                              test_mode=True)
    path.write_bytes(path.read_bytes()[:530])
    with pytest.raises(ValueError, match=r'a\.tar ends within c/1\.png'):
        dataset[0]
