"""Images read straight from an uncompressed tar archive."""
import os.path as osp
import tarfile
from collections.abc import Sequence

from mmpretrain.datasets import BaseDataset

from mmquant.registry import DATASETS


@DATASETS.register_module()
class TarImageDataset(BaseDataset):
    """Classified images in the class folders of an uncompressed tar archive, nothing extracted to disk.

    The archive's index is read once; a sample keeps its place in the archive (``tar_path``, ``tar_offset`` and
    ``tar_size`` in bytes), its member name (``img_path``) and its ``gt_label``. The folder that holds an image is its
    class; the classes are the sorted folder names unless ``metainfo`` names them. The samples are sorted by member
    name, so a part of them should be drawn with ``mmquant.RandomSubset``. Pipelines start with
    ``mmquant.LoadImageFromTar``.

    Args:
        tar_file: Path of the archive, relative to ``data_root`` unless absolute.
        data_root: Folder of the archive. Default: the working directory.
        extensions: Endings of members that are images, lower case. Default: JPEG and PNG.
        metainfo: May hold ``classes``, the folder names in the order of their labels. Default: none.
        pipeline, indices, test_mode, lazy_init: As in :class:`DigitsDataset`.

    Raises:
        FileNotFoundError: The archive does not exist.
        ValueError: The file is no uncompressed tar archive, is cut off, holds no image or one that is sparse or a link,
            or has a folder that is no known class.
    """

    def __init__(self, tar_file: str, data_root: str = '', extensions: Sequence[str] = ('.jpg', '.jpeg', '.png'),
                 pipeline: Sequence = (), indices: int | Sequence[int] | None = None, metainfo: dict | None = None,
                 test_mode: bool = False, lazy_init: bool = False):
        self.tar_path = osp.join(osp.expanduser(data_root), tar_file)
        self.extensions = tuple(extensions)
        super().__init__(ann_file='', metainfo=metainfo, indices=indices, pipeline=pipeline, test_mode=test_mode,
                         lazy_init=lazy_init)

    def load_data_list(self) -> list[dict]:
        """Read the archive's index."""
        members = self._image_members()
        folders = sorted({osp.basename(osp.dirname(member.name)) for member in members})
        classes = self._metainfo.setdefault('classes', tuple(folders))
        unknown = sorted(set(folders) - set(classes))
        if unknown:
            raise ValueError(f'{self.tar_path} has the folders {unknown}, which are not among the classes '
                             f'{list(classes)}. Name the folders in metainfo["classes"].')
        labels = {name: label for label, name in enumerate(classes)}
        return [dict(img_path=member.name, tar_path=self.tar_path, tar_offset=member.offset_data, tar_size=member.size,
                     gt_label=labels[osp.basename(osp.dirname(member.name))]) for member in members]

    def _image_members(self) -> list[tarfile.TarInfo]:
        try:
            with tarfile.open(self.tar_path, 'r:') as archive:
                found = [m for m in archive if not m.isdir() and m.name.lower().endswith(self.extensions)]
                self._check_end(archive)
        except tarfile.ReadError as error:
            raise ValueError(f'{self.tar_path} is not an uncompressed tar archive ({error}). '
                             'Decompress it first: the images are read in place.') from error
        odd = next((m for m in found if not m.isreg() or m.issparse()), None)
        if odd is not None:
            kind = 'sparse file' if odd.issparse() else 'link'
            raise ValueError(f'{self.tar_path} holds {odd.name} as a {kind}, which cannot be read in place; pack it '
                             'anew with "tar --hard-dereference -h" and without -S')
        members = {m.name: m for m in found}.values()  # of one name, the last one counts, as when it is extracted
        if not members:
            raise ValueError(f'{self.tar_path} holds no file that ends with one of {list(self.extensions)}.')
        return sorted(members, key=lambda member: member.name)

    def _check_end(self, archive: tarfile.TarFile) -> None:
        """An archive ends with blocks of zeros; Python's reader takes any other end for one."""
        with open(self.tar_path, 'rb') as file:
            file.seek(archive.offset)
            rest = file.read(2**16)
            whole = len(rest) >= tarfile.BLOCKSIZE and not rest.strip(b'\0')
            while whole and (rest := file.read(2**20)):
                whole = not rest.strip(b'\0')
        if not whole:
            raise ValueError(f'{self.tar_path} is cut off, damaged, or several archives in one: its index ends at byte '
                             f'{archive.offset}, without the blocks of zeros that end an archive. Copy it again, or '
                             'pack the images anew')

    def extra_repr(self) -> list[str]:
        """Name the archive."""
        return [f'Archive: \t{self.tar_path}']
