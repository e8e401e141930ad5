"""Checkpoints that mmengine reads, read as ours are: no code in them runs."""
import os.path as osp

from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader, get_torch_safe_globals

from mmquant.utils.download import fetch, is_address
from mmquant.utils.tensor_files import CheckpointError, read_tensors


class _History(HistoryBuffer):
    """Takes the numbers of a saved buffer and leaves its functions, which a file must not choose."""

    def __setstate__(self, state: dict) -> None:
        state.pop('statistics_methods', None)
        super().__setstate__(state)
        self.__class__ = HistoryBuffer


# mmengine's own list, without ``getattr``, which reaches anything
KNOWN = [x for x in get_torch_safe_globals() if x not in (getattr, HistoryBuffer)]
KNOWN += [(_History, 'mmengine.logging.history_buffer.HistoryBuffer')]


def read_safely() -> None:
    """Let mmengine's Runner (``resume``, ``load_from``, pretrained parts) read files and addresses with :func:`fetch`.

    Otherwise it would unpickle anything, and run the config in a checkpoint's meta as a program. For the whole process.
    """
    CheckpointLoader.register_scheme(('', 'http://', 'https://'), _load, force=True)


def _load(filename, map_location=None) -> dict:
    path = filename if is_address(str(filename)) else osp.expanduser(filename)
    data = read_tensors(fetch(path), KNOWN)
    if not isinstance(data, dict):
        raise CheckpointError(f'{filename} holds {type(data).__name__}, expected the dict of a checkpoint')
    if isinstance(data.get('meta'), dict):
        data['meta'].pop('config', None)
    return data
