import pytest
import torch

from mmquant.structures import PerChannel, PerGroup, PerTensor, build_granularity

ALL = [PerTensor(), PerChannel(), PerChannel(1), PerChannel(-1), PerGroup(6), PerGroup(8, axis=1), PerGroup(7)]


@pytest.mark.parametrize('granularity', ALL, ids=str)
def test_every_element_is_in_one_row(granularity):
    x = torch.arange(96).reshape(4, 6, 2, 2)
    rows = granularity.to_groups(x)
    assert rows.shape[0] * rows.shape[1] == (28 * 4 if granularity == PerGroup(7) else x.numel())
    assert rows.shape[0] == torch.Size(granularity.scale_shape(x.shape)).numel()
    assert sorted(i for row in rows.tolist() for i in set(row)) == list(range(96))


@pytest.mark.parametrize('granularity', ALL, ids=str)
def test_expanded_scales_match_the_rows(granularity):
    x = torch.randn(4, 6, 2, 2)
    shape = granularity.scale_shape(x.shape)
    scale = torch.arange(1., 1 + torch.Size(shape).numel()).reshape(shape)
    scaled = x * granularity.expand(scale, x.shape)
    assert torch.equal(granularity.to_groups(scaled), granularity.to_groups(x) * scale.reshape(-1, 1))


def test_scale_shapes():
    assert PerTensor().scale_shape((4, 6)) == ()
    assert PerChannel().scale_shape((4, 6, 2, 2)) == (4, 1, 1, 1)
    assert PerChannel(-1).scale_shape((4, 6, 3)) == (1, 1, 3)
    assert PerGroup(3).scale_shape((4, 6)) == (4, 2)
    assert PerGroup(12).scale_shape((4, 6, 2, 2)) == (4, 2)


def test_expand_lets_the_gradient_through():
    scale = torch.ones(4, 2, requires_grad=True)
    PerGroup(3).expand(scale, (4, 6)).sum().backward()
    assert torch.equal(scale.grad, torch.full((4, 2), 3.))


def test_shorter_last_group():
    x = torch.arange(24.).reshape(4, 3, 2)
    groups = PerGroup(4)
    rows = groups.to_groups(x)
    assert groups.scale_shape(x.shape) == (4, 2)
    assert rows[:2].tolist() == [[0, 1, 2, 3], [4, 5, 4, 5]]
    assert groups.expand(torch.tensor([[1., 2.]] * 4), x.shape)[0].flatten().tolist() == [1, 1, 1, 1, 2, 2]
    assert PerGroup(100).scale_shape((4, 6)) == (4, 1)


def test_other_axes_and_values_of_channels():
    assert PerGroup(3).on_axis(1) == PerGroup(3, 1) and PerChannel().on_axis(-1) == PerChannel(-1)
    assert PerTensor().on_axis(1) == PerTensor() and PerTensor().of_channels(torch.ones(4), 2) is None
    assert PerChannel(1).of_channels(torch.ones(4), 3).shape == (1, 4, 1)
    assert PerGroup(3).of_channels(torch.ones(4), 2).shape == (4, 1)


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match='axis 2 does not exist in a tensor of shape'):
        PerChannel(2).scale_shape((4, 6))
    with pytest.raises(ValueError, match='expected an int > 0'):
        PerGroup(0)
    with pytest.raises(ValueError, match="Unknown granularity 'chanel': expected 'tensor', 'channel', 'group'"):
        build_granularity('chanel')
    with pytest.raises(ValueError, match='needs a group_size'):
        build_granularity('group')


def test_build():
    assert build_granularity() == PerTensor()
    assert build_granularity('channel', channel_axis=1) == PerChannel(1)
    assert build_granularity('group', group_size=8) == PerGroup(8)
    assert build_granularity(dict(type='PerGroup', group_size=8, axis=1)) == PerGroup(8, 1)
    assert build_granularity(dict(type='mmquant.PerChannel')) == PerChannel()
    assert build_granularity(PerChannel(-1)) == PerChannel(-1)
