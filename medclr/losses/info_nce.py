"""The contrastive loss of MoCo: each query against its key and a queue of earlier keys."""

import torch
import torch.nn.functional as F
from torch import Tensor


def moco_loss(
    q: Tensor,
    k: Tensor,
    queue: Tensor,
    temperature: float,
    groups: Tensor | None = None,
    queue_groups: Tensor | None = None,
) -> Tensor:
    """He et al. 2020, equation 1 (InfoNCE), averaged over the queries. Memory grows with N * K.

    Args:
        q: (N, D) queries; need not be normalised.
        k: (N, D) the keys of the same items, from the momentum encoder. Neither they nor the queue get a gradient.
        queue: (K, D) earlier keys, the negatives.
        temperature: above 0.
        groups, queue_groups: (N,) and (K,) integers, both or neither; a key of the query's own group (its patient) is
            not its negative.

    Returns:
        A scalar, in float64 for float64 queries and in float32 otherwise, whatever autocast says.

    Raises:
        ValueError: one of the groups is given without the other.
    """
    if (groups is None) != (queue_groups is None):
        raise ValueError("groups and queue_groups: give both or neither")
    with torch.autocast(q.device.type, enabled=False):
        dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
        q, k, queue = (F.normalize(z.to(dtype), dim=1) for z in (q, k.detach(), queue.detach()))
        positive = (q * k).sum(dim=1, keepdim=True)
        negatives = q @ queue.T
        if groups is not None and queue_groups is not None:
            negatives = negatives.masked_fill(groups[:, None] == queue_groups, -torch.inf)
        similarity = torch.cat([positive, negatives], dim=1) / temperature
        return F.cross_entropy(similarity, q.new_zeros(len(q), dtype=torch.int64))


def moco_chance_level(groups: Tensor, queue_groups: Tensor) -> Tensor:
    """The loss when all projections are alike, so that the key is found by chance.

    Args:
        groups, queue_groups: (N,) and (K,) integers, as for `moco_loss`.

    Returns:
        A scalar: ln(1 + K) where no query's group is in the queue, less where keys are left out, 0 for an empty queue.
    """
    queue_groups = queue_groups.sort().values
    own = torch.searchsorted(queue_groups, groups, right=True) - torch.searchsorted(queue_groups, groups)
    return torch.log(1 + len(queue_groups) - own).mean()
