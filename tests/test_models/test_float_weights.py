"""Loading of float weights: strict, but behind the model's own conversion of old names."""
import pytest
import torch
from torch import nn

from mmquant.models.checkpoint import CheckpointError, load_float_weights


class Renamed(nn.Linear):
    """Its weight was called ``kernel`` before version 2."""
    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if local_metadata.get('version', 1) < 2:
            state_dict[prefix + 'weight'] = state_dict.pop(prefix + 'kernel')
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def model():
    return nn.Sequential(Renamed(2, 3), nn.BatchNorm1d(3))


def save(tmp_path, state):
    torch.save(dict(state_dict=state, meta={}), tmp_path / 'a.pth')
    return str(tmp_path / 'a.pth')


def test_old_names_are_converted(tmp_path):
    old, new = model(), model()
    state = dict(old.state_dict())
    state['0.kernel'] = state.pop('0.weight')
    del state['1.num_batches_tracked']  # before torch 0.4.1
    load_float_weights(new, save(tmp_path, state))
    torch.testing.assert_close(new[0].weight, old[0].weight)


def test_saved_versions_are_kept(tmp_path):
    old, new = model(), model()
    load_float_weights(new, save(tmp_path, old.state_dict()))
    torch.testing.assert_close(new.state_dict(), old.state_dict())


def test_prefix_and_preprocessor_are_dropped(tmp_path):
    old, new = nn.Linear(2, 3), nn.Linear(2, 3)
    state = {f'module.{k}': v for k, v in old.state_dict().items()}
    load_float_weights(new, save(tmp_path, state | {'data_preprocessor.mean': torch.zeros(3)}))
    torch.testing.assert_close(new.weight, old.weight)


@pytest.mark.parametrize('change, message', [
    (dict(bias=None), r'1 missing keys \(first: bias\)'),
    (dict(other=torch.zeros(1)), r'1 unexpected keys \(first: other\)'),
    (dict(weight=torch.zeros(4, 2)), r'1 wrong shapes \(first: weight: \(4, 2\) instead of \(3, 2\)\)'),
    (dict(weight=torch.full((3, 2), torch.nan)), r'NaN or infinite values in 1 tensors \(first: weight\)'),
])
def test_what_does_not_fit(tmp_path, change, message):
    state = {**nn.Linear(2, 3).state_dict(), **change}
    path = save(tmp_path, {k: v for k, v in state.items() if v is not None})
    with pytest.raises(CheckpointError, match=message):
        load_float_weights(nn.Linear(2, 3), path)


def test_errors_of_the_conversion_are_shown():
    class Refusing(nn.Linear):
        def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
            errors.append('too old for this model')

    with pytest.raises(CheckpointError, match='too old for this model'):
        load_float_weights(Refusing(2, 3), 'a.pth', dict(nn.Linear(2, 3).state_dict()))
