"""Tools run no code that lies in checkpoints or annotation files."""
import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader
from models_for_tests import MLP

from mmquant.apis.safe_loading import read_safely
from mmquant.datasets import check_dataset_cfg
from mmquant.datasets.files import check_evaluator_cfg
from mmquant.utils.tensor_files import CheckpointError


class Payload:

    def __init__(self, mark) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f'touch {self.mark}', )


@pytest.fixture
def loader():
    before = dict(CheckpointLoader._schemes)
    read_safely()
    yield lambda path: CheckpointLoader.load_checkpoint(str(path), 'cpu', logger=None)
    CheckpointLoader._schemes = before


def test_resuming_runs_no_code(loader, tmp_path):
    mark = tmp_path / 'ran'
    for data in (Payload(mark), dict(state_dict={}, optimizer=Payload(mark)), [1]):
        torch.save(data, tmp_path / 'p.pth')
        with pytest.raises(CheckpointError):
            loader(tmp_path / 'p.pth')
    torch.save(dict(state_dict=MLP().state_dict(), meta=dict(
        epoch=1, config=f'import os\nos.system("touch {mark}")')), tmp_path / 'p.pth')
    data = loader(tmp_path / 'p.pth')  # a Runner would run the config as a program
    assert 'config' not in data['meta'] and data['meta']['epoch'] == 1 and not mark.exists()


def test_a_training_goes_on(loader, tmp_path):
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    torch.save(dict(message_hub=dict(log_scalars=dict(loss=history), runtime_info=dict(iter=3, x=np.float64(2))),
                    state_dict=MLP().state_dict(), meta=dict(epoch=1)), tmp_path / 'epoch_1.pth')
    data = loader(tmp_path / 'epoch_1.pth')
    found = data['message_hub']['log_scalars']['loss']
    assert type(found) is HistoryBuffer and found.current() == 2.0 and found.statistics('mean') == 1.5
    assert data['message_hub']['runtime_info'] == dict(iter=3, x=2.0)


@pytest.mark.parametrize('name', ['a.pkl', 'a.PICKLE', 'a.yaml'])
def test_annotations_that_run_code(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps([]))
    cfg = dict(type='BaseDataset', ann_file=str(tmp_path / name))
    for nested in (cfg, dict(type='RandomSubset', dataset=cfg), dict(type='Concat', datasets=[cfg])):
        with pytest.raises(ValueError, match='can run code; convert it to JSON'):
            check_dataset_cfg(nested)
    with pytest.raises(ValueError, match='can run code'):
        check_evaluator_cfg(dict(type='CocoMetric', ann_file=str(tmp_path / name)), {})
    with pytest.raises(ValueError, match='proposal_file=.* can run code'):
        check_dataset_cfg(dict(type='CocoDataset', proposal_file=name))
