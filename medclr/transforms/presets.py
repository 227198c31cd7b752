"""Which augmentations suit which modality; never one that inverts contrast, nor one that turns a patient round."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from medclr.errors import UsageError
from medclr.transforms.artefact import BiasField, Blur, Gibbs, Noise
from medclr.transforms.augmentation import Augmentation, Params, pick
from medclr.transforms.intensity import Equalise, Gain, HistogramShift, Intensity, WindowJitter
from medclr.transforms.spatial import ResizedCrop

_CACHED = 2**20  # voxels that pass through all steps before the next do: about what a CPU's cache holds


class Views:
    """Named augmentations in the order in which they are applied.

    Args:
        steps: from a name, which prefixes its parameters, to the augmentation; one of them is "window".
    """

    def __init__(self, steps: Mapping[str, Augmentation]) -> None:
        self.steps = dict(steps)
        self._room = torch.empty(0)

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
            float32 (B, C, *spatial) in [0, 1]; spatial is the crop's size, where it has one of its own.
        """
        whole = dict(params) | {"window.low": low, "window.high": high}
        n = len(batch)
        if batch.device.type == "cpu":
            n = max(2 * torch.get_num_threads(), _CACHED // batch[0].numel())
        parts = [slice(start, start + n) for start in range(0, len(batch), n)]
        views = [self._apply(batch[part], pick(whole, part)) for part in parts]
        return views[0] if len(views) == 1 else torch.cat(views)

    def _apply(self, batch: Tensor, params: dict[str, Tensor]) -> Tensor:
        batch = self._as_float(batch)
        for step, transform in self.steps.items():
            prefix = f"{step}."
            own = {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}
            batch = transform.apply(batch, own)
        return batch

    def _as_float(self, batch: Tensor) -> Tensor:
        """A batch as float32: on a CPU in memory that is used again, since fresh memory costs more than converting."""
        if batch.dtype == torch.float32 or batch.device.type != "cpu":
            return batch.float()
        if self._room.numel() < batch.numel():
            with torch.inference_mode(False):  # what is made in it cannot be written to outside
                self._room = torch.empty(batch.numel())
        return self._room[: batch.numel()].view(batch.shape).copy_(batch)


def build_views(
    preset: str,
    spatial_dims: int,
    laterality: bool = True,
    scale: tuple[float, float] = (0.3, 1.0),
    without: Sequence[str] = (),
    size: tuple[int, ...] | None = None,
) -> Views:
    """The views of a modality.

    Args:
        preset: a key of PRESETS.
        spatial_dims: 2 or 3.
        laterality: whether left and right mean something (chest, heart, abdomen); only where not, views are mirrored,
            and only along the first axis, which runs from left to right.
        scale: smallest and largest share of the block that a view shows; SimCLR's views differ more than a
            classifier's may.
        without: steps of `step_names` to leave out.
        size: voxels along each axis of a view; None: the block's own.

    Raises:
        UsageError: no such preset, or a step to leave out that it does not have.
    """
    known = step_names(preset, laterality)
    if unknown := [name for name in without if name not in known]:
        raise UsageError(f"--without {unknown[0]}: no step of preset {preset}, which has {', '.join(known)}")
    crop = ResizedCrop(
        spatial_dims,
        size,
        scale=(1.0, 1.0) if "crop" in without else scale,
        ratio=1.0 if "crop" in without else 1.25,
        rotation_deg=0.0 if "rotation" in without else 10.0,
        flips=(not laterality and "flip" not in without, *[False] * (spatial_dims - 1)),
    )
    steps: dict[str, Augmentation] = {"crop": crop}
    for name, augmentation in PRESETS[preset](spatial_dims).items():
        if name not in without:
            steps[name] = augmentation
        elif name == "window":  # grey values have to become 0..1 even so
            steps[name] = WindowJitter(shift=0, width=0)
    return Views(steps)


def step_names(preset: str, laterality: bool = True) -> list[str]:
    """The steps of a preset that can be left out, in the order in which they are applied."""
    if preset not in PRESETS:
        raise UsageError(f"augmentation preset {preset!r}: choose one of {', '.join(PRESETS)}")
    spatial = ["crop", "rotation"] if laterality else ["crop", "rotation", "flip"]
    return spatial + [name for name, step in PRESETS[preset](2).items() if name != "window" or _moves(step)]


def check_without(names: Sequence[str]) -> None:
    """Raise UsageError for a step that no preset has, before it is known which preset it will be."""
    known = list(dict.fromkeys(name for preset in PRESETS for name in step_names(preset, laterality=False)))
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"--without {unknown[0]}: no preset has such a step; there are {', '.join(known)}")


def _moves(window: Augmentation) -> bool:
    weakest, strongest = window.extremes()
    return any(weakest[name] != strongest[name] for name in weakest)


def _ct(dims: int) -> dict[str, Augmentation]:
    # No gamma, and no contrast about the mean: Hounsfield units are calibrated, and a reader only moves the window.
    return {
        "window": WindowJitter(shift=0.05, width=0.2, probability=0.8),
        "histogram": HistogramShift(n_points=6, strength=0.5, probability=0.5),
        "blur": Blur(sigma=(0.3, 1.0), probability=0.3),
        "noise": Noise(sigma=(0.01, 0.04), probability=0.3),
    }


def _mr(dims: int) -> dict[str, Augmentation]:
    return {
        "window": WindowJitter(shift=0, width=0),
        "bias": BiasField(dims, strength=(0.0, 1.0), probability=0.5),
        "intensity": Intensity(brightness=0.1, contrast=0.3, gamma=0.4, probability=0.8),
        "gibbs": Gibbs(alpha=(0.3, 0.55), probability=0.2),
        "blur": Blur(sigma=(0.3, 1.0), probability=0.3),
    }


def _pet(dims: int) -> dict[str, Augmentation]:
    # No brightness: no uptake is no uptake. Resolution differs more between scanners than elsewhere.
    return {
        "window": WindowJitter(shift=0, width=0),
        "gain": Gain(factor=0.4, probability=0.8),
        "blur": Blur(sigma=(0.5, 1.5), probability=0.5),
        "noise": Noise(sigma=(0.005, 0.03), probability=0.3),
    }


def _xray(dims: int) -> dict[str, Augmentation]:
    return {
        "window": WindowJitter(shift=0, width=0),
        "equalise": Equalise(amount=(0.3, 1.0), probability=0.2),
        "intensity": Intensity(brightness=0.1, contrast=0.3, gamma=0.3, probability=0.8),
        "blur": Blur(sigma=(0.3, 1.2), probability=0.5),
        "noise": Noise(sigma=(0.01, 0.04), probability=0.3),
    }


def _us(dims: int) -> dict[str, Augmentation]:
    # Grey values are logarithms: brightness is the machine's gain, contrast its dynamic range, and the histogram its
    # grey map. No blur, since speckle is the texture of the tissue.
    return {
        "window": WindowJitter(shift=0, width=0),
        "histogram": HistogramShift(n_points=6, strength=0.4, probability=0.3),
        "intensity": Intensity(brightness=0.15, contrast=0.3, gamma=0.2, probability=0.8),
        "noise": Noise(sigma=(0.005, 0.02), probability=0.3),
    }


PRESETS: dict[str, Callable[[int], dict[str, Augmentation]]] = {
    "ct": _ct,
    "mr": _mr,
    "pet": _pet,
    "xray": _xray,
    "us": _us,
}
"""From a preset to its steps after the crop, by spatial dimensions."""
