"""How grey values vary between scanners and readers; none of these ever inverts their order."""

import math

import numpy as np
import torch
from monai.transforms.transform import Transform
from monai.utils.type_conversion import convert_to_tensor
from numpy.typing import NDArray
from torch import Tensor

from medclr.transforms.augmentation import Augmentation, Params, per_item, scalar

_N_BINS = 256  # of the histogram that is equalised
_FLAT = 1e-6  # an image of a smaller range of grey values shows nothing but rounding


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
        return (batch - low).div_(high - low).clamp_(0, 1)

    def __call__(self, image: Tensor | NDArray[np.float32]) -> Tensor:
        """Window one image (C, *spatial) by the low and high given at the start."""
        batch = convert_to_tensor(image, dtype=torch.float32, track_meta=False)[None]
        return self.apply(batch, torch.tensor([self.low]), torch.tensor([self.high]))[0]


class WindowJitter(Augmentation):
    """Normalise by a window that is moved and widened at random, as readers do.

    Every item is windowed; "off" is the window as it was given.

    Args:
        shift: largest move of the window, either way, as a share of its width.
        width: largest natural logarithm of the factor by which it is widened or narrowed about its centre.
        probability: share of the views whose window is moved.
        low: lower end of the window where `apply` is not given one per item.
        high: upper end, likewise.
    """

    def __init__(
        self, shift: float = 0.05, width: float = 0.1, probability: float = 1.0, low: float = 0.0, high: float = 1.0
    ) -> None:
        self.shift, self.width, self.probability = shift, width, probability
        self.low, self.high = low, high

    def draw(self, rng: np.random.Generator) -> Params:
        """Parameters of one item: shift (), a share of the window's width, and scale (), a factor of it."""
        u, v, w = rng.random(3).tolist()
        if u >= self.probability:
            return {"shift": scalar(0), "scale": scalar(1)}
        return {"shift": scalar(self.shift * (2 * v - 1)), "scale": scalar(math.exp(self.width * (2 * w - 1)))}

    def extremes(self) -> tuple[Params, Params]:
        """The window as it is; moved up and narrowed."""
        strongest = {"shift": scalar(self.shift), "scale": scalar(math.exp(-self.width))}
        return {"shift": scalar(0), "scale": scalar(1)}, strongest

    def active(self, params: dict[str, Tensor]) -> Tensor:
        """All: without a window, grey values are in the store's unit."""
        return torch.ones_like(params["shift"], dtype=torch.bool)

    def change(self, batch: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Window a batch (B, C, *spatial) to [0, 1]; params may hold low and high (B,) beside what was drawn."""
        low = params.get("low", torch.full_like(params["shift"], self.low))
        high = params.get("high", torch.full_like(params["shift"], self.high))
        width, wider = high - low, (params["scale"] - 1) / 2
        return Normalise.apply(batch, low + (params["shift"] - wider) * width, high + (params["shift"] + wider) * width)


class Intensity(Augmentation):
    """Gamma, then contrast about the image's mean, then brightness, of images in [0, 1].

    Args:
        brightness: largest number added or taken away.
        contrast: largest natural logarithm of the factor of the distance to the mean.
        gamma: largest natural logarithm of the exponent.
        probability: share of the views that are changed.
    """

    def __init__(
        self, brightness: float = 0.1, contrast: float = 0.3, gamma: float = 0.3, probability: float = 1.0
    ) -> None:
        self.brightness, self.contrast, self.gamma = brightness, contrast, gamma
        self.probability = probability

    def draw(self, rng: np.random.Generator) -> Params:
        """Parameters of one item: brightness (), contrast () and gamma (); the latter two are above 0."""
        u, *signs = (2 * rng.random(4) - 1).tolist()
        return self._at(*signs) if (u + 1) / 2 < self.probability else self._at(0, 0, 0)

    def extremes(self) -> tuple[Params, Params]:
        """Nothing; brighter, of more contrast, with the middle greys brightened."""
        return self._at(0, 0, 0), self._at(1, 1, -1)

    def active(self, params: dict[str, Tensor]) -> Tensor:
        """Those that anything is done to."""
        return (params["brightness"] != 0) | (params["contrast"] != 1) | (params["gamma"] != 1)

    def change(self, batch: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Change a batch (B, C, *spatial) in [0, 1]; what would leave [0, 1] is clipped."""
        # Interpolation may round to just below 0, and a logarithm of that is NaN. Quicker than a power.
        bent = batch.clamp(0, 1).log_().mul_(per_item(params["gamma"], batch)).exp_()
        mean = bent.mean(dim=tuple(range(1, batch.ndim)))
        offset = mean * (1 - params["contrast"]) + params["brightness"]
        return bent.mul_(per_item(params["contrast"], batch)).add_(per_item(offset, batch)).clamp_(0, 1)

    def _at(self, brightness: float, contrast: float, gamma: float) -> Params:
        """Parameters at shares of their largest values, each in [-1, 1]."""
        return {
            "brightness": scalar(self.brightness * brightness),
            "contrast": scalar(math.exp(self.contrast * contrast)),
            "gamma": scalar(math.exp(self.gamma * gamma)),
        }


class Gain(Augmentation):
    """Multiply an image in [0, 1], so that 0 stays 0, as a PET tracer's dose and uptake time do.

    Args:
        factor: largest natural logarithm of the factor.
        probability: share of the views that are changed.
    """

    def __init__(self, factor: float = 0.3, probability: float = 1.0) -> None:
        self.factor, self.probability = factor, probability

    def draw(self, rng: np.random.Generator) -> Params:
        """Parameters of one item: factor () above 0."""
        u, v = rng.random(2).tolist()
        return {"factor": scalar(math.exp(self.factor * (2 * v - 1)) if u < self.probability else 1)}

    def extremes(self) -> tuple[Params, Params]:
        """Nothing; the largest factor."""
        return {"factor": scalar(1)}, {"factor": scalar(math.exp(self.factor))}

    def active(self, params: dict[str, Tensor]) -> Tensor:
        """Those of a factor other than 1."""
        return params["factor"] != 1

    def change(self, batch: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Change a batch (B, C, *spatial) in [0, 1]; what would leave it is clipped."""
        return (batch * per_item(params["factor"], batch)).clamp_(0, 1)


class HistogramShift(Augmentation):
    """Bend the grey values by a rising line through points that are moved at random, as MONAI's `RandHistogramShift`.

    The points stand evenly between an image's smallest and largest grey value, which keep their place. Each other moves
    by at most half the distance to the next, so that every slope lies within 1 - strength and 1 + strength.

    Args:
        n_points: number of points, the two ends included, 3 or more.
        strength: largest change of a slope; below 1, grey values that differ stay different.
        probability: share of the views that are changed.
    """

    def __init__(self, n_points: int = 6, strength: float = 0.5, probability: float = 0.5) -> None:
        self.n_points, self.strength, self.probability = n_points, strength, probability
        self.even = np.linspace(0, 1, n_points, dtype=np.float32)

    def draw(self, rng: np.random.Generator) -> Params:
        """Parameters of one item: points (n_points,), what each becomes, from 0 to 1 and rising."""
        u = rng.random(self.n_points - 1)
        return self._moved(2 * u[1:] - 1) if u[0] < self.probability else {"points": self.even}

    def extremes(self) -> tuple[Params, Params]:
        """Nothing; each point moved the whole way, up and down by turns."""
        return {"points": self.even}, self._moved((-1.0) ** np.arange(self.n_points - 2))

    def active(self, params: dict[str, Tensor]) -> Tensor:
        """Those of which a point is moved."""
        points = params["points"]
        return (points != torch.from_numpy(self.even).to(points.device)).any(dim=1)

    def change(self, batch: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Change a batch (B, C, *spatial); an image of one grey value keeps it."""
        low, width = _range_of(batch)
        points = params["points"]
        place = (batch.flatten(1) - low).mul_((points.shape[1] - 1) / width)
        return _read_off(points, place).mul_(width).add_(low).view(batch.shape)

    def _moved(self, moves: NDArray[np.floating]) -> Params:
        points = self.even.copy()
        points[1:-1] += moves * (self.strength / 2 / (self.n_points - 1))
        return {"points": points}


class Equalise(Augmentation):
    """Mix an image with its own histogram-equalised self, as the processing of radiographs does.

    All of it is MONAI's `HistogramNormalize` to [0, 1], with 256 bins between the smallest and largest grey value.

    Args:
        amount: smallest and largest share of the equalised image, within [0, 1].
        probability: share of the views that are changed.
    """

    def __init__(self, amount: tuple[float, float] = (0.3, 1.0), probability: float = 0.2) -> None:
        self.amount, self.probability = amount, probability

    def draw(self, rng: np.random.Generator) -> Params:
        """Parameters of one item: amount (), 0 for none."""
        u, v = rng.random(2).tolist()
        low, high = self.amount
        return {"amount": scalar(low + (high - low) * v if u < self.probability else 0)}

    def extremes(self) -> tuple[Params, Params]:
        """The smallest and the largest share."""
        return {"amount": scalar(self.amount[0])}, {"amount": scalar(self.amount[1])}

    def active(self, params: dict[str, Tensor]) -> Tensor:
        """Those of which a share is equalised."""
        return params["amount"] > 0

    def change(self, batch: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Change a batch (B, C, *spatial) in [0, 1]; an image of one grey value keeps it."""
        n = len(batch)
        low, width = _range_of(batch)
        place = (batch.flatten(1) - low).mul_(_N_BINS / width)
        bins = place.long().clamp_(0, _N_BINS - 1).add_(_N_BINS * torch.arange(n, device=batch.device)[:, None])
        below = torch.bincount(bins.view(-1), minlength=n * _N_BINS).view(n, _N_BINS).cumsum(dim=1).float()
        first, last = below[:, :1], below[:, -1:]
        points = (below - first) / (last - first).clamp_(min=1)
        # A bin's count holds at its middle.
        equal = _read_off(points, place.sub_(0.5).clamp_(0, _N_BINS - 1)).view(batch.shape)
        amount = per_item(torch.where(width[:, 0] > _FLAT, params["amount"], 0), batch)
        return (batch * (1 - amount)).add_(equal.mul_(amount)).clamp_(0, 1)


def _range_of(batch: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest grey value of each item and how far it is to the largest, (B, 1) each, the latter never 0."""
    values = batch.flatten(1)
    low = values.amin(dim=1, keepdim=True)
    return low, (values.amax(dim=1, keepdim=True) - low).clamp_(min=_FLAT)


def _read_off(points: Tensor, place: Tensor) -> Tensor:
    """The line through points (B, K), which stand at 0, 1, ..., K - 1, read off at places (B, M) among them."""
    n_points = points.shape[1]
    index = place.long().clamp_(0, n_points - 2)
    share = place - index
    index = index.add_(n_points * torch.arange(len(points), device=points.device)[:, None]).view(-1)
    start, slope = (  # far quicker than indexing with brackets
        values.flatten().index_select(0, index).view(place.shape)
        for values in (points, torch.diff(points, dim=1, append=points[:, -1:]))
    )
    return slope.mul_(share).add_(start)
