"""Loading transforms of mmquant's data sets."""
import mmcv
from mmcv.transforms import BaseTransform

from mmquant.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadImageFromTar(BaseTransform):
    """Decode an image that lies in an uncompressed tar archive.

    Required keys: ``tar_path``, ``tar_offset``, ``tar_size`` (bytes), ``img_path`` (the member's name). Added keys:
    ``img`` (height, width, 3), uint8, BGR for ``color_type='color'``; ``img_shape`` and ``ori_shape``, (height, width).
    The file is opened for each image, so the transform may be used from any number of worker processes.

    Args:
        color_type: Flag of :func:`mmcv.imfrombytes`. Default: ``'color'``.
        imdecode_backend: Decoder, see :func:`mmcv.imfrombytes`. Default: ``'cv2'``.

    Raises:
        ValueError: The bytes cannot be decoded.
    """

    def __init__(self, color_type: str = 'color', imdecode_backend: str = 'cv2'):
        self.color_type, self.imdecode_backend = color_type, imdecode_backend

    def transform(self, results: dict) -> dict:
        """Read and decode the image of one sample."""
        with open(results['tar_path'], 'rb') as archive:
            archive.seek(results['tar_offset'])
            content = archive.read(results['tar_size'])
        if len(content) < results['tar_size']:
            raise ValueError(f'{results["tar_path"]} ends within {results["img_path"]}: it is shorter than when its '
                             'index was read')
        img = mmcv.imfrombytes(content, flag=self.color_type, backend=self.imdecode_backend)
        if img is None:
            raise ValueError(f'{results["img_path"]} in {results["tar_path"]} cannot be decoded as an image by '
                             f'{self.imdecode_backend}. The archive may have changed after its index was read.')
        results['img'] = img
        results['img_shape'] = results['ori_shape'] = img.shape[:2]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(color_type={self.color_type!r}, imdecode_backend={self.imdecode_backend!r})'
