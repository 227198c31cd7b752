"""The contrastive loss of MoCo: each query against its key and a queue of earlier keys."""

import torch
import torch.nn.functional as F
from torch import Tensor

from medclr.losses.nt_xent import Negatives, check_negatives, n_negatives


def moco_loss(
    q: Tensor,
    k: Tensor,
    queue: Tensor,
    temperature: float,
    groups: Tensor | None = None,
    queue_groups: Tensor | None = None,
    domains: Tensor | None = None,
    queue_domains: Tensor | None = None,
    negatives: Negatives = "all",
) -> Tensor:
    """He et al. 2020, equation 1 (InfoNCE), averaged over the queries. Memory grows with N * K.

    Args:
        q: (N, D) queries; need not be normalised.
        k: (N, D) the keys of the same items, from the momentum encoder. Neither they nor the queue get a gradient.
        queue: (K, D) earlier keys, the negatives.
        temperature: above 0.
        groups, queue_groups: (N,) and (K,) integers, both or neither; a key of the query's own group (its patient) is
            not its negative.
        domains, queue_domains: (N,) and (K,) integers, of use where negatives are not "all".
        negatives: all of the queue, what is "within" the query's own domain, or "across", in others.

    Returns:
        A scalar, in float64 for float64 queries and in float32 otherwise, whatever autocast says.

    Raises:
        ValueError: one of the groups is given without the other, or there are no domains for negatives that ask for
            them.
    """
    check_negatives(None if queue_domains is None else domains, negatives)
    if (groups is None) != (queue_groups is None):
        raise ValueError("groups and queue_groups: give both or neither")
    with torch.autocast(q.device.type, enabled=False):
        dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
        q, k, queue = (F.normalize(z.to(dtype), dim=1) for z in (q, k.detach(), queue.detach()))
        positive = (q * k).sum(dim=1, keepdim=True)
        others = q @ queue.T
        if groups is not None and queue_groups is not None:
            others = others.masked_fill(groups[:, None] == queue_groups, -torch.inf)
        if negatives != "all" and domains is not None and queue_domains is not None:
            same = domains[:, None] == queue_domains
            others = others.masked_fill(~same if negatives == "within" else same, -torch.inf)
        similarity = torch.cat([positive, others], dim=1) / temperature
        return F.cross_entropy(similarity, q.new_zeros(len(q), dtype=torch.int64))


def moco_chance_level(
    groups: Tensor,
    queue_groups: Tensor,
    domains: Tensor | None = None,
    queue_domains: Tensor | None = None,
    negatives: Negatives = "all",
) -> Tensor:
    """The loss when all projections are alike, so that the key is found by chance.

    Args:
        groups, queue_groups, domains, queue_domains: (N,) and (K,) integers, as for `moco_loss`.
        negatives: as for `moco_loss`.

    Returns:
        A scalar: ln(1 + K) where no query's group is in the queue, less where keys are left out, 0 for an empty queue.
    """
    check_negatives(None if queue_domains is None else domains, negatives)
    return torch.log(1 + n_negatives(groups, queue_groups, domains, queue_domains, negatives)).mean()
