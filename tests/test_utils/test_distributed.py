import pytest
import torch
from mmengine import dist

from mmquant.utils import distributed
from mmquant.utils.distributed import (
    gather_list,
    gather_rows,
    interleave,
    mean_over_ranks,
    one_writes,
    share,
    sum_over_ranks,
    sum_tensor_over_ranks,
)


def test_order_of_one_process():
    assert interleave([[0, 3, 6], [1, 4], [2, 5]]) == [0, 1, 2, 3, 4, 5, 6] and interleave([[1, 2]]) == [1, 2]


def test_alone_nothing_changes(tmp_path):
    x = torch.randn(4, 3)
    assert gather_rows(x, 4) is x and gather_list([1, 2]) == [1, 2] and mean_over_ranks(0.1) == 0.1 and share(5) == 5
    assert one_writes(lambda a: a + 1)(2) == 3 and sum_over_ranks(0.1, 2) == [0.1, 2]
    assert sum_tensor_over_ranks(x) is x


@pytest.mark.parametrize('rows', [1, 3])
def test_rows_of_two_processes(monkeypatch, rows):
    """Images 0, 2 here and 1, 3 there, with several rows (windows, tokens) an image."""
    whole = torch.arange(4 * rows * 2.).reshape(4 * rows, 2)
    by_image = whole.reshape(4, rows, 2)
    mine, theirs = (by_image[r::2].reshape(2 * rows, 2) for r in (0, 1))
    monkeypatch.setattr(dist, 'get_world_size', lambda: 2)
    monkeypatch.setattr(dist, 'all_gather', lambda x: [x, theirs.reshape(x.shape)])
    assert torch.equal(gather_rows(mine, 2), whole) and share(5) == 2 and share(1) == 1
    monkeypatch.setattr(dist, 'all_gather_object', lambda items: [items, ['b', 'd']])
    assert gather_list(['a', 'c']) == ['a', 'b', 'c', 'd']


def test_sums_and_means_of_two_processes(monkeypatch):
    monkeypatch.setattr(dist, 'get_world_size', lambda: 2)
    monkeypatch.setattr(dist, 'get_comm_device', lambda: torch.device('cpu'))
    monkeypatch.setattr(dist, 'all_reduce', lambda x, op: x.add_(torch.tensor([1.0, 20.0])[:len(x)]))
    assert sum_over_ranks(0.5, 3) == [1.5, 23] and mean_over_ranks(0.5) == 0.75
    x = torch.tensor([[1, 2], [3, 4]])
    monkeypatch.setattr(dist, 'all_reduce', lambda y, op: y.mul_(10))
    assert torch.equal(sum_tensor_over_ranks(x), x * 10) and x[0, 0] == 1  # the own share stays


def test_only_the_first_process_writes(monkeypatch):
    calls = []
    monkeypatch.setattr(dist, 'is_main_process', lambda: False)
    monkeypatch.setattr(dist, 'barrier', lambda: calls.append('barrier'))
    assert one_writes(lambda: calls.append('write'))() is None and calls == ['barrier']
    assert distributed.alone()
