"""Checks of data set configs before anything is built, and shared samples."""
import os

import numpy as np
import pytest
from mmengine.dataset import BaseDataset

from mmquant.datasets import check_dataset_cfg, overlap
from mmquant.datasets.checks import check_evaluator_cfg, list_digest, nothing_to_find, without_roots


class Listed(BaseDataset):
    """A data set over given sample dicts."""

    def __init__(self, infos):
        self.infos = infos
        super().__init__(serialize_data=False)

    def load_data_list(self):
        return self.infos


@pytest.fixture
def root(tmp_path):
    (tmp_path / 'train').mkdir()
    (tmp_path / 'train.txt').write_text('a.png 0\n')
    return str(tmp_path)


@pytest.mark.parametrize('cfg', [
    dict(type='mmquant.DigitsDataset', split='test'),
    dict(type='ImageNet', split='train'),
    dict(type='CustomDataset', ann_file='train.txt', data_prefix='train'),
    dict(type='CocoDataset', ann_file='train.txt', data_prefix=dict(img='train/')),
    dict(type='CIFAR10', data_prefix='downloaded_later', split='train'),
    dict(type='CustomDataset', data_prefix='s3://bucket/train'),
])
def test_nothing_missing(cfg, root):
    check_dataset_cfg(dict(data_root=root, **cfg) if 'Digits' not in cfg['type'] else cfg)


@pytest.mark.parametrize('cfg, missing', [
    (dict(type='ImageNet', split='val'), r'val \(split\)'),
    (dict(type='CustomDataset', ann_file='val.txt', data_prefix='train'), r'val.txt \(ann_file\)'),
    (dict(type='CustomDataset', data_prefix='val'), r'val \(data_prefix\)'),
    (dict(type='CocoDataset', ann_file='train.txt', data_prefix=dict(img='val/')), r'val/ \(data_prefix\)'),
    (dict(type='mmquant.TarImageDataset', tar_file='a.tar'), r'a.tar \(tar_file\)'),
    (dict(type='CIFAR10', data_prefix='none', download=False), r'none \(data_prefix\)'),
])
def test_missing(cfg, missing, root):
    with pytest.raises(FileNotFoundError, match=missing) as raised:
        check_dataset_cfg(dict(data_root=root, **cfg))
    assert cfg['type'] in str(raised.value)


def test_missing_root_inside_wrappers(monkeypatch):
    monkeypatch.delenv('MMQUANT_REAL_DATA', raising=False)
    leaf = dict(type='ImageNet', data_root='no/such/imagenet', split='train')
    wrapped = dict(type='mmquant.RandomSubset', num_samples=4,
                   dataset=dict(type='ConcatDataset', datasets=[dict(type='mmquant.DigitsDataset'), leaf]))
    with pytest.raises(FileNotFoundError) as raised:
        check_dataset_cfg(wrapped)
    text = str(raised.value)
    assert 'ImageNet needs no/such/imagenet (data_root)' in text
    assert 'MMQUANT_REAL_DATA, which is not set' in text
    assert 'configs/brecq/resnet18_w2a4_digits.py' in text


def test_ground_truth_of_a_metric(root, monkeypatch):
    """It must be there, unless the data set makes its files and it lies among them."""
    monkeypatch.setenv('MMQUANT_REAL_DATA', root)
    metric = dict(type='CocoMetric', ann_file=f'{root}/gt.json')
    text = r'The metric CocoMetric needs .*gt\.json \(ann_file\), which does not exist .*set ann_file in the config'
    for evaluator in (metric, [dict(type='Accuracy'), metric]):
        with pytest.raises(FileNotFoundError, match=text):
            check_evaluator_cfg(evaluator, dict(type='CocoDataset', data_root=root))
    check_evaluator_cfg(metric, dict(type='mmquant.DigitsDetDataset', data_root=root))
    with pytest.raises(FileNotFoundError, match=text):
        check_evaluator_cfg(metric, dict(type='mmquant.DigitsDetDataset', data_root=f'{root}/else'))
    check_evaluator_cfg(dict(metric, ann_file=f'{root}/train.txt'), dict(type='CocoDataset'))
    check_evaluator_cfg(None, {})


def test_metrics_that_mean_nothing():
    assert 'coco/bbox_mAP, coco/bbox_mAP_50 are -1' in nothing_to_find({'coco/bbox_mAP': -1., 'coco/bbox_mAP_50': -1.})
    for metrics in ({}, {'accuracy/top1': -1.}, {'coco/bbox_mAP': 0.3, 'coco/bbox_mAP_s': -1.}):
        assert nothing_to_find(metrics) is None


def test_overlap_of_arrays():
    images = [np.full((2, 3), value, np.uint8) for value in range(4)]
    a = Listed([dict(img=images[0]), dict(img=images[1]), dict(img=images[1])])
    b = Listed([dict(img=images[1].copy()), dict(img=images[2]), dict(img=images[0].reshape(3, 2))])
    assert overlap(a, b) == 1


def test_overlap_of_files(root):
    os.symlink(os.path.join(root, 'train.txt'), os.path.join(root, 'link.txt'))
    a = Listed([dict(img_path=os.path.join(root, 'train.txt')), dict(img_path='s3://b/1.png')])
    b = Listed([dict(img_path=os.path.join(root, 'link.txt')), dict(img_path='s3://b/1.png'), dict(img_path='x')])
    assert overlap(a, b) == 2


def test_overlap_of_archive_members(root):
    def samples(tar, *names):
        return Listed([dict(tar_path=os.path.join(root, tar), img_path=name) for name in names])
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
