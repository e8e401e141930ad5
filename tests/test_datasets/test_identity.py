"""Shared samples, and digests of lists of samples."""
import os

import numpy as np
import pytest
from mmengine.dataset import BaseDataset

from mmquant.datasets.identity import list_digest, overlap, without_roots


class Listed(BaseDataset):
    """A data set over given sample dicts."""

    def __init__(self, infos):
        self.infos = infos
        super().__init__(serialize_data=False)

    def load_data_list(self):
        return self.infos


def test_overlap_of_arrays():
    images = [np.full((2, 3), value, np.uint8) for value in range(4)]
    a = Listed([dict(img=images[0]), dict(img=images[1]), dict(img=images[1])])
    b = Listed([dict(img=images[1].copy()), dict(img=images[2]), dict(img=images[0].reshape(3, 2))])
    assert overlap(a, b) == 1


def test_overlap_of_files(tmp_path):
    root = str(tmp_path)
    (tmp_path / 'train.txt').write_text('a.png 0\n')
    os.symlink(os.path.join(root, 'train.txt'), os.path.join(root, 'link.txt'))
    a = Listed([dict(img_path=os.path.join(root, 'train.txt')), dict(img_path='s3://b/1.png')])
    b = Listed([dict(img_path=os.path.join(root, 'link.txt')), dict(img_path='s3://b/1.png'), dict(img_path='x')])
    assert overlap(a, b) == 2


def test_overlap_of_archive_members(tmp_path):
    def samples(tar, *names):
        return Listed([dict(tar_path=str(tmp_path / tar), img_path=name) for name in names])
    assert overlap(samples('a.tar', '1', '2'), samples('a.tar', '2', '3')) == 1
    assert overlap(samples('a.tar', '1', '2'), samples('b.tar', '1', '2')) == 0


def test_overlap_needs_an_image():
    with pytest.raises(ValueError, match=r"Listed has the keys .*'text'.*neither"):
        overlap(Listed([dict(text='a')]), Listed([]))


def listed(paths):
    return list_digest(Listed([dict(img_path=path) for path in paths]))


def test_list_digest_knows_files_and_order_but_no_place():
    here = listed(['/data/n01/a.png', '/data/n02/a.png'])
    assert here == listed(['/elsewhere/x/n01/a.png', '/elsewhere/x/n02/a.png']) and len(here) == 64
    assert here != listed(['/data/n02/a.png', '/data/n01/a.png']) != listed(['/data/n02/a.png'])
    with pytest.raises(ValueError, match=r'list has no get_data_info\(index\)'):
        list_digest([1, 2])


def test_without_roots():
    cfg = dict(type='A', num=3, dataset=dict(data_root='/x', pipeline=[dict(type=int, size=(2, 3))]))
    assert without_roots(cfg) == dict(type='A', num=3, dataset=dict(pipeline=[dict(type="<class 'int'>", size=[2, 3])]))
