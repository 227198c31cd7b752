"""Images in the style of others: their grey values, or how strong their low frequencies are; nothing is random."""

import torch
from torch import Tensor


def histogram_matched(images: Tensor, references: Tensor) -> Tensor:
    """Each image with the grey values of its reference: a rising map of its own, so that no order is inverted.

    A grey value goes to where as large a share of the reference's voxels lies at or below it, by straight lines between
    the grey values that the reference has (Gonzalez & Woods, Digital Image Processing, section 3.3; scikit-image's
    `match_histograms`). Voxels that are equal stay equal. Where both have zeros, which is what lies around a volume or
    below its window, these stay 0 and the others are matched among themselves: how much of a patch is empty is no
    style.

    Args:
        images: float (B, C, *spatial) in [0, 1]; each channel is matched by itself.
        references: likewise, (B, C, *spatial).

    Returns:
        float32 (B, C, *spatial) in [0, 1].
    """
    values, shown = images.flatten(2).float().contiguous(), references.flatten(2).float().sort(dim=2).values
    n, m = values.shape[2], shown.shape[2]
    # float64, as a share of many voxels has to be told from the next.
    below = torch.searchsorted(values.sort(dim=2).values, values, right=True).double()
    empty, shown_empty = ((x <= 0).sum(dim=2, keepdim=True).double() for x in (values, shown))
    both = (empty > 0) & (shown_empty > 0)
    empty, shown_empty = empty * both, shown_empty * both
    # How many of the reference's sorted voxels lie at or below; those that are 0 in both correspond.
    rank = shown_empty + (below - empty).clamp(min=0) * (m - shown_empty) / (n - empty).clamp(min=1)
    upper = shown.gather(2, (rank.ceil().long() - 1).clamp(0, m - 1))
    start = torch.searchsorted(shown, upper)
    lower = torch.where(start > 0, shown.gather(2, (start - 1).clamp(min=0)), upper)
    step = torch.searchsorted(shown, upper, right=True) - start
    share = ((rank - start) / step).clamp(0, 1).float()
    return torch.lerp(lower, upper, share).clamp_(0, 1).view(images.shape)


def fourier_matched(images: Tensor, references: Tensor, share: float) -> Tensor:
    """Each image with the low-frequency amplitudes of its reference, and phases of its own.

    Fourier domain adaptation: Yang & Soatto, CVPR 2020, equations 3 and 4. What would leave [0, 1] is clipped.

    Args:
        images: float (B, C, *spatial) in [0, 1]; each channel is matched by itself.
        references: likewise, of the same shape.
        share: beta of the paper: amplitudes are the reference's where no axis has more than this many cycles a voxel,
            from 0, the mean alone, to 0.5, all of them.

    Returns:
        float32 (B, C, *spatial) in [0, 1].
    """
    axes, sides = tuple(range(2, images.ndim)), images.shape[2:]
    own, other = (torch.fft.rfftn(x.float(), dim=axes) for x in (images, references))
    low = torch.ones((), dtype=torch.bool, device=images.device)
    for axis, side in enumerate(sides):
        last = axis == len(sides) - 1
        cycles = (torch.fft.rfftfreq if last else torch.fft.fftfreq)(side, device=images.device).abs()
        low = low & (cycles <= share).view(-1, *[1] * (len(sides) - 1 - axis))
    matched = torch.polar(torch.where(low, other.abs(), own.abs()), own.angle())
    result: Tensor = torch.fft.irfftn(matched, s=sides, dim=axes).clamp_(0, 1)
    return result
