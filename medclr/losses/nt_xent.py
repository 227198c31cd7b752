"""The normalised, temperature-scaled cross entropy of SimCLR, exact, in memory that grows with the batch alone."""

from collections.abc import Iterator
from typing import Any, Literal

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

Negatives = Literal["all", "within", "across"]


def nt_xent(
    z1: Tensor,
    z2: Tensor,
    temperature: float,
    groups: Tensor | None = None,
    domains: Tensor | None = None,
    negatives: Negatives = "all",
) -> Tensor:
    """Chen et al. 2020, equation 1, averaged over all 2N views.

    Exact, and yet no matrix of similarities is kept: blocks of its upper triangle are made, used and made again for the
    gradient (docs/decisions/010).

    Args:
        z1: (N, D) projections of the first views; need not be normalised.
        z2: (N, D) projections of the second views, in the same order.
        temperature: 0.002 or more. Below 0.02 the computing is done in float64.
        groups: (N,) integers; views of different items of one group (a patient) are not each other's negatives.
        domains: (N,) integers, of use where negatives are not "all".
        negatives: views of all other items, of those "within" the item's own domain, or of those "across", in others.
            Blocks that hold none are not computed.

    Returns:
        A scalar, in float64 for float64 projections and in float32 otherwise, whatever autocast says. It can be
        differentiated once.

    Raises:
        ValueError: the temperature is too low, or there are no domains for negatives that ask for them.
    """
    check_negatives(domains, negatives)
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
        apart = None if negatives == "all" or domains is None else domains.repeat(2)
        others = _LogSumNegatives.apply(z, groups.repeat(2), apart, negatives)  # type: ignore[no-untyped-call]
        # -log(exp(p) / (exp(p) + sum of the negatives): exactly 0 where there is no negative.
        return F.softplus(others - positive).mean().to(result)


def chance_level(groups: Tensor, domains: Tensor | None = None, negatives: Negatives = "all") -> Tensor:
    """The loss when all projections are alike, so that the positive is found by chance.

    Args:
        groups, domains: (N,) integers, as for `nt_xent`.
        negatives: as for `nt_xent`.

    Returns:
        A scalar: ln(2N - 1) where no group repeats, and less where views of one group, or domain, are left out.
    """
    check_negatives(domains, negatives)
    return torch.log(2 * n_negatives(groups, groups, domains, domains, negatives) + 1).mean()


def n_negatives(
    groups: Tensor, their_groups: Tensor, domains: Tensor | None, their_domains: Tensor | None, negatives: Negatives
) -> Tensor:
    """How many of some items are negatives of each of others, (N,), in memory that grows with N + K.

    Args:
        groups, domains: (N,) integers, of the items that have negatives; domains as for `nt_xent`.
        their_groups, their_domains: (K,) integers, of those that are negatives.
        negatives: as for `nt_xent`.
    """
    own = _equal(groups, their_groups)
    if negatives == "all" or domains is None or their_domains is None:
        return len(their_groups) - own
    # One number for both; a group that is in several domains has as many.
    numbers, codes = torch.cat([groups, their_groups]).unique(return_inverse=True)
    both = _equal(domains * len(numbers) + codes[: len(groups)], their_domains * len(numbers) + codes[len(groups) :])
    here = _equal(domains, their_domains)
    return here - both if negatives == "within" else len(their_groups) - here - own + both


def check_negatives(domains: Tensor | None, negatives: Negatives) -> None:
    """Raise ValueError where negatives ask for domains that there are none of."""
    if negatives not in ("all", "within", "across"):
        raise ValueError(f"negatives {negatives!r}: must be all, within or across")
    if negatives != "all" and domains is None:
        raise ValueError(f"negatives {negatives}: needs the domains of the items")


def _equal(values: Tensor, others: Tensor) -> Tensor:
    """Of each of some integers, how often it is among others."""
    others = others.sort().values
    return torch.searchsorted(others, values, right=True) - torch.searchsorted(others, values)


