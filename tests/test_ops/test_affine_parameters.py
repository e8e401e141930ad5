import torch

from mmquant.ops import SCALE_FLOOR, affine_parameters
from mmquant.structures import IntegerGrid


def test_affine_range():
    scale, zero_point = affine_parameters(torch.tensor([-1., 0., -3.]), torch.tensor([2., 3., 0.]), IntegerGrid(2))
    torch.testing.assert_close(scale, torch.ones(3))
    assert zero_point.tolist() == [1, 0, 3]


def test_zero_is_always_included():
    scale, zero_point = affine_parameters(torch.tensor([1., -6.]), torch.tensor([3., -3.]), IntegerGrid(2))
    torch.testing.assert_close(scale, torch.tensor([1., 2.]))
    assert zero_point.tolist() == [0, 3]


def test_symmetric_range():
    scale, zero_point = affine_parameters(torch.tensor([-7., -1.]), torch.tensor([1., 14.]), IntegerGrid(4, True))
    assert scale.tolist() == [1, 2] and zero_point.tolist() == [0, 0]


def test_all_zero_range_gets_the_smallest_scale():
    for symmetric in (False, True):
        scale, zero_point = affine_parameters(torch.zeros(2), torch.zeros(2), IntegerGrid(4, symmetric))
        torch.testing.assert_close(scale, torch.full((2, ), SCALE_FLOOR))
        assert zero_point.tolist() == [0, 0]
