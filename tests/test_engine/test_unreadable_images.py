"""Calibration images that cannot be read."""
import pickle

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from tools_for_tests import log_of, quantized_of, runner_of

from mmquant.engine import LoaderImages
from mmquant.engine.sources.unreadable_images import ReadableDataset, Sieve, Unreadable, readable_batches


class Listed:
    """Three samples, the second broken."""
    metainfo = dict(classes=('a',))

    def __len__(self):
        return 3

    def get_data_info(self, index):
        return dict(img_path=f'n0/{index}.png')

    def __getitem__(self, index):
        if index == 1:
            raise OSError('failed to load\n  image')
        return dict(inputs=torch.full((1,), index), data_samples=index)


def test_broken_samples_are_told_apart():
    dataset = ReadableDataset(Listed())
    assert len(dataset) == 3 and dataset.metainfo == dict(classes=('a',)) and dataset[2]['data_samples'] == 2
    assert dataset[1] == Unreadable('n0/1.png', 'OSError: failed to load image')
    assert ReadableDataset([1])[5].name == 'number 5'
    assert pickle.loads(pickle.dumps(dataset))[1].name == 'n0/1.png'


def test_sieve_and_policies():
    dataset, sieve = ReadableDataset(Listed()), Sieve(pseudo_collate)
    loader = [sieve([dataset[0], dataset[1]]), sieve([dataset[1]]), sieve([dataset[2]])]
    lost = []
    assert [b['data_samples'] for b in readable_batches(loader, 'skip', lost)] == [[0], [2]]
    assert [x.name for x in lost] == ['n0/1.png', 'n0/1.png']
    with pytest.raises(ValueError, match=r'the calibration image n0/1\.png cannot be read \(OSError: failed to '
                       r'load image\); repair or remove it, mend the pipeline .*, or leave such images out with '
                       r'train_cfg\.unreadable="skip"'):
        list(readable_batches(loader, 'stop', []))


@pytest.fixture
def files(tmp_path):
    """Twelve images in a folder: one empty, one text, one missing from the disk."""
    folder = tmp_path / 'images'
    folder.mkdir()
    for i in range(12):
        cv2.imwrite(str(folder / f'{i}.png'), np.full((32, 32, 3), 20 * i, np.uint8))
    (folder / '3.png').write_bytes(b'')
    (folder / '7.png').write_text('<html>')
    lines = '\n'.join(f'{i}.png {i % 10}' for i in range(12))
    (folder / 'list.txt').write_text(f'{lines}\ngone.png 1\n')
    return folder


@pytest.mark.parametrize('workers', [0, 1])
def test_run(tmp_path, files, workers):
    dataset = dict(type='CustomDataset', data_root=str(files), ann_file='list.txt', data_prefix='', test_mode=True,
                   pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')])
    dataset = dict(type='mmquant.RandomSubset', num_samples=13, dataset=dataset)

    def runner(name, policy):
        (tmp_path / name).mkdir()
        made = runner_of(tmp_path / name, unreadable=policy, images=None)
        made.cfg.train_dataloader = dict(made.cfg.train_dataloader, dataset=dataset, num_workers=workers)
        made._train_dataloader = made.cfg.train_dataloader
        return made

    with pytest.raises(ValueError, match=r'the calibration image .*(3|7|gone)\.png cannot be read'):
        runner('stop', 'stop').train()
    skipping = runner('skip', 'skip')
    skipping.train()
    found = quantized_of(tmp_path / 'skip')['meta']['calibration']
    assert found['images'] == 10 and len(found['list_sha256']) == 64
    assert '3 calibration images cannot be read and are left out; the first: ' in log_of(tmp_path / 'skip')


def test_unknown_policy():
    with pytest.raises(ValueError, match=r"train_cfg\.unreadable must be one of \('stop', 'skip'\), got 'ignore'"):
        LoaderImages({}, unreadable='ignore')
