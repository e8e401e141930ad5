"""The embedded digits: splits, arrays, pipelines."""
import numpy as np
import pytest

from mmquant.datasets import DigitsDataset, overlap
from mmquant.datasets.digits import split_indices
from mmquant.registry import DATASETS

SIZES = dict(train=1041, calibration=256, test=500)


@pytest.fixture(scope='module')
def splits():
    return {name: DigitsDataset(name) for name in SIZES}


def test_sizes_and_no_overlap(splits):
    assert {name: len(dataset) for name, dataset in splits.items()} == SIZES
    for a, b in (('train', 'calibration'), ('train', 'test'), ('calibration', 'test')):
        assert overlap(splits[a], splits[b]) == 0
    assert overlap(splits['test'], DigitsDataset('test')) == 500


def test_splits_are_stratified_and_mixed(splits):
    for dataset in splits.values():
        counts = np.bincount(dataset.get_gt_labels())
        assert counts.max() - counts.min() <= 6  # the whole set has 174 to 183 of each digit
    assert set(splits['calibration'].get_gt_labels()[:64]) == set(range(10))


def test_splits_are_fixed(splits):
    # Changing the split would silently invalidate the shipped checkpoint and every measured number.
    sums = {name: sum(int(dataset.get_data_info(i)['img'].sum()) for i in range(0, len(dataset), 10))
            for name, dataset in splits.items()}
    assert sums == dict(train=1594098, calibration=383187, test=753903)
    assert splits['calibration'].get_gt_labels()[:12].tolist() == [4, 2, 3, 6, 3, 3, 4, 6, 9, 9, 3, 2]


def test_image_arrays(splits):
    info = splits['test'].get_data_info(0)
    img = info['img']
    assert img.shape == (8, 8, 3) and img.dtype == np.uint8 and img.max() == 255
    assert (img[..., 0] == img[..., 1]).all() and (img[..., 0] == img[..., 2]).all()
    assert len(splits['test'].metainfo['classes']) == 10


def test_ordinary_pipeline_from_registry():
    dataset = DATASETS.build(
        dict(type='mmquant.DigitsDataset', split='calibration', indices=3,
             pipeline=[dict(type='mmpretrain.Resize', scale=32), dict(type='mmpretrain.PackInputs')]))
    assert len(dataset) == 3
    sample = dataset[0]
    assert sample['inputs'].shape == (3, 32, 32)
    assert 0 <= int(sample['data_samples'].gt_label) < 10
    assert 'Split: \tcalibration' in repr(dataset)


def test_unknown_split():
    with pytest.raises(ValueError, match=r"Unknown split 'val'.*calibration.*test.*train"):
        DigitsDataset('val')


def test_split_sizes_must_fit():
    with pytest.raises(ValueError, match='hold 5 samples, but there are 4'):
        split_indices(np.array([0, 0, 1, 1]), dict(a=3, b=2), seed=0)


def test_split_keeps_proportions():
    labels = np.repeat([0, 1, 2], [100, 50, 10])
    parts = split_indices(labels, dict(a=16, b=32, c=112), seed=3)
    assert np.bincount(labels[parts['a']]).tolist() == [10, 5, 1]
    assert sorted(np.concatenate(list(parts.values()))) == list(range(160))
