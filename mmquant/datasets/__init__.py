"""Data sets for calibration and evaluation, and checks on them."""
from .checks import check_dataset_cfg, overlap
from .digits import DigitsDataset
from .subset import RandomSubset
from .tar_images import TarImageDataset
from .transforms import LoadImageFromTar

__all__ = [
    'DigitsDataset', 'LoadImageFromTar', 'RandomSubset', 'TarImageDataset', 'check_dataset_cfg', 'overlap',
]
