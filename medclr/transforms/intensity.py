"""How grey values vary between scanners and readers; none of these ever inverts their order."""

import math

import numpy as np
import torch
from monai.transforms.transform import Transform
from monai.utils.type_conversion import convert_to_tensor
from numpy.typing import NDArray
from torch import Tensor

from medclr.transforms.augmentation import Augmentation, Params, per_item


class Normalise(Transform):
    """Map a window of grey values to [0, 1] and clip the rest; not random.

    Args:
        low: grey value that becomes 0 when used on one image, in the image's own unit (HU for CT).
        high: grey value that becomes 1.
    """

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        self.low, self.high = low, high

    @staticmethod
    def apply(batch: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Window a batch (B, C, *spatial), each item by its own low and high (B,), where high > low."""
        low, high = per_item(low, batch), per_item(high, batch)
        return ((batch - low) / (high - low)).clamp_(0, 1)

    def __call__(self, image: Tensor | NDArray[np.float32]) -> Tensor:
        """Window one image (C, *spatial) by the low and high given at the start."""
        batch = convert_to_tensor(image, dtype=torch.float32, track_meta=False)[None]
        return self.apply(batch, torch.tensor([self.low]), torch.tensor([self.high]))[0]


class WindowJitter(Augmentation):
    """Normalise by a window that is moved and widened at random, as readers do.

    Args:
        shift: largest move of the window, either way, as a share of its width.
        width: largest natural logarithm of the factor by which it is widened or narrowed about its centre.
        low: lower end of the window where `apply` is not given one per item.
        high: upper end, likewise.
    """

    def __init__(self, shift: float = 0.05, width: float = 0.1, low: float = 0.0, high: float = 1.0) -> None:
        self.shift, self.width = shift, width
        self.low, self.high = low, high

    def draw(self, rng: np.random.Generator) -> Params:
        """Parameters of one item: shift (), a share of the window's width, and scale (), a factor of it."""
        u, v = rng.random(2).tolist()
        return {
            "shift": np.array(self.shift * (2 * u - 1), np.float32),
            "scale": np.array(math.exp(self.width * (2 * v - 1)), np.float32),
        }

    def apply(self, batch: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Window a batch (B, C, *spatial) to [0, 1]; params may hold low and high (B,) beside what was drawn."""
        low = params.get("low", torch.full_like(params["shift"], self.low))
        high = params.get("high", torch.full_like(params["shift"], self.high))
        width = high - low
        centre = (low + high) / 2 + params["shift"] * width
        half = params["scale"] * width / 2
        return Normalise.apply(batch, centre - half, centre + half)


class Intensity(Augmentation):
    """Gamma, then contrast about the image's mean, then brightness, of images in [0, 1].

    Args:
        brightness: largest number added or taken away.
        contrast: largest natural logarithm of the factor of the distance to the mean.
        gamma: largest natural logarithm of the exponent.
    """

    def __init__(self, brightness: float = 0.1, contrast: float = 0.3, gamma: float = 0.3) -> None:
        self.brightness, self.contrast, self.gamma = brightness, contrast, gamma

    def draw(self, rng: np.random.Generator) -> Params:
        """Parameters of one item: brightness (), contrast () and gamma (); the latter two are above 0."""
        u, v, w = rng.random(3).tolist()
        return {
            "brightness": np.array(self.brightness * (2 * u - 1), np.float32),
            "contrast": np.array(math.exp(self.contrast * (2 * v - 1)), np.float32),
            "gamma": np.array(math.exp(self.gamma * (2 * w - 1)), np.float32),
        }

    def apply(self, batch: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Change a batch (B, C, *spatial) in [0, 1]; what would leave [0, 1] is clipped."""
        # Interpolation may round to just below 0, and a power of that is NaN.
        bent = batch.clamp(0, 1).pow_(per_item(params["gamma"], batch))
        mean = bent.mean(dim=tuple(range(1, batch.ndim)))
        offset = mean * (1 - params["contrast"]) + params["brightness"]
        return bent.mul_(per_item(params["contrast"], batch)).add_(per_item(offset, batch)).clamp_(0, 1)


class Gain(Augmentation):
    """Multiply an image in [0, 1], so that 0 stays 0, as a PET tracer's dose and uptake time do.

    Args:
        factor: largest natural logarithm of the factor.
    """

    def __init__(self, factor: float = 0.3) -> None:
        self.factor = factor

    def draw(self, rng: np.random.Generator) -> Params:
        """Parameters of one item: factor () above 0."""
        return {"factor": np.array(math.exp(self.factor * (2 * rng.random() - 1)), np.float32)}

    def apply(self, batch: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Change a batch (B, C, *spatial) in [0, 1]; what would leave it is clipped."""
        return (batch * per_item(params["factor"], batch)).clamp_(0, 1)


class Blur(Augmentation):
    """Gaussian blur with the same sigma along every axis; the border is repeated outwards.

    Args:
        sigma: smallest and largest standard deviation, in voxels.
        probability: share of the views that are blurred.
    """

    def __init__(self, sigma: tuple[float, float] = (0.3, 1.0), probability: float = 0.5) -> None:
        self.sigma, self.probability = sigma, probability

    def draw(self, rng: np.random.Generator) -> Params:
        """Parameters of one item: sigma () in voxels, 0 for none."""
        u, v = rng.random(2).tolist()
        low, high = self.sigma
        return {"sigma": np.array((low + (high - low) * v) if u < self.probability else 0.0, np.float32)}

    def apply(self, batch: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Blur a batch (B, C, *spatial), each item by its own sigma (B,)."""
        # One matrix product per axis: at these sizes quicker than a grouped convolution, and without truncation.
        for axis in range(2, batch.ndim):
            lines = batch.movedim(axis, -1)
            weights = _gaussian(params["sigma"], lines.shape[-1])
            blurred = lines.reshape(len(lines), -1, lines.shape[-1]) @ weights.mT
            batch = blurred.view(lines.shape).movedim(-1, axis)
        return batch


def _gaussian(sigma: Tensor, n: int) -> Tensor:
    """Matrices (B, n, n) that blur a line of n voxels: the Gaussian integrated over each voxel, as MONAI's "erf"."""
    centre = torch.arange(n, device=sigma.device, dtype=sigma.dtype)
    edge = centre[1:] - 0.5
    scale = math.sqrt(0.5) / sigma.clamp(min=1e-3)
    below = 0.5 * (1 + torch.erf((edge[None] - centre[:, None]) * scale[:, None, None]))
    zero = torch.zeros_like(below[..., :1])
    # All that falls beyond the first or the last voxel counts as that voxel.
    return torch.diff(torch.cat([zero, below, zero + 1], dim=-1), dim=-1)
