"""What scanners do to an image: blur, noise, uneven sensitivity, ringing, coarse voxels and motion."""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.polynomial import legendre
from numpy.typing import NDArray
from torch import Tensor

from medclr.transforms.augmentation import Augmentation, Params, per_item, scalar
from medclr.transforms.spatial import ResizedCrop


class Blur(Augmentation):
    """Gaussian blur with the same sigma along every axis; the border is repeated outwards.

    Args:
        sigma: smallest and largest standard deviation, in voxels.
        probability: share of the views that are blurred.
        of_side: sigma is a share of each side instead, so that what is lost depends on no number of voxels.
    """

    def __init__(
        self, sigma: tuple[float, float] = (0.3, 1.0), probability: float = 0.5, of_side: bool = False
    ) -> None:
        self.sigma, self.probability, self.of_side = sigma, probability, of_side

    def draw(self, rng: np.random.Generator) -> Params:
        """Parameters of one item: sigma () in voxels, or as a share of each side; 0 for none."""
        u, v = rng.random(2).tolist()
        low, high = self.sigma
        return {"sigma": scalar(low + (high - low) * v if u < self.probability else 0)}

    def extremes(self) -> tuple[Params, Params]:
        """The smallest and the largest sigma."""
        return {"sigma": scalar(self.sigma[0])}, {"sigma": scalar(self.sigma[1])}

    def active(self, params: dict[str, Tensor]) -> Tensor:
        """Those of a sigma above 0."""
        return params["sigma"] > 0

    def change(self, batch: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Blur a batch (B, C, *spatial), each item by its own sigma (B,)."""
        sigma = params["sigma"]
        return _along_axes(batch, lambda side: _gaussian(sigma * side if self.of_side else sigma, side))


class Noise(Augmentation):
    """Add Gaussian noise to an image in [0, 1].

    Args:
        sigma: smallest and largest standard deviation.
        probability: share of the views that get noise.
    """

    def __init__(self, sigma: tuple[float, float] = (0.01, 0.05), probability: float = 0.3) -> None:
        self.sigma, self.probability = sigma, probability

    def draw(self, rng: np.random.Generator) -> Params:
        """Parameters of one item: sigma (), 0 for none, and seed (), a whole number below 2^24."""
        u, v, w = rng.random(3).tolist()
        low, high = self.sigma
        return {
            "sigma": scalar(low + (high - low) * v if u < self.probability else 0),
            "seed": scalar(math.floor(w * 2**24)),  # as far as float32 counts
        }

    def extremes(self) -> tuple[Params, Params]:
        """The smallest and the largest sigma."""
        low, high = ({"sigma": scalar(sigma), "seed": scalar(0)} for sigma in self.sigma)
        return low, high

    def active(self, params: dict[str, Tensor]) -> Tensor:
        """Those of a sigma above 0."""
        return params["sigma"] > 0

    def change(self, batch: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Add to a batch (B, C, *spatial); what would leave [0, 1] is clipped.

        A function of the seed and of each voxel's number, the same but for rounding on every device.
        """
        noise = _normal(params["seed"], batch[0].numel()).view(batch.shape)
        return noise.mul_(per_item(params["sigma"], batch)).add_(batch).clamp_(0, 1)


class BiasField(Augmentation):
    """Multiply an image in [0, 1] by a smooth field, as the coils of an MR scanner do.

    The logarithm of the field is a sum of products of Legendre polynomials, one per axis, as in MONAI's
    `RandBiasField` (after Van Leemput et al. 1999).

    Args:
        spatial_dims: 2 or 3.
        strength: smallest and largest strength; the field is nowhere above its exponential, nor below the inverse.
        degree: of the polynomials, summed over the axes.
        probability: share of the views that are changed.
    """

    def __init__(
        self,
        spatial_dims: int,
        strength: tuple[float, float] = (0.0, 1.0),
        degree: int = 3,
        probability: float = 0.5,
    ) -> None:
        self.spatial_dims, self.strength, self.degree = spatial_dims, strength, degree
        self.probability = probability
        degrees = np.indices((degree + 1,) * spatial_dims).sum(axis=0)
        self.terms = degrees <= degree
        self.n_terms = int(self.terms.sum())

    def draw(self, rng: np.random.Generator) -> Params:
        """Parameters of one item: coefficients (degree + 1, ...), one axis per spatial axis; all 0 for none."""
        u = rng.random(2 + self.n_terms)
        # Cubes, so that a few terms stand out; many equal ones would cancel. No polynomial is ever above 1.
        terms = (2 * u[2:] - 1) ** 3
        low, high = self.strength
        strength = (low + (high - low) * u[1]) * (u[0] < self.probability)
        return self._coefficients(terms * (strength / np.abs(terms).sum()))

    def extremes(self) -> tuple[Params, Params]:
        """A slope along axis 0 of the smallest strength, and of the largest."""
        slope = np.zeros(self.terms.shape, np.float32)
        slope[(1, *[0] * (self.spatial_dims - 1))] = 1
        low, high = ({"coefficients": slope * np.float32(strength)} for strength in self.strength)
        return low, high

    def active(self, params: dict[str, Tensor]) -> Tensor:
        """Those of any coefficient but 0."""
        return params["coefficients"].flatten(1).any(dim=1)

    def change(self, batch: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Change a batch (B, C, *spatial) in [0, 1]; what would leave it is clipped."""
        field = params["coefficients"]
        for side in batch.shape[2:]:
            line = np.linspace(-1, 1, side)
            basis = torch.from_numpy(legendre.legvander(line, field.shape[1] - 1)).to(field)
            field = torch.tensordot(field, basis, dims=([1], [1]))  # the first axis goes, its place comes last
        return (batch * field.exp_()[:, None]).clamp_(0, 1)

    def _coefficients(self, terms: NDArray[np.float64]) -> Params:
        coefficients = np.zeros(self.terms.shape, np.float32)
        coefficients[self.terms] = terms
        return {"coefficients": coefficients}


class Gibbs(Augmentation):
    """Cut the high frequencies of an image in [0, 1], which rings at its edges: MONAI's `GibbsNoise`.

    Args:
        alpha: smallest and largest alpha: a sphere of (1 - alpha) * sqrt(1/2) of the longest side is kept.
        probability: share of the views that ring.
    """

    def __init__(self, alpha: tuple[float, float] = (0.3, 0.6), probability: float = 0.2) -> None:
        self.alpha, self.probability = alpha, probability

    def draw(self, rng: np.random.Generator) -> Params:
        """Parameters of one item: alpha () below 1, 0 for none."""
        u, v = rng.random(2).tolist()
        low, high = self.alpha
        return {"alpha": scalar(low + (high - low) * v if u < self.probability else 0)}

    def extremes(self) -> tuple[Params, Params]:
        """The smallest and the largest alpha."""
        return {"alpha": scalar(self.alpha[0])}, {"alpha": scalar(self.alpha[1])}

    def active(self, params: dict[str, Tensor]) -> Tensor:
        """Those of an alpha above 0."""
        return params["alpha"] > 0

    def change(self, batch: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Change a batch (B, C, *spatial) in [0, 1]; what would leave it is clipped."""
        shape = batch.shape[2:]
        radius = (1 - params["alpha"]) * max(shape) * math.sqrt(0.5)
        near = opposite = torch.zeros(1, device=batch.device)
        for i, side in enumerate(shape):
            # MONAI centres its sphere half a voxel off where the side is even, so that a frequency and its opposite
            # need not both lie inside; the real part of its result has the mean of the two.
            k = torch.arange(side, device=batch.device)
            square = ((k + side // 2) % side - (side - 1) / 2) ** 2
            mirrored = square[-k % side]
            if i == len(shape) - 1:
                square, mirrored = square[: side // 2 + 1], mirrored[: side // 2 + 1]
            near, opposite = near[..., None] + square, opposite[..., None] + mirrored
        square = per_item(radius**2, batch)
        kept = ((near <= square).float() + (opposite <= square)) / 2
        axes = tuple(range(2, batch.ndim))
        ringing: Tensor = torch.fft.irfftn(torch.fft.rfftn(batch, dim=axes).mul_(kept), s=shape, dim=axes)
        return ringing.clamp_(0, 1)


class Resolution(Augmentation):
    """Coarser voxels, then the old grid again: MONAI's `RandSimulateLowResolution`, down by area and up linearly.

    Args:
        zoom: smallest and largest share of the voxels along each axis that are left in between, within (0, 1).
        probability: share of the views that are coarsened.
    """

    def __init__(self, zoom: tuple[float, float] = (0.4, 0.8), probability: float = 0.2) -> None:
        self.zoom, self.probability = zoom, probability

    def draw(self, rng: np.random.Generator) -> Params:
        """Parameters of one item: zoom (), 1 for none."""
        u, v = rng.random(2).tolist()
        low, high = self.zoom
        return {"zoom": scalar(low + (high - low) * v if u < self.probability else 1)}

    def extremes(self) -> tuple[Params, Params]:
        """The largest and the smallest share."""
        return {"zoom": scalar(self.zoom[1])}, {"zoom": scalar(self.zoom[0])}

    def active(self, params: dict[str, Tensor]) -> Tensor:
        """Those of a zoom below 1."""
        return params["zoom"] < 1

    def change(self, batch: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Change a batch (B, C, *spatial), each item by its own zoom (B,); at least one voxel of each side is left."""
        zooms = params["zoom"].tolist()
        return _along_axes(batch, lambda side: torch.stack([_coarse(zoom, side) for zoom in zooms]).to(batch))


class Motion(Augmentation):
    """Blur along a straight line, as of what moves at constant speed while it is exposed; the border is repeated.

    The mean of the image over the places on its way: Gonzalez & Woods, Digital Image Processing, the estimation of a
    degradation by modelling. So radiographs blur; the ghosts of what moves between the echoes of MR are another thing.

    Args:
        spatial_dims: 2 or 3.
        length: smallest and largest length of the way, as a share of the sides, below 1.
        probability: share of the views that are blurred.
    """

    def __init__(self, spatial_dims: int, length: tuple[float, float] = (0.03, 0.2), probability: float = 0.2) -> None:
        self.spatial_dims, self.length, self.probability = spatial_dims, length, probability

    def draw(self, rng: np.random.Generator) -> Params:
        """Parameters of one item: length (), 0 for none, and direction (D,), of length 1 and any with equal chance."""
        u, v = rng.random(2).tolist()
        low, high = self.length
        direction = rng.standard_normal(self.spatial_dims)
        return {
            "length": scalar(low + (high - low) * v if u < self.probability else 0),
            "direction": (direction / np.linalg.norm(direction)).astype(np.float32),
        }

    def extremes(self) -> tuple[Params, Params]:
        """The shortest and the longest way along axis 0."""
        axis = np.eye(self.spatial_dims, dtype=np.float32)[0]
        low, high = ({"length": scalar(length), "direction": axis} for length in self.length)
        return low, high

    def active(self, params: dict[str, Tensor]) -> Tensor:
        """Those of a length above 0."""
        return params["length"] > 0

    def change(self, batch: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Blur a batch (B, C, *spatial), each item along its own way (B,) and (B, D)."""
        way = params["length"][:, None] * params["direction"]
        # Of equal steps, of a voxel at most, in whose middle each place is.
        n_places = math.ceil(self.length[1] * max(batch.shape[2:])) + 1
        still = {"size": torch.ones_like(way), "flip": torch.zeros_like(way)}
        still["rotation_deg"] = way.new_zeros(len(way), 1 if self.spatial_dims == 2 else 3)
        crop, total = ResizedCrop(self.spatial_dims), torch.zeros_like(batch)
        for place in (torch.arange(n_places) + 0.5) / n_places - 0.5:
            total += crop.change(batch, {"centre": 0.5 + place * way, **still})
        return total / n_places


def _along_axes(batch: Tensor, matrices: Callable[[int], Tensor]) -> Tensor:
    """Multiply every axis of a batch (B, C, *spatial) by the matrices (B, side, side) of its side."""
    # One matrix product per axis: at these sizes quicker than a grouped convolution, and without truncation.
    shape = batch.shape
    by_side = {side: matrices(side) for side in set(shape[2:])}
    for axis in range(2, batch.ndim):
        weights = by_side[shape[axis]]
        before, after = math.prod(shape[1:axis]), math.prod(shape[axis + 1 :])
        if after == 1:
            batch = batch.reshape(len(batch), before, shape[axis]) @ weights.mT
        else:
            batch = weights[:, None] @ batch.reshape(len(batch), before, shape[axis], after)
    return batch.view(shape)


def _coarse(zoom: float, n: int) -> Tensor:
    """The matrix (n, n) that makes of a line of n voxels a share of as many, and n of these."""
    coarse = F.interpolate(torch.eye(n)[None], max(1, round(n * zoom)), mode="area")
    return F.interpolate(coarse, n, mode="linear")[0].T


def _gaussian(sigma: Tensor, n: int) -> Tensor:
    """Matrices (B, n, n) that blur a line of n voxels: the Gaussian integrated over each voxel, as MONAI's "erf"."""
    centre = torch.arange(n, device=sigma.device, dtype=sigma.dtype)
    edge = centre[1:] - 0.5
    below = 0.5 * (1 + torch.erf((edge[None] - centre[:, None]) * (math.sqrt(0.5) / sigma)[:, None, None]))
    zero = torch.zeros_like(below[..., :1])
    # All that falls beyond the first or the last voxel counts as that voxel.
    return torch.diff(torch.cat([zero, below, zero + 1], dim=-1), dim=-1)


def _normal(seed: Tensor, n: int) -> Tensor:
    """Standard normal numbers (B, n), a function of each item's seed and of their place alone.

    Generators of torch's own give one item at a time, and on a CPU one core at a time. Here places are counted in steps
    of the seed's own length, mixed (Appleby's MurmurHash3 finaliser), and the halves of the 32 bits made a radius and
    an angle (Box and Muller 1958); none is beyond 4.9.
    """
    start = _mixed(seed.int())
    step = _mixed(start ^ 0x5BD1E995) | 1
    bits = _mixed(torch.arange((n + 1) // 2, dtype=torch.int32, device=seed.device) * step[:, None] + start[:, None])
    out = torch.empty(len(seed), 2, bits.shape[1], device=seed.device)
    radius = torch.bitwise_and(bits, 0xFFFF).float().add_(0.5).mul_(2.0**-16).log_().mul_(-2).sqrt_()
    angle = bits.bitwise_right_shift_(16).float().mul_(2 * math.pi * 2.0**-16)
    torch.cos(angle, out=out[:, 0])
    torch.sin(angle, out=out[:, 1])
    return out.mul_(radius[:, None]).view(len(seed), -1)[:, :n].contiguous()


def _mixed(bits: Tensor) -> Tensor:
    """Each of 32 bits made to depend on all, in place; int32, whose products wrap."""
    for shift, factor in ((16, -0x7A143595), (13, -0x3D4D51CB), (16, 1)):
        # Shifting brings in copies of the sign, which the mask takes out again.
        bits.bitwise_xor_((bits >> shift).bitwise_and_((1 << (32 - shift)) - 1)).mul_(factor)
    return bits
