"""What several processes share: calibration images lie scattered, every process has the whole model."""
import functools

import torch
from mmengine import dist


def alone() -> bool:
    """Whether this is the only process."""
    return dist.get_world_size() == 1


def interleave(parts: list[list]) -> list:
    """Items in the order of one process, where process r of n holds those numbered r, r + n, ..."""
    longest = max(map(len, parts))
    return [part[i] for i in range(longest) for part in parts if i < len(part)]


def gather_list(items: list) -> list:
    """All processes' lists of plain items, interleaved; the same everywhere."""
    return items if alone() else interleave(dist.all_gather_object(items))


def gather_rows(x: torch.Tensor, images: int) -> torch.Tensor:
    """All processes' rows of ``images`` images, equally many everywhere, in the order that one process would have."""
    world = dist.get_world_size()
    if world == 1:
        return x
    per_image = x.contiguous().reshape(images, -1)
    joined = torch.stack(dist.all_gather(per_image), dim=1)  # (images, world, values)
    return joined.reshape(len(x) * world, *x.shape[1:])


def share(count: int) -> int:
    """This process's part of ``count`` images or rows, at least 1."""
    return max(1, count // dist.get_world_size())


def sum_over_ranks(*values: float) -> list[float]:
    """Sum of each number over all processes; the same everywhere, so that all decide alike."""
    if alone():
        return list(values)
    totals = torch.tensor(values, dtype=torch.float64, device=dist.get_comm_device())
    dist.all_reduce(totals, 'sum')
    return totals.tolist()


def sum_tensor_over_ranks(x: torch.Tensor) -> torch.Tensor:
    """Elementwise sum of a tensor over all processes; the same everywhere. Of one process: the tensor itself."""
    if alone():
        return x
    total = x.to(dist.get_comm_device(), copy=True)
    dist.all_reduce(total, 'sum')
    return total.to(x.device)


def mean_over_ranks(value: float) -> float:
    """Mean of a number over all processes; the same everywhere."""
    return sum_over_ranks(value)[0] / dist.get_world_size()


def average_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Let every step of an optimizer begin with the mean of the processes' gradients."""
    if alone():
        return

    def average(optimizer, args, kwargs) -> None:
        for group in optimizer.param_groups:
            for parameter in group['params']:
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad, 'mean')

    optimizer.register_step_pre_hook(average)


def one_writes(write):
    """Decorate a method that writes a file: only the first process does, the others wait for it and return None."""

    @functools.wraps(write)
    def guarded(*args, **kwargs):
        result = write(*args, **kwargs) if dist.is_main_process() else None
        dist.barrier()
        return result

    return guarded
