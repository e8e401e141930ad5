"""Data sets for calibration and evaluation, and checks on them."""
from importlib.util import find_spec

from .files import check_dataset_cfg
from .identity import overlap
from .subset import RandomSubset
from .transforms import LoadImageFromTar

__all__ = ['LoadImageFromTar', 'RandomSubset', 'check_dataset_cfg', 'overlap']

if find_spec('mmpretrain') is not None:  # a stack with detectors only does without the classification data sets
    from .digits import DigitsDataset
    from .digits_det import DigitsDetDataset
    from .tar_images import TarImageDataset
    __all__ += ['DigitsDataset', 'DigitsDetDataset', 'TarImageDataset']