class _LogSumNegatives(torch.autograd.Function):
    """(M, D) z and (M,) groups and domains to the log of each row's sum of exp(z @ z.T) over its negatives."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, group: Tensor, domain: Tensor | None, negatives: Negatives) -> Tensor:
        # Where groups lie together, only blocks near the diagonal hold pairs of one group; and so do domains.
        order = group.argsort(stable=True)
        if domain is not None:
            order = order[domain[order].argsort(stable=True)]
            domain = domain[order]
        z, group = z[order], group[order]
        total = z.new_zeros(len(z))
        for rows, columns, block in _upper_blocks(z, group, domain, negatives):
            total[rows] += block.sum(dim=1)
            if rows != columns:
                total[columns] += block.sum(dim=0)
        ctx.save_for_backward(z, group, domain, order, total)
        ctx.negatives = negatives
        return torch.empty_like(total).index_copy_(0, order, total.log())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        z, group, domain, order, total = ctx.saved_tensors
        # A row without negatives is at -inf, and nothing moves it.
        share = (gradient[order] / total).masked_fill(total == 0, 0)
        result = torch.zeros_like(z)
        scale = _block(z)
        # Autocast, which may be on here, leaves in-place operations and those with an `out` alone.
        for rows, columns, block in _upper_blocks(z, group, domain, ctx.negatives):
            weight = scale[: block.numel()].view_as(block)
            block *= torch.add(share[rows, None], share[columns], out=weight)
            result[rows].addmm_(block, z[columns])
            if rows != columns:
                result[columns].addmm_(block.T, z[rows])
        return torch.empty_like(result).index_copy_(0, order, result), None, None, None


def _upper_blocks(
    z: Tensor, group: Tensor, domain: Tensor | None, negatives: Negatives
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows, columns and block of exp(z @ z.T) on and above the diagonal, 0 where rows are no negatives of each other;
    each block dies at the next, and one without negatives is left out.

    The rows are sorted by group or, where there are domains, by domain and then by group.
    """
    side, buffer = _side(z), _block(z)
    parts = [slice(start, min(start + side, len(z))) for start in range(0, len(z), side)]
    own = _ends(group, parts)
    homes = None if domain is None else _ends(domain, parts)
    for i, rows in enumerate(parts):
        for j, columns in enumerate(parts[i:], start=i):
            # Whether domains may, and whether they must, be the same.
            meet = homes is not None and homes[i][1] == homes[j][0]
            alone = homes is not None and homes[i][0] == homes[j][1]
            if (negatives == "within" and not (meet or i == j)) or (negatives == "across" and alone):
                continue
            height, width = rows.stop - rows.start, columns.stop - columns.start
            block = torch.mm(z[rows], z[columns].T, out=buffer[: height * width].view(height, width)).exp_()
            # Of several domains, groups are in no order.
            if i == j or own[i][1] == own[j][0] or homes is not None:
                block.masked_fill_(group[rows, None] == group[columns], 0)
            if domain is not None and not alone:
                if negatives == "within":
                    block.masked_fill_(domain[rows, None] != domain[columns], 0)
                elif meet or i == j:
                    block.masked_fill_(domain[rows, None] == domain[columns], 0)
            yield rows, columns, block


def _ends(sorted_values: Tensor, parts: list[slice]) -> list[tuple[int, int]]:
    """The first and last value of each part."""
    first = sorted_values[[part.start for part in parts]].tolist()
    return list(zip(first, sorted_values[[part.stop - 1 for part in parts]].tolist(), strict=True))


def _block(z: Tensor) -> Tensor:
    """Room for the largest block."""
    return z.new_empty(min(_side(z), len(z)) ** 2)


def _side(z: Tensor) -> int:
    return _SIDE.get(z.device.type, _SIDE_ELSEWHERE)
