"""The normalised, temperature-scaled cross entropy of SimCLR."""

import torch
import torch.nn.functional as F
from torch import Tensor


def nt_xent(z1: Tensor, z2: Tensor, temperature: float, groups: Tensor | None = None) -> Tensor:
    """Chen et al. 2020, equation 1, averaged over all 2N views.

    Args:
        z1: (N, D) projections of the first views; need not be normalised.
        z2: (N, D) projections of the second views, in the same order.
        temperature: above 0.
        groups: (N,) integers; views of different items of one group (a patient) are not each other's negatives.

    Returns:
        A scalar, in float64 for float64 projections and in float32 otherwise, whatever autocast says.
    """
    n = len(z1)
    with torch.autocast(z1.device.type, enabled=False):
        z = torch.cat([z1, z2])
        z = F.normalize(z if z.dtype == torch.float64 else z.float(), dim=1)
        similarity = z @ z.T / temperature
        positive = torch.arange(2 * n, device=z.device).roll(n)
        left_out = torch.zeros_like(similarity, dtype=torch.bool)
        if groups is not None:
            group = torch.cat([groups, groups])
            left_out = (group[:, None] == group).scatter(1, positive[:, None], False)
        # A row is never its own negative.
        left_out.fill_diagonal_(True)
        return F.cross_entropy(similarity.masked_fill(left_out, -torch.inf), positive)


def chance_level(groups: Tensor) -> Tensor:
    """The loss when all projections are alike, so that the positive is found by chance.

    Args:
        groups: (N,) integers, as for `nt_xent`.

    Returns:
        A scalar: ln(2N - 1) where no group repeats, and less where views of one group are left out.
    """
    alike = (groups[:, None] == groups).sum(dim=1)
    return torch.log(2 * (len(groups) - alike) + 1).mean()
