"""The whole batch on every rank of a distributed run, with gradients."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def gathered(rows: Tensor) -> Tensor:
    """The rows of all ranks, in the order of the ranks; without a process group, or alone in one, the rows themselves.

    Each rank then computes the same loss over all rows, from the same values. So each holds the gradient of that loss
    with respect to all rows, and backward needs no communication: a rank keeps its own slice, times the number of
    ranks. DistributedDataParallel averages the parameters' gradients over the ranks, and the average is exactly the
    gradient of the whole batch, both for parameters in front of the gathering (the ranks' slices, summed) and for those
    behind it (the same on every rank). A loss behind it must therefore not be averaged or summed over ranks once more.

    Args:
        rows: (B, ...), as many on every rank, of any type; integers (groups) have no gradient.

    Returns:
        (ranks * B, ...). It can be differentiated once.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    result: Tensor = _Gathered.apply(rows)  # type: ignore[no-untyped-call]
    return result


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        everything = rows.new_empty(dist.get_world_size() * len(rows), *rows.shape[1:])
        dist.all_gather_into_tensor(everything, rows.contiguous())
        return everything

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.chunk(dist.get_world_size())[dist.get_rank()] * dist.get_world_size()
