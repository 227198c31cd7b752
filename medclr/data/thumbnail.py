"""Small pictures of volumes: the middle slice, as one would look at it, in 8 bits."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from medclr.data.candidate import Candidate
from medclr.data.isolation import dismiss, isolated
from medclr.data.manifest import candidate_of
from medclr.data.pool import n_cores
from medclr.data.prepare import READERS, Reader, allowance
from medclr.data.volume import Volume
from medclr.errors import Unreadable

SIDE = 120  # pixels of the longer side, at most
WINDOW_HU = (-1000.0, 400.0)  # of CT: lung and soft tissue both have contrast
_NARROW = 4  # times as long as wide, from which on an axial slice is a strip that shows nothing
_KINDS = ("modality", "manufacturer", "site", "model", "kernel", "shape")  # what a fair sample is spread over


def thumbnails(
    manifest: pd.DataFrame, root: Path, workers: int | None = None, progress: Callable[[int, int], None] | None = None
) -> list[NDArray[np.uint8] | Unreadable]:
    """The `thumbnail` of each volume of a manifest, or why there is none, in the manifest's order.

    Args:
        manifest: as few rows as pictures are wanted; each volume is decoded whole.
        root: folder that the manifest's sources are relative to.
        workers: processes that decode; None is one per core.
        progress: called with volumes done and volumes in all.
    """
    candidates = [candidate_of(row) for row in manifest.itertuples(index=False)]
    pictures: list[NDArray[np.uint8] | Unreadable] = []
    # Threads, each of which waits for a process of its own.
    with ThreadPoolExecutor(max(1, n_cores() if workers is None else workers)) as pool:
        try:
            for picture in pool.map(partial(_picture, root), candidates):
                pictures.append(picture)
                if progress:
                    progress(len(pictures), len(candidates))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            dismiss()
    return pictures


def thumbnail(volume: Volume, modality: str) -> NDArray[np.uint8]:
    """The middle slice of a volume as a picture (rows, columns), its longer side at most SIDE pixels.

    Of a 3D volume it is the axial slice, seen from the feet, front above, or, where few sagittal or coronal slices
    make that a strip, the middle one of those; of a radiograph its plane. There the head is above. The patient's
    right, else the front, is on the left. Distances have the right proportions where the spacing is known. Pixels are
    averaged where they shrink, and the finer of the two axes is never made finer.

    Args:
        volume: (C, X, Y[, Z]); the first channel is shown.
        modality: CT is windowed by WINDOW_HU, all else from the 0.5 to the 99.5 percentile of the slice.
    """
    array, spacing = volume.array[0], np.array(volume.spacing_mm)
    if not np.isfinite(spacing).all():
        spacing = np.ones(array.ndim)
    extent = spacing * array.shape
    if array.ndim == 3:
        across = int(np.argmin(extent[:2])) if extent[:2].max() > _NARROW * extent[:2].min() else 2
        array = array.take(array.shape[across] // 2, across)
        spacing, extent = np.delete(spacing, across), np.delete(extent, across)
    plane, steps, extent = upright(array), spacing[::-1], extent[::-1]
    rows, columns = np.maximum(1, np.rint(extent / max(extent.max() / SIDE, steps.min()))).astype(int).tolist()
    image = Image.fromarray(np.ascontiguousarray(plane))
    small = np.asarray(image.resize((columns, rows), Image.Resampling.BILINEAR), dtype=np.float64)
    values = plane.astype(np.float64)
    low, high = WINDOW_HU if modality == "CT" else np.percentile(values, (0.5, 99.5))
    if low == high:  # almost all of the slice is one value: its full range still shows the rest
        low, high = values.min(), values.max()
    return np.rint(np.clip((small - low) / (high - low or 1.0), 0, 1) * 255).astype(np.uint8)


def upright(plane: NDArray[Any]) -> NDArray[Any]:
    """A plane of a volume, indexed by its axes in their order, as a picture (rows, columns).

    The head, else the front, is above; the patient's right, else the front, is on the left.
    """
    return plane.T[::-1, ::-1]


def fair_sample(manifest: pd.DataFrame, most: int) -> pd.DataFrame:
    """At most so many rows of a manifest, in its order, and the same each time.

    Modalities take turns, within each the manufacturers, then sites, models, kernels and shapes; so a rare kind is
    shown as well as a common one. A second volume of one patient and kind comes only after all that are the first.
    """
    shapes = [tuple(shape) for shape in manifest["shape"]]
    # A kind of modality is also how many axes its volumes have.
    first = [(modality, len(shape)) for modality, shape in zip(manifest["modality"], shapes, strict=True)]
    kinds = list(zip(first, *(manifest[name] for name in _KINDS[1:-1]), shapes, strict=True))
    patients, names = manifest["patient_key"].tolist(), manifest["volume_id"].tolist()
    met: Counter[tuple[object, ...]] = Counter()
    rounds: dict[int, list[int]] = {}
    for row in sorted(range(len(names)), key=names.__getitem__):
        pair = (patients[row], kinds[row])
        rounds.setdefault(met[pair], []).append(row)
        met[pair] += 1
    chosen: list[int] = []
    for _, rows in sorted(rounds.items()):
        if len(chosen) < most:
            chosen += _in_turn(rows, kinds, 0, most - len(chosen))
    return manifest.iloc[sorted(chosen)]


def _picture(root: Path, candidate: Candidate) -> NDArray[np.uint8] | Unreadable:
    seconds, memory = allowance(root, candidate)
    try:
        drawn: NDArray[np.uint8] = isolated(
            _drawn, READERS[candidate.reader], root, candidate, seconds=seconds, memory=memory
        )
        return drawn
    except Unreadable as reason:
        return reason


def _drawn(reader: Reader, root: Path, candidate: Candidate) -> NDArray[np.uint8]:
    return thumbnail(reader(root, candidate), candidate.modality)


def _in_turn(rows: list[int], kinds: list[tuple[object, ...]], level: int, most: int) -> list[int]:
    if level == len(_KINDS):
        return rows[:most]
    parts: dict[object, list[int]] = {}
    for row in rows:
        parts.setdefault(kinds[row][level], []).append(row)
    largest = sorted(parts.values(), key=len, reverse=True)[:most]
    turns = zip_longest(*(_in_turn(part, kinds, level + 1, most) for part in largest))
    return [row for turn in turns for row in turn if row is not None][:most]
