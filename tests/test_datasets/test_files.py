"""Checks of data set configs before anything is built."""
import pytest

from mmquant.datasets.files import check_dataset_cfg, check_evaluator_cfg


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
