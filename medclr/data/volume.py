"""A volume: one float32 array, channel first, in RAS millimetres."""

from dataclasses import dataclass
from typing import NamedTuple

import nibabel as nib
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Volume:
    """One image of one patient.

    Attributes:
        array: float32, (C, X, Y, Z) or, for a radiograph, (C, X, Y), in any memory order. CT in Hounsfield units.
        affine: (4, 4) float64, from voxel indices to RAS millimetres.
        notes: what the reader had to assume, in words without patient data.
    """

    array: NDArray[np.float32]
    affine: NDArray[np.float64]
    notes: tuple[str, ...] = ()

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Distance between neighbouring voxels along each spatial axis; NaN where unknown."""
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        return tuple(float(length) for length in lengths[: self.array.ndim - 1])


class Grid(NamedTuple):
    """What `canonical` makes of the axes of an array.

    Attributes:
        shape: of the spatial axes, turned.
        spacing_mm: along each of them.
        orientation: where the axes pointed before (of L, R, A, P, S, I), e.g. "LPS".
    """

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    orientation: str


def canonical_grid(shape: tuple[int, ...], affine: NDArray[np.float64]) -> Grid:
    """The grid of a volume, known before it is read.

    Args:
        shape: (I, J, K), whatever follows.
        affine: (4, 4) from (i, j, k) to RAS millimetres, invertible.
    """
    turn = nib.orientations.io_orientation(affine)
    axes = np.argsort(turn[:, 0])
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return Grid(
        tuple(shape[axis] for axis in axes),
        tuple(float(spacing[axis]) for axis in axes),
        "".join(nib.orientations.ornt2axcodes(turn)),
    )


def canonical(array: NDArray[np.float32], affine: NDArray[np.float64], notes: tuple[str, ...] = ()) -> Volume:
    """Turn a 3D array so that its axes run closest to right, anterior and superior; no resampling.

    Args:
        array: float32 (C, I, J, K) in any axis order.
        affine: (4, 4) from (i, j, k) to RAS millimetres, invertible.
        notes: passed on to the volume.
    """
    turn = nib.orientations.io_orientation(affine)
    turned = nib.orientations.apply_orientation(np.moveaxis(array, 0, -1), turn)
    moved = affine @ nib.orientations.inv_ornt_aff(turn, array.shape[1:])
    return Volume(np.ascontiguousarray(np.moveaxis(turned, -1, 0), dtype=np.float32), moved, notes)
