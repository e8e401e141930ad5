import pytest
import torch

from mmquant.structures import IntegerGrid


@pytest.mark.parametrize('bits, symmetric, q_min, q_max, dtype', [
    (2, False, 0, 3, torch.uint8),
    (2, True, -2, 1, torch.int8),
    (8, False, 0, 255, torch.uint8),
    (8, True, -128, 127, torch.int8),
    (9, False, 0, 511, torch.int16),
    (16, True, -32768, 32767, torch.int16),
    (16, False, 0, 65535, torch.int32),
])
def test_ends_and_code_dtype(bits, symmetric, q_min, q_max, dtype):
    grid = IntegerGrid(bits, symmetric)
    assert (grid.q_min, grid.q_max, grid.num_levels, grid.code_dtype) == (q_min, q_max, 2**bits, dtype)


@pytest.mark.parametrize('bits', [1, 17, 0, -4, 4.0, True, '8', None])
def test_bits_outside_the_range_are_refused(bits):
    with pytest.raises(ValueError, match=r'expected an int in 2\.\.16.*disable its quantizer'):
        IntegerGrid(bits)


def test_is_a_value():
    assert IntegerGrid(4) == IntegerGrid(4, False) != IntegerGrid(4, True)
    assert len({IntegerGrid(4), IntegerGrid(4)}) == 1
    with pytest.raises(AttributeError):
        IntegerGrid(4).bits = 8
