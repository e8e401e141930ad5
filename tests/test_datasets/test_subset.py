"""Random subsets."""
import pytest

from mmquant.datasets import DigitsDataset, RandomSubset, overlap


@pytest.fixture(scope='module')
def digits():
    return DigitsDataset('train')


def labels(subset):
    return [subset.get_data_info(i)['gt_label'] for i in range(len(subset))]


def test_same_seed_same_samples(digits):
    first, again, other = RandomSubset(digits, 64), RandomSubset(digits, 64), RandomSubset(digits, 64, seed=1)
    assert len(first) == 64 and len(set(first.indices.tolist())) == 64
    assert (first.indices == again.indices).all() and (first.indices != other.indices).any()
    assert overlap(first, digits) == 64
    assert set(labels(first)) == set(range(10))
    assert first.metainfo == digits.metainfo


def test_items_go_through_the_pipeline():
    cfg = dict(type='mmquant.DigitsDataset', split='test', pipeline=[dict(type='mmpretrain.PackInputs')])
    subset = RandomSubset(cfg, 5, lazy_init=True)
    assert subset[0]['inputs'].shape == (3, 8, 8)
    assert labels(subset)[0] == int(subset[0]['data_samples'].gt_label)


def test_too_many(digits):
    with pytest.raises(ValueError, match='draw 2000 samples, but DigitsDataset has 1041'):
        RandomSubset(digits, 2000)
