"""Parts of volumes for a network that sees less than all of one: slices, and crops of a volume or a slice."""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medclr.data.slices import by_slice
from medclr.data.spec import DataSpec


def crop_starts(shape: Sequence[int], patch: Sequence[int], most: int) -> list[tuple[int, ...]]:
    """First voxels of the crops that stand for a volume: the centres of equal parts of it, moved inside.

    Each axis is cut into equal parts, the axis with the longest first, until `most` would be passed or the crops
    cover every voxel; a volume no longer than the patch is one crop, around its centre.

    Args:
        shape: voxels of the volume along each axis; patch: of a crop; most: crops, 1 or more.
    """
    counts = [1] * len(shape)
    while True:
        wanting = [
            axis
            for axis, (n, p) in enumerate(zip(shape, patch, strict=True))
            if counts[axis] * p < n and math.prod(counts) // counts[axis] * (counts[axis] + 1) <= most
        ]
        if not wanting:
            break
        counts[max(wanting, key=lambda axis: shape[axis] / (patch[axis] * counts[axis]))] += 1
    return list(product(*(_along(*axis) for axis in zip(shape, patch, counts, strict=True))))


def parts_of(rows: pd.DataFrame, spec: DataSpec, crops: int = 1) -> tuple[pd.DataFrame, NDArray[np.intp]]:
    """Prepared volumes to what the network sees of them: a row for each part, in order.

    Args:
        rows: prepared volumes, or slices of them.
        spec: under one with slices, volumes are cut into those that are kept.
        crops: the most of one volume, or of one slice.

    Returns:
        The parts, for `Blocks`; and how many of them each of `rows` has.
    """
    parts = rows.assign(volume=np.arange(len(rows)))
    if spec.slices and "slice" not in rows:
        parts = by_slice(parts)
    if crops > 1:
        assert spec.patch is not None
        shapes = (shape[-spec.spatial_dims :] for shape in parts["store_shape"])
        starts = [crop_starts([int(n) for n in shape], spec.patch, crops) for shape in shapes]
        parts = parts.assign(start=pd.Series(starts, index=parts.index)).explode("start", ignore_index=True)
    return parts, np.bincount(parts["volume"].to_numpy(int), minlength=len(rows))


def _along(n: int, p: int, count: int) -> list[int]:
    centred = [((2 * part + 1) * n - count * p) // (2 * count) for part in range(count)]
    # A single one stays the centre, also of what is shorter than the patch.
    return centred if count == 1 else [min(max(start, 0), n - p) for start in centred]
