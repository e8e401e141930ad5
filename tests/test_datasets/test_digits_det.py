"""The embedded scenes of digits: the same everywhere, sound annotations, made on first use."""
import json

import numpy as np
import pytest
from mmengine.fileio import load

from mmquant.datasets import DigitsDetDataset, digits_det
from mmquant.registry import DATASETS

SPLITS = ('train', 'calibration', 'test')
# Of the first twelve test scenes: digits in each, classes of the first eight, area of all boxes.
COUNTS = [4, 3, 4, 1, 6, 1, 4, 5, 3, 2, 4, 2]
CATEGORIES = [10, 2, 1, 5, 1, 4, 8, 8]
AREA = 35147


@pytest.fixture
def few(monkeypatch):
    """Fewer scenes of each split: a scene does not depend on the number behind it."""
    monkeypatch.setattr(digits_det, 'NUM_IMAGES', dict(train=5, calibration=4, test=12))


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """Twelve scenes of the test split."""
    folder = tmp_path_factory.mktemp('scenes')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits_det, 'NUM_IMAGES', dict(train=5, calibration=4, test=12))
        digits_det.make(str(folder), 'test')
    return folder


def annotations(root, split='test') -> dict:
    return load(str(root / f'annotations/{split}.json'))


def test_the_same_everywhere(few, root, tmp_path):
    digits_det.make(str(tmp_path), 'test')
    names = [f'test/{i:04d}.png' for i in range(12)] + ['annotations/test.json']
    assert all((tmp_path / n).read_bytes() == (root / n).read_bytes() for n in names)
    assert sorted(p.name for p in (tmp_path / 'test').iterdir()) == [n[5:] for n in names[:-1]]


def test_scenes_are_fixed(root):
    # Changing the scenes would silently invalidate the shipped detectors and every measured number.
    content = annotations(root)
    assert [len([a for a in content['annotations'] if a['image_id'] == i]) for i in range(12)] == COUNTS
    assert content['annotations'][0]['bbox'] == [91, 18, 14, 26]
    assert sum(a['area'] for a in content['annotations']) == AREA
    assert [a['category_id'] for a in content['annotations'][:8]] == CATEGORIES


def test_splits_show_different_digits(few, monkeypatch, tmp_path):
    """Each is made from the digits of its own split of DigitsDataset, and these share none."""
    given = {}

    def compose(digits, rng):
        given[split] = {d['img'].tobytes() for d in digits}
        return original(digits, rng)

    original = digits_det.compose
    monkeypatch.setattr(digits_det, 'compose', compose)
    for split in SPLITS:
        digits_det.make(str(tmp_path), split)
    assert [len(given[s]) > 200 for s in SPLITS] == [True] * 3
    assert not given['train'] & given['test'] and not given['train'] & given['calibration']
    assert not given['calibration'] & given['test']


def test_boxes(root):
    content = annotations(root)
    shapes = {image['id']: (image['height'], image['width']) for image in content['images']}
    assert set(shapes.values()) <= set(digits_det.SHAPES) and len(set(shapes.values())) > 1
    boxes = {i: [] for i in shapes}
    for item in content['annotations']:
        x, y, w, h = item['bbox']
        height, width = shapes[item['image_id']]
        assert 0 <= x and 0 <= y and x + w <= width and y + h <= height and min(w, h) >= 3
        assert item['area'] == w * h and item['iscrowd'] == 0 and 1 <= item['category_id'] <= 10
        assert not any(x < a + c and a < x + w and y < b + d and b < y + h for a, b, c, d in boxes[item['image_id']])
        boxes[item['image_id']].append(item['bbox'])
    assert all(1 <= len(b) <= 6 for b in boxes.values())
    assert [a['id'] for a in content['annotations']] == list(range(1, len(content['annotations']) + 1))


def test_images_are_what_the_annotations_say(root):
    mmcv = pytest.importorskip('mmcv')
    for image in annotations(root)['images']:
        img = mmcv.imread(str(root / 'test' / image['file_name']))
        assert img.shape == (image['height'], image['width'], 3) and img.dtype == np.uint8 and img.std() > 5


def test_valid_for_pycocotools(root, capsys):
    """The annotations, taken as detections, are perfect."""
    coco = pytest.importorskip('pycocotools.coco')
    from pycocotools.cocoeval import COCOeval
    truth = coco.COCO(str(root / 'annotations/test.json'))
    assert len(truth.getImgIds()) == 12 and len(truth.getCatIds()) == 10
    assert truth.loadCats(1)[0]['name'] == DigitsDetDataset.METAINFO['classes'][0]
    found = [dict(image_id=a['image_id'], category_id=a['category_id'], bbox=a['bbox'], score=0.9)
             for a in truth.dataset['annotations']]
    evaluation = COCOeval(truth, truth.loadRes(found), 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)
    capsys.readouterr()


def test_made_on_first_use_only(few, tmp_path, monkeypatch):
    dataset = DigitsDetDataset('calibration', data_root=str(tmp_path / 'scenes'), lazy_init=True)
    assert not (tmp_path / 'scenes').exists()
    dataset.full_init()
    assert len(dataset) == 4 and not (tmp_path / 'scenes/train').exists()
    monkeypatch.setattr(digits_det, 'compose', None)  # would fail if called again
    again = DigitsDetDataset('calibration', data_root=str(tmp_path / 'scenes'))
    assert [again.get_data_info(i) for i in range(4)] == [dataset.get_data_info(i) for i in range(4)]


def test_an_interrupted_making_is_begun_again(few, tmp_path, monkeypatch):
    original, left = digits_det.compose, [2]

    def fails(*args):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(digits_det, 'compose', fails)
        with pytest.raises(KeyboardInterrupt):
            digits_det.make(str(tmp_path), 'train')
    assert [p.name for p in tmp_path.iterdir()] == ['annotations'] and not list((tmp_path / 'annotations').iterdir())
    digits_det.make(str(tmp_path), 'train')
    assert len(list((tmp_path / 'train').iterdir())) == 5


def test_samples(few, tmp_path):
    dataset = DATASETS.build(dict(type='mmquant.DigitsDetDataset', split='train', data_root=str(tmp_path), indices=3))
    assert len(dataset) == 3 and dataset.metainfo['classes'] == DigitsDetDataset.METAINFO['classes']
    info, content = dataset.get_data_info(1), annotations(tmp_path, 'train')
    own = [a for a in content['annotations'] if a['image_id'] == 1]
    x, y, w, h = own[0]['bbox']
    assert info['instances'][0] == dict(bbox=[x, y, x + w, y + h], bbox_label=own[0]['category_id'] - 1, ignore_flag=0)
    assert len(info['instances']) == len(own) and info['img_path'] == str(tmp_path / 'train/0001.png')


def test_bad_input(few, tmp_path):
    with pytest.raises(ValueError, match=r"Unknown split 'val' of DigitsDetDataset.*calibration.*test.*train"):
        DigitsDetDataset('val')
    path = tmp_path / 'annotations/test.json'
    digits_det.make(str(tmp_path), 'test')
    path.write_text(json.dumps(dict(load(str(path)), info=dict(version=0))))
    with pytest.raises(ValueError, match=r'holds version 0 of the data set, this mmquant makes version 1\. Delete'):
        DigitsDetDataset('test', data_root=str(tmp_path))
