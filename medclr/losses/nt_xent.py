"""The normalised, temperature-scaled cross entropy of SimCLR, exact, in memory that grows with the batch alone."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Cosines over the temperature lie within ±50 above the first of these and within ±500 above the second: exp() of them,
# its sums and their inverses fit float32 and float64, and no row needs its maximum taken off.
_SINGLE, LOWEST_TEMPERATURE = 0.02, 0.002
# Rows and columns of a block. Two blocks fit into a processor's cache, or keep an accelerator busy.
_SIDE = {"cpu": 1024}
_SIDE_ELSEWHERE = 4096


def nt_xent(z1: Tensor, z2: Tensor, temperature: float, groups: Tensor | None = None) -> Tensor:
    """Chen et al. 2020, equation 1, averaged over all 2N views.

    Exact, and yet no matrix of similarities is kept: blocks of its upper triangle are made, used and made again for the
    gradient (docs/decisions/010).

    Args:
        z1: (N, D) projections of the first views; need not be normalised.
        z2: (N, D) projections of the second views, in the same order.
        temperature: 0.002 or more. Below 0.02 the computing is done in float64.
        groups: (N,) integers; views of different items of one group (a patient) are not each other's negatives.

    Returns:
        A scalar, in float64 for float64 projections and in float32 otherwise, whatever autocast says. It can be
        differentiated once.

    Raises:
        ValueError: the temperature is too low.
    """
    if not temperature >= LOWEST_TEMPERATURE:
        raise ValueError(f"temperature {temperature}: must be {LOWEST_TEMPERATURE} or more")
    n = len(z1)
    if groups is None:
        groups = torch.arange(n, device=z1.device)
    with torch.autocast(z1.device.type, enabled=False):
        result = torch.float64 if z1.dtype == torch.float64 else torch.float32
        z = torch.cat([z1, z2]).to(result if temperature >= _SINGLE else torch.float64)
        z = F.normalize(z, dim=1) * temperature**-0.5
        positive = (z[:n] * z[n:]).sum(dim=1).repeat(2)
        negatives = _LogSumNegatives.apply(z, groups.repeat(2))  # type: ignore[no-untyped-call]
        # -log(exp(p) / (exp(p) + sum of the negatives): exactly 0 where there is no negative.
        return F.softplus(negatives - positive).mean().to(result)


def chance_level(groups: Tensor) -> Tensor:
    """The loss when all projections are alike, so that the positive is found by chance.

    Args:
        groups: (N,) integers, as for `nt_xent`.

    Returns:
        A scalar: ln(2N - 1) where no group repeats, and less where views of one group are left out.
    """
    _, own, size = groups.unique(return_inverse=True, return_counts=True)
    return torch.log(2 * (len(groups) - size[own]) + 1).mean()


class _LogSumNegatives(torch.autograd.Function):
    """(M, D) z and (M,) groups to the log of each row's sum of exp(z @ z.T) over the rows of other groups."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, group: Tensor) -> Tensor:
        # Where groups lie together, only blocks near the diagonal hold pairs of one group.
        group, order = group.sort(stable=True)
        z = z[order]
        total = z.new_zeros(len(z))
        for rows, columns, block in _upper_blocks(z, group):
            total[rows] += block.sum(dim=1)
            if rows != columns:
                total[columns] += block.sum(dim=0)
        ctx.save_for_backward(z, group, order, total)
        return torch.empty_like(total).index_copy_(0, order, total.log())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        z, group, order, total = ctx.saved_tensors
        # A row without negatives is at -inf, and nothing moves it.
        share = (gradient[order] / total).masked_fill(total == 0, 0)
        result = torch.zeros_like(z)
        scale = _block(z)
        # Autocast, which may be on here, leaves in-place operations and those with an `out` alone.
        for rows, columns, block in _upper_blocks(z, group):
            weight = scale[: block.numel()].view_as(block)
            block *= torch.add(share[rows, None], share[columns], out=weight)
            result[rows].addmm_(block, z[columns])
            if rows != columns:
                result[columns].addmm_(block.T, z[rows])
        return torch.empty_like(result).index_copy_(0, order, result), None


def _upper_blocks(z: Tensor, group: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows, columns and block of exp(z @ z.T) on and above the diagonal, 0 within a group; each block dies at the next.

    The groups are sorted.
    """
    side, buffer = _side(z), _block(z)
    parts = [slice(start, min(start + side, len(z))) for start in range(0, len(z), side)]
    first, last = group[[p.start for p in parts]].tolist(), group[[p.stop - 1 for p in parts]].tolist()
    for i, rows in enumerate(parts):
        for j, columns in enumerate(parts[i:], start=i):
            height, width = rows.stop - rows.start, columns.stop - columns.start
            block = torch.mm(z[rows], z[columns].T, out=buffer[: height * width].view(height, width)).exp_()
            if last[i] == first[j] or i == j:
                block.masked_fill_(group[rows, None] == group[columns], 0)
            yield rows, columns, block


def _block(z: Tensor) -> Tensor:
    """Room for the largest block."""
    return z.new_empty(min(_side(z), len(z)) ** 2)


def _side(z: Tensor) -> int:
    return _SIDE.get(z.device.type, _SIDE_ELSEWHERE)
