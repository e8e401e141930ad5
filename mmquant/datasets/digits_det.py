"""Digits to detect: scenes composed from the handwritten digits of scikit-learn, in COCO format, made on first use."""
import json
import os
import os.path as osp
import shutil
import tempfile
from collections.abc import Sequence

import mmcv
import numpy as np
from mmengine.dataset import BaseDataset

from mmquant.registry import DATASETS
from mmquant.utils.files import write_text

from .digits import DigitsDataset

VERSION = 1
# Images of each split and the split of DigitsDataset whose digits they show; the same name means: no shared digit.
NUM_IMAGES = dict(train=600, calibration=128, test=300)
SHAPES = ((128, 128), (96, 128), (128, 96))  # (height, width)
SIDES = (14, 124)  # height of a digit in pixels, drawn evenly on a logarithmic scale
MAX_DIGITS = 6
TRIES = 40
INK = 64  # alpha from which a pixel belongs to the digit's box


def _resize_matrix(size: int, out: int) -> np.ndarray:
    """Linear interpolation of ``size`` samples at ``out`` places, shape (out, size)."""
    place = np.clip((np.arange(out) + 0.5) * size / out - 0.5, 0, size - 1)
    left = np.minimum(place.astype(int), size - 2)
    matrix = np.zeros((out, size))
    matrix[np.arange(out), left] = 1 - (place - left)
    matrix[np.arange(out), left + 1] += place - left
    return matrix


def _enlarged(img: np.ndarray, height: int, width: int) -> np.ndarray:
    return _resize_matrix(img.shape[0], height) @ img @ _resize_matrix(img.shape[1], width).T


def _background(shape: tuple[int, int], rng: np.random.RandomState) -> np.ndarray:
    """Smooth coloured texture of two scales and fine noise, shape (height, width, 3), floats 0..255."""
    img = np.empty((*shape, 3))
    grey, fine = _enlarged(rng.randn(6, 6), *shape), _enlarged(rng.randn(20, 20), *shape)
    for channel in range(3):
        own = _enlarged(rng.randn(4, 4), *shape)
        img[..., channel] = rng.uniform(40, 215) + 18 * grey + 10 * fine + 10 * own
    return img + rng.randn(*shape, 1) * 6


