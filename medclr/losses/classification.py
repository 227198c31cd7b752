"""The loss of labels, of which some are unknown."""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy


def label_loss(logits: Tensor, y: Tensor, weight: Tensor | None = None, exclusive: bool = False) -> Tensor:
    """Mean cross-entropy over the known labels of a batch; 0 where none is known.

    Args:
        logits: (B, K).
        y: (B, K) of 0, 1 and NaN, which is unknown and counts for nothing.
        weight: (K,) of the classes, or of the positives of each label.
        exclusive: the K columns are classes, of which each row has one, or is NaN throughout.
    """
    known = ~torch.isnan(y)
    target = torch.where(known, y, 0.0)
    if exclusive:
        each, known = cross_entropy(logits, target, weight, reduction="none"), known.all(dim=1)
    else:
        each = binary_cross_entropy_with_logits(logits, target, pos_weight=weight, reduction="none")
    return (each * known).sum() / known.sum().clamp(min=1)


def class_weights(y: Tensor, exclusive: bool) -> Tensor:
    """Weights (K,) under which all classes, or positives and negatives of each label, count the same."""
    positive, negative = torch.nansum(y, dim=0), torch.nansum(1 - y, dim=0)
    if exclusive:
        return torch.where(positive > 0, len(y) / (positive * (positive > 0).sum()).clamp(min=1), 0.0)
    return torch.where((positive > 0) & (negative > 0), negative / positive.clamp(min=1), 1.0)
