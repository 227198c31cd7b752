"""Losses that make the features of two domains alike, and the reversed gradient by which a classifier does so."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_SHARES = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the median squared distance
_ALIKE = 256  # units of rounding by which rows may differ and be taken for one


def coral_loss(source: Tensor, target: Tensor) -> Tensor:
    """Sun & Saenko 2016 (Deep CORAL), equations 1 to 3: the squared distance of two covariances over 4 F^2.

    Args:
        source: (n, F) features of one domain, two rows or more.
        target: (m, F) of another, likewise.

    Returns:
        A scalar of 0 or more, in float64 for float64 features and in float32 otherwise, whatever autocast says. It does
        not see where the means of the domains are.

    Raises:
        ValueError: one row alone, or features that differ in number.
    """
    with torch.autocast(source.device.type, enabled=False):
        source, target = _checked(source, target)
        difference = torch.cov(source.T) - torch.cov(target.T)
        return difference.square().sum() / (4 * source.shape[1] ** 2)


def mmd(source: Tensor, target: Tensor, bandwidths: Sequence[float] | None = None) -> Tensor:
    """Gretton et al. 2012, equation 3: the unbiased squared maximum mean discrepancy, under a mean of Gaussian kernels.

    The kernels are exp(-|x - y|^2 / bandwidth), as in Long et al. 2015 (DAN). Time and memory grow with (n + m)^2:
    about six numbers for each pair of rows, ten with a gradient.

    Args:
        source: (n, F) features of one domain, two rows or more.
        target: (m, F) of another, likewise.
        bandwidths: above 0, in the features' unit squared. None: 1/4, 1/2, 1, 2 and 4 times the median squared distance
            of two rows, whichever their domains; it gets no gradient. Values of different kernels do not compare.

    Returns:
        A scalar, in float64 for float64 features and in float32 otherwise, whatever autocast says. Its mean is 0 where
        the domains do not differ, so that it is at times below.

    Raises:
        ValueError: one row alone, or features that differ in number.
    """
    with torch.autocast(source.device.type, enabled=False):
        source, target = _checked(source, target)
        n, m = len(source), len(target)
        rows = torch.cat([source, target])
        eps, whole = torch.finfo(rows.dtype).eps, rows.detach().square().sum(dim=1).mean()
        rows = rows - rows.detach().mean(dim=0)
        length = rows.square().sum(dim=1)
        # Below this a squared distance is rounding, of rows as they came or of their products: no kernel is made of it.
        least = (_ALIKE * eps) ** 2 * whole + eps * length.detach().mean()
        square = (length[:, None] + length - 2 * rows @ rows.T).clamp(min=0)
        own = torch.eye(n + m, dtype=torch.bool, device=rows.device)  # a row makes no pair with itself
        widths: Sequence[float | Tensor] | None = bandwidths
        if widths is None:
            median = square.detach().masked_fill(own, torch.nan).nanmedian().maximum(least)
            widths = [share * median.clamp(min=torch.finfo(rows.dtype).tiny) for share in _SHARES]
        kernel = sum((torch.exp(square / -width) for width in widths), torch.zeros_like(square))
        kernel = kernel.masked_fill(own, 0) / len(widths)
        within = kernel[:n, :n].sum() / (n * (n - 1)) + kernel[n:, n:].sum() / (m * (m - 1))
        return within - 2 * kernel[:n, n:].mean()


def reverse_gradient(features: Tensor, strength: float) -> Tensor:
    """The features as they are, whose gradient is turned round: Ganin et al. 2016 (DANN).

    A domain classifier behind it learns to tell the domains apart, and what is before it learns that it cannot. Its
    loss is a plain cross-entropy.

    Args:
        features: of any shape.
        strength: what the gradient is multiplied by, times -1.
    """
    result: Tensor = _Reversed.apply(features, strength)  # type: ignore[no-untyped-call]
    return result


def reversal_strength(progress: float) -> float:
    """How strongly to reverse: from 0 at the start to almost 1 at the end, as in Ganin et al. 2016 with gamma 10.

    Args:
        progress: share of the training that is done, 0 to 1.
    """
    return 2 / (1 + math.exp(-10 * progress)) - 1


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return features.view_as(features)  # else autograd takes it for the input itself

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradient, None


def _checked(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one precision, float32 or float64."""
    n, m = tuple(source.shape), tuple(target.shape)
    if min(n[0], m[0]) < 2 or n[1:] != m[1:]:
        raise ValueError(f"features of shapes {n} and {m}: give two rows or more of each domain, of as many features")
    dtype = torch.float64 if source.dtype == torch.float64 else torch.float32
    return source.to(dtype), target.to(dtype)
