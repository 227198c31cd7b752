"""How scanners differ, at five fixed strengths: what a classifier should withstand, and target domains made at will."""

from collections.abc import Callable

from medclr.transforms.artefact import BiasField, Blur, Motion, Noise, Resolution
from medclr.transforms.augmentation import Augmentation
from medclr.transforms.intensity import WindowJitter


def _graded(
    levels: tuple[float, ...], make: Callable[[float, int], Augmentation]
) -> Callable[[int, int], Augmentation]:
    def corruption(strength: int, spatial_dims: int) -> Augmentation:
        if strength not in range(1, 6):
            raise ValueError(f"strength {strength}: a whole number from 1 to 5")
        return make(levels[strength - 1], spatial_dims)

    return corruption


CORRUPTIONS: dict[str, Callable[[int, int], Augmentation]] = {
    "noise": _graded((0.02, 0.04, 0.07, 0.12, 0.2), lambda sigma, _: Noise((sigma, sigma), probability=1)),
    "blur": _graded((0.012, 0.019, 0.031, 0.05, 0.08), lambda sigma, _: Blur((sigma, sigma), 1, of_side=True)),
    # By a wider window, which cuts off nothing.
    "contrast": _graded(
        (0.85, 0.7, 0.5, 0.35, 0.2),
        lambda factor, _: WindowJitter(shift=0, width=0, low=0.5 - 0.5 / factor, high=0.5 + 0.5 / factor),
    ),
    "resolution": _graded((0.8, 0.5, 0.35, 0.25, 0.18), lambda zoom, _: Resolution((zoom, zoom), probability=1)),
    "motion": _graded((0.03, 0.05, 0.1, 0.17, 0.3), lambda way, dims: Motion(dims, (way, way), probability=1)),
    "bias": _graded((0.2, 0.4, 0.7, 1.1, 1.6), lambda most, dims: BiasField(dims, (most, most), probability=1)),
}
"""From a name to the augmentation of a strength, from 1, hardly seen, to 5, severe, and of 2 or 3 spatial dimensions.

It changes images (C, *spatial) in [0, 1] and leaves them there. How strongly is fixed; the noise, the direction of
motion and the shape of the bias field are drawn for each item. Lengths of blur, motion and bias field are shares of the
patch, so that a scene loses as much at 28 voxels a side as at 128; loss of resolution is a share of the voxels of each
side, and each voxel has noise of its own.
"""
