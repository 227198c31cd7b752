"""Which augmentations suit which modality; never one that inverts contrast, nor one that turns a patient round."""

from collections.abc import Callable, Mapping

import numpy as np
from torch import Tensor

from medclr.errors import UsageError
from medclr.transforms.augmentation import Augmentation, Params
from medclr.transforms.intensity import Blur, Gain, Intensity, WindowJitter
from medclr.transforms.spatial import ResizedCrop


class Views:
    """Named augmentations in the order in which they are applied.

    Args:
        steps: from a name, which prefixes its parameters, to the augmentation; one of them is "window".
    """

    def __init__(self, steps: Mapping[str, Augmentation]) -> None:
        self.steps = dict(steps)

    def draw(self, rng: np.random.Generator) -> Params:
        """All parameters of one view, flat and named like "crop.centre"; a pure function of the generator."""
        return {f"{step}.{name}": value for step, t in self.steps.items() for name, value in t.draw(rng).items()}

    def apply(self, batch: Tensor, params: Mapping[str, Tensor], low: Tensor, high: Tensor) -> Tensor:
        """Turn blocks into views.

        Args:
            batch: (B, C, *spatial) on any device, in the store's unit (HU for CT), integer or floating.
            params: what `draw` gave for each item, stacked to (B, ...), on the same device.
            low: (B,) grey value of each item that becomes 0.
            high: (B,) grey value of each item that becomes 1.

        Returns:
            float32 (B, C, *spatial) in [0, 1].
        """
        batch = batch.float()
        for step, transform in self.steps.items():
            prefix = f"{step}."
            own = {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}
            batch = transform.apply(batch, own | {"low": low, "high": high} if step == "window" else own)
        return batch


def build_views(
    preset: str, spatial_dims: int, laterality: bool = True, scale: tuple[float, float] = (0.3, 1.0)
) -> Views:
    """The views of a modality.

    Args:
        preset: a key of PRESETS.
        spatial_dims: 2 or 3.
        laterality: whether left and right mean something (chest, heart, abdomen); only where not, views are mirrored,
            and only along the first axis, which runs from left to right.
        scale: smallest and largest share of the block that a view shows; SimCLR's views differ more than a
            classifier's may.
    """
    if preset not in PRESETS:
        raise UsageError(f"augmentation preset {preset!r}: choose one of {', '.join(PRESETS)}")
    flips = (not laterality, *[False] * (spatial_dims - 1))
    return Views(PRESETS[preset](ResizedCrop(spatial_dims, scale=scale, rotation_deg=10, flips=flips)))


def _ct(crop: ResizedCrop) -> dict[str, Augmentation]:
    # No gamma: Hounsfield units are calibrated, and a reader only moves the window.
    return {
        "crop": crop,
        "window": WindowJitter(shift=0.05, width=0.2),
        "blur": Blur(sigma=(0.3, 1.0), probability=0.3),
    }


def _mr(crop: ResizedCrop) -> dict[str, Augmentation]:
    return {
        "crop": crop,
        "window": WindowJitter(shift=0, width=0),
        "intensity": Intensity(brightness=0.1, contrast=0.3, gamma=0.4),
        "blur": Blur(sigma=(0.3, 1.0), probability=0.3),
    }


def _pet(crop: ResizedCrop) -> dict[str, Augmentation]:
    # No brightness: no uptake is no uptake. Resolution differs more between scanners than elsewhere.
    return {
        "crop": crop,
        "window": WindowJitter(shift=0, width=0),
        "gain": Gain(factor=0.4),
        "blur": Blur(sigma=(0.5, 1.5), probability=0.5),
    }


def _xray(crop: ResizedCrop) -> dict[str, Augmentation]:
    return {
        "crop": crop,
        "window": WindowJitter(shift=0, width=0),
        "intensity": Intensity(brightness=0.2, contrast=0.4, gamma=0.3),
        "blur": Blur(sigma=(0.3, 1.2), probability=0.5),
    }


def _us(crop: ResizedCrop) -> dict[str, Augmentation]:
    # Grey values are logarithms: brightness is the machine's gain and contrast its dynamic range. No blur, since
    # speckle is the texture of the tissue.
    return {
        "crop": crop,
        "window": WindowJitter(shift=0, width=0),
        "intensity": Intensity(brightness=0.15, contrast=0.3, gamma=0.2),
    }


PRESETS: dict[str, Callable[[ResizedCrop], dict[str, Augmentation]]] = {
    "ct": _ct,
    "mr": _mr,
    "pet": _pet,
    "xray": _xray,
    "us": _us,
}
