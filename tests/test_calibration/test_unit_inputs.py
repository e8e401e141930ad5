import pytest
import torch
from models_for_tests import advance, images, inserted, joined
from torch import nn

from mmquant.calibration.stream import Stream
from mmquant.calibration.unit_inputs import output_of, pick, run_in_chunks


@pytest.mark.parametrize('shape', [(6, 3), (6, 5, 3), (6, 3, 4, 4), (6, 1, 4, 4), (6, 3, 1, 1)])
def test_pick(shape):
    rows = torch.tensor([4, 0, 0, 5])
    for x in (images(*shape), images(*shape).contiguous(memory_format=torch.channels_last) if len(shape) == 4
              else images(*shape).transpose(0, 1).contiguous().transpose(0, 1)):
        assert torch.equal(pick(x, rows), x[rows])
        if len(shape) == 4 and x.is_contiguous(memory_format=torch.channels_last):
            assert pick(x, rows).is_contiguous(memory_format=torch.channels_last)


def test_gather_joins_chunks():
    chunks = [((images(n, 3, 4, 4, seed=n), 7), dict(flag=True)) for n in (4, 4, 1)]
    data = joined(chunks)
    assert len(data) == 9 and data.data.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(data.data, torch.cat([c[0][0] for c in chunks]))
    (x, seven), kwargs = data.arguments(data.data[2:5])
    assert torch.equal(x, data.data[2:5]) and seven == 7 and kwargs == dict(flag=True)


def test_data_given_by_keyword():
    data = joined([((), dict(mode='tensor', x=images(2, 3)))])
    args, kwargs = data.arguments(torch.zeros(1, 3))
    assert args == () and kwargs['mode'] == 'tensor' and torch.equal(kwargs['x'], torch.zeros(1, 3))


def test_the_same_tensor_given_twice_is_replaced_twice():
    """Attention blocks are called as ``block(x, x, x)``."""
    x = images(4, 3)
    data = joined([((x, x), dict(value=x))])
    (a, b), kwargs = data.arguments(torch.ones(2, 3))
    assert torch.equal(a, torch.ones(2, 3)) and b is a and kwargs['value'] is a


def test_units_called_with_the_same_tensor_twice():

    class Both(nn.Module):

        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x, y):
            return self.fc(x) + y

    class Net(nn.Module):

        def __init__(self) -> None:
            super().__init__()
            self.first, self.both, self.last = nn.Linear(3, 3), Both(), nn.Linear(3, 3)

        def forward(self, x):
            x = self.first(x)
            return self.last(self.both(x, x))

    context = inserted(Net(), images(6, 3), chunk=4)
    unit = next(u for u in context.model.units('block') if u.name == 'both')
    with context.model.quantization(weights=False, activations=False):
        data = joined(advance(Stream(context.model, context.chunks), unit))
        module = context.model.architecture.both
        args, kwargs = data.arguments(data.data[1:3])
        assert torch.equal(module(*args, **kwargs), module.fc(data.data[1:3]) + data.data[1:3])


def test_remainders_are_kept():
    x = images(7, 3, 4, 4)
    for size in (1, 2, 7, 100):
        out = run_in_chunks(lambda part: part * 2, x, size)
        assert torch.equal(out, x * 2) and not out.requires_grad
    assert output_of(dict(a=None, b=[3, x])) is x