def _colour(behind: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """A colour that differs from the mean colour behind by at least 70 levels in the mean over channels."""
    while True:
        colour = rng.uniform(0, 255, 3)
        if np.abs(colour - behind).mean() >= 70:
            return colour


def compose(digits: list[dict], rng: np.random.RandomState) -> tuple[np.ndarray, list[dict]]:
    """One scene of 1 to 6 of the ``digits``, samples of :class:`DigitsDataset`, whose boxes do not overlap.

    Returns the image (height, width, 3), uint8, and for each digit ``bbox`` (x, y, width, height in whole pixels, tight
    around the ink) and ``category_id``.
    """
    shape = SHAPES[rng.randint(len(SHAPES))]
    img, boxes, objects = _background(shape, rng), [], []
    wanted = rng.randint(1, MAX_DIGITS + 1)
    for _ in range(TRIES):
        if len(objects) == wanted:
            break
        digit = digits[rng.randint(len(digits))]
        height = int(round(np.exp(rng.uniform(*np.log(SIDES)))))
        width = int(round(height * rng.uniform(0.85, 1.15)))
        if height > shape[0] or width > shape[1]:
            continue
        alpha = np.clip(_enlarged(digit['img'][..., 0] / 255., height, width), 0, 1)  # (height, width)
        y, x = rng.randint(shape[0] - height + 1), rng.randint(shape[1] - width + 1)
        rows, columns = (np.flatnonzero((alpha > INK / 255).any(axis)) for axis in (1, 0))
        x0, y0, w, h = x + columns[0], y + rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1
        if any(x0 < a + c and a < x0 + w and y0 < b + d and b < y0 + h for a, b, c, d in boxes):
            continue
        place = img[y:y + height, x:x + width]
        place += alpha[..., None] * (_colour(place.mean((0, 1)), rng) - place)
        boxes.append((x0, y0, w, h))
        objects.append(dict(bbox=[int(v) for v in boxes[-1]], category_id=digit['gt_label'] + 1))
    return np.clip(np.rint(img), 0, 255).astype(np.uint8), objects


def make(root: str, split: str) -> str:
    """Write images and annotations of a split below ``root`` unless they are there; returns the annotation file."""
    ann_file = osp.join(root, 'annotations', f'{split}.json')
    if osp.isfile(ann_file):
        return ann_file
    digits = DigitsDataset(split)
    digits = [digits.get_data_info(i) for i in range(len(digits))]
    rng = np.random.RandomState(sorted(NUM_IMAGES).index(split))
    os.makedirs(osp.join(root, 'annotations'), exist_ok=True)
    images, annotations = [], []
    folder = tempfile.mkdtemp(dir=root)
    try:
        for index in range(NUM_IMAGES[split]):
            img, objects = compose(digits, rng)
            images.append(dict(id=index, file_name=f'{index:04d}.png', height=img.shape[0], width=img.shape[1]))
            mmcv.imwrite(img, osp.join(folder, images[-1]['file_name']))
            for item in objects:
                area = item['bbox'][2] * item['bbox'][3]
                annotations.append(dict(item, id=len(annotations) + 1, image_id=index, area=area, iscrowd=0))
        shutil.rmtree(osp.join(root, split), ignore_errors=True)
        os.replace(folder, osp.join(root, split))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    names = enumerate(DigitsDataset.METAINFO['classes'], 1)
    content = dict(info=dict(version=VERSION, description='digits of scikit-learn on textured backgrounds'),
                   images=images, annotations=annotations, categories=[dict(id=i, name=name) for i, name in names])
    return write_text(ann_file, json.dumps(content))


@DATASETS.register_module()
class DigitsDetDataset(BaseDataset):
    """Scenes with digits of 10 classes, as a detection data set in COCO format.

    Each image, 128x128, 96x128 or 128x96 pixels, shows 1 to 6 digits of 14 to 124 pixels on a coloured texture. Images
    (PNG) and annotations (COCO json, for ``CocoMetric``) are written below ``data_root`` on first use; a fixed seed
    makes the same ones everywhere. 600 ``train``, 128 ``calibration`` and 300 ``test`` images, each split made from the
    digits of the same split of :class:`DigitsDataset` alone. Samples hold what mmdet's pipelines start from:
    ``img_path``, ``img_id``, ``height``, ``width``, ``instances``.

    Args:
        split: ``'train'``, ``'calibration'`` or ``'test'``.
        data_root: Folder for images and annotations. Default: ``'data/digitsdet'``.
        pipeline: Transforms of mmdet, such as ``LoadImageFromFile`` and ``PackDetInputs``. Default: none.
        indices, metainfo, test_mode, lazy_init: As in :class:`DigitsDataset`.

    Raises:
        ValueError: Unknown split, or files of another version of this data set below ``data_root``.
        ImportError: scikit-learn is missing.
    """

    METAINFO = DigitsDataset.METAINFO

    def __init__(self, split: str, data_root: str = 'data/digitsdet', pipeline: Sequence = (),
                 indices: int | Sequence[int] | None = None, metainfo: dict | None = None, test_mode: bool = False,
                 lazy_init: bool = False):
        if split not in NUM_IMAGES:
            raise ValueError(f'Unknown split {split!r} of DigitsDetDataset. Use one of {sorted(NUM_IMAGES)}.')
        self.split = split
        super().__init__(ann_file='', metainfo=metainfo, data_root=data_root, indices=indices, pipeline=list(pipeline),
                         test_mode=test_mode, lazy_init=lazy_init)

    def load_data_list(self) -> list[dict]:
        """Make the files where they are missing; return the annotations of each image."""
        with open(make(self.data_root, self.split)) as stream:
            content = json.load(stream)
        if content['info'].get('version') != VERSION:
            raise ValueError(f'{self.data_root} holds version {content["info"].get("version")} of the data set, this '
                             f'mmquant makes version {VERSION}. Delete the folder.')
        instances: dict[int, list] = {image['id']: [] for image in content['images']}
        for item in content['annotations']:
            x, y, w, h = item['bbox']
            instances[item['image_id']].append(
                dict(bbox=[x, y, x + w, y + h], bbox_label=item['category_id'] - 1, ignore_flag=0))
        return [dict(img_id=image['id'], img_path=osp.join(self.data_root, self.split, image['file_name']),
                     height=image['height'], width=image['width'], instances=instances[image['id']])
                for image in content['images']]
