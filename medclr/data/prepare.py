"""Manifest + spec -> store: each volume decoded, resampled and clipped once, by as many processes as wanted."""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from medclr.data import dicom, image2d, nifti
from medclr.data.candidate import Candidate, Skipped
from medclr.data.identity import pixel_hash
from medclr.data.manifest import candidate_of
from medclr.data.pool import worker_pool
from medclr.data.signature import signature
from medclr.data.spec import DataSpec
from medclr.data.store import Store
from medclr.data.volume import Volume
from medclr.errors import Unreadable

READERS: dict[str, Callable[[Path, Candidate], Volume]] = {
    "dicom": dicom.read,
    "nifti": nifti.read,
    "npz": image2d.read,
    "picture": image2d.read_picture,
}
MAX_VOXELS = 1 << 31  # of one volume in the store; more is a wrong spacing, not a scan


def prepare(
    manifest: pd.DataFrame,
    root: Path,
    spec: DataSpec,
    store: Store,
    executor: Executor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[pd.DataFrame, list[Skipped]]:
    """Bring every volume of a manifest into the store; what is there already, and sound, is kept.

    Args:
        manifest: rows that the spec accepts.
        root: folder that the manifest's sources are relative to.
        spec: with patch and spacing filled.
        store: where entries go.
        executor: any `concurrent.futures.Executor`; None works in this process.
        progress: called with volumes done and volumes in all.

    Returns:
        The manifest of the volumes that are in the store, with pixel_hash and the columns signature, store_key,
        store_shape, mean, std, low and high filled; and the files of those that could not be decoded, with
        reason codes, and the volume's member as their part.
    """
    tasks = [(candidate_of(row), root, spec, store) for row in manifest.itertuples(index=False)]
    done: list[dict[str, Any]] = []
    kept: list[int] = []
    skipped: list[Skipped] = []
    for position, outcome in enumerate(_map(executor, tasks)):
        if isinstance(outcome, Unreadable):
            row = manifest.iloc[position]
            skipped += [Skipped(item, outcome.reason, str(outcome), int(row["member"])) for item in row["source"]]
        else:
            done.append(outcome)
            kept.append(position)
        if progress:
            progress(position + 1, len(tasks))
    measured = pd.DataFrame(done, index=kept)
    # Rows that were prepared before have these columns already.
    table = manifest.iloc[kept].drop(columns=measured.columns, errors="ignore").reset_index(drop=True)
    return pd.concat([table, measured.reset_index(drop=True)], axis=1), skipped


def prepared_array(volume: Volume, spec: DataSpec) -> NDArray[np.generic]:
    """A volume as the store keeps it: resampled to the spec and clipped; CT as int16 HU, all else float32.

    Args:
        volume: float32 (C, *spatial) with spec.spatial_dims spatial axes.
        spec: with patch and spacing filled.

    Raises:
        Unreadable: the result would be larger than any scan is.
    """
    shape = np.array(volume.array.shape[1:])
    spec = spec.for_volume(volume.spacing_mm)
    if spec.sizing == "fit":
        assert spec.patch is not None
        factor = np.full(len(shape), min(1.0, *(np.array(spec.patch) / shape)))
    else:
        factor = np.array(volume.spacing_mm) / np.array(spec.spacing_mm)
    if np.prod(shape * factor) > MAX_VOXELS:
        raise Unreadable(
            "TOO_LARGE", f"{volume.array.shape[1:]} voxels become more than 2^31 at the spacing of the spec"
        )
    array = np.stack([_resampled(channel, factor) for channel in volume.array])
    if spec.clip is not None:
        array = np.clip(array, *spec.clip)
    return np.rint(array).clip(-(2**15), 2**15 - 1).astype(np.int16) if spec.integers else array


def statistics(array: NDArray[np.generic]) -> dict[str, float]:
    """Mean and standard deviation of the non-zero voxels, and the 0.5 and 99.5 percentiles of all."""
    values = array.astype(np.float64)
    low, high = np.percentile(values, (0.5, 99.5))
    tissue = values[values != 0]
    if not tissue.size:
        tissue = values.ravel()
    if low == high:  # almost all of the image is one value: its full range still shows the rest
        low, high = values.min(), values.max()
    measured = {"mean": tissue.mean(), "std": tissue.std(), "low": low, "high": high}
    return {name: float(value) for name, value in measured.items()}


@contextmanager
def processes(workers: int | None, n_items: int) -> Iterator[Executor | None]:
    """Processes for `prepare`, one per core by default; None where starting them would take longer than the work."""
    workers = min(os.cpu_count() or 1 if workers is None else workers, n_items // 32)
    if workers < 2:
        yield None
        return
    with worker_pool(workers, "prepares volumes") as pool:
        yield pool


def _map(executor: Executor | None, tasks: list[Any]) -> Iterator[dict[str, Any] | Unreadable]:
    if executor is None:
        return map(_prepare_one, tasks)
    return executor.map(_prepare_one, tasks, chunksize=max(1, min(32, len(tasks) // 64)))


def _prepare_one(task: tuple[Candidate, Path, DataSpec, Store]) -> dict[str, Any] | Unreadable:
    candidate, root, spec, store = task
    try:
        key = f"{_content_hash(root, candidate)}{spec.for_volume(candidate.spacing_mm).digest()}"
        facts = store.facts(key)
        if facts is None:
            volume = READERS[candidate.reader](root, candidate)
            array = prepared_array(volume, spec)
            facts = {name: repr(value) for name, value in statistics(array).items()}
            facts |= {"pixel_hash": pixel_hash(volume.array), "signature": signature(volume.array)}
            facts |= {"shape": " ".join(map(str, array.shape[1:]))}
            store.write(key, array, facts)
    except Unreadable as reason:
        return reason
    return {
        "pixel_hash": facts["pixel_hash"],
        "signature": facts["signature"],
        "store_key": key,
        "store_shape": [int(side) for side in facts["shape"].split()],
        **{name: float(facts[name]) for name in ("mean", "std", "low", "high")},
    }


def _content_hash(root: Path, candidate: Candidate) -> str:
    """What the input holds, never when it was written: 16 hex digits over the bytes of its files, in their order."""
    digest = hashlib.blake2b(str(candidate.member).encode(), digest_size=8)
    for item in candidate.paths:
        try:
            state = (root / item).stat()
            digest.update(_file_hash(root / item, state.st_mtime_ns, state.st_size))
        except OSError as error:
            raise Unreadable("UNREADABLE", f"cannot be read ({error.strerror})") from None
    return digest.hexdigest()


# An archive holds thousands of images, and is read once for all of them.
@lru_cache(maxsize=2)
def _file_hash(path: Path, mtime_ns: int, size: int) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()


def _resampled(array: NDArray[np.float32], factor: NDArray[np.float64]) -> NDArray[np.float32]:
    """Linear interpolation about the common centre; blurred first along axes that shrink, against aliasing."""
    if np.allclose(factor, 1, atol=1e-3):
        return array
    sigma = np.maximum(0, (1 / factor - 1) / 2)
    smooth = ndimage.gaussian_filter(array, sigma, mode="nearest")
    size = np.maximum(np.rint(factor * array.shape), 1).astype(int)
    # Not ndimage.zoom: it bends the spacing until the voxels fill the old extent.
    first = (np.array(array.shape) - 1) / 2 - (size - 1) / 2 / factor
    result: NDArray[np.float32] = ndimage.affine_transform(
        smooth, 1 / factor, first, output_shape=tuple(size), order=1, mode="nearest"
    )
    return result
