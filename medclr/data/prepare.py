"""Manifest + spec -> store: each volume decoded, resampled and clipped once, by as many processes as wanted."""

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import lru_cache, partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from medclr.data import dicom, image2d, metaimage, nifti
from medclr.data.candidate import Candidate, Skipped
from medclr.data.identity import pixel_hash
from medclr.data.isolation import dismiss, isolated
from medclr.data.manifest import candidate_of
from medclr.data.pool import n_cores
from medclr.data.signature import signature
from medclr.data.slices import kept_slices
from medclr.data.spec import DataSpec
from medclr.data.store import Store, on_disk
from medclr.data.volume import Volume
from medclr.errors import Unreadable

Reader = Callable[[Path, Candidate], Volume]
READERS: dict[str, Reader] = {
    "dicom": dicom.read,
    "metaimage": metaimage.read,
    "nifti": nifti.read,
    "npz": image2d.read,
    "picture": image2d.read_picture,
}
MAX_VOXELS = 1 << 31  # of one volume in the store; more is a wrong spacing, not a scan

# What a volume may take at most: far more than it needs, even from a slow disk.
_SECONDS, _SECONDS_PER_FILE, _BYTES_PER_SECOND = 300.0, 1.0, 1e6
_MEMORY, _MEMORY_PER_BYTE, _MEMORY_PER_VOXEL = 4 << 30, 16, 64

_CHUNK = 8  # volumes handed over at a time
_IN_FLIGHT = 1024  # chunks handed over and not yet collected
_HEADER = 3072  # bytes of an entry's, about; most are its signature

_Outcome = dict[str, Any] | Unreadable


def prepare(
    manifest: pd.DataFrame,
    root: Path,
    spec: DataSpec,
    store: Store,
    executor: Executor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[pd.DataFrame, list[Skipped]]:
    """Bring every volume of a manifest into the store; what is there already, and sound, is kept.

    A decoder that crashes, hangs or asks for all memory costs its volume alone.

    Args:
        manifest: rows that the spec accepts.
        root: folder that the manifest's sources are relative to.
        spec: with patch and spacing filled.
        store: where entries go.
        executor: any `concurrent.futures.Executor` whose workers see root and store; None works through them one by
            one.
        progress: called with volumes done and volumes in all.

    Returns:
        The manifest of the volumes that are in the store, with pixel_hash and the columns signature, store_key,
        store_shape, mean, std, low and high filled, and slices (which of its slices stand for a volume) where the
        spec asks for slices; and the files of those that could not be decoded, with reason codes, and the volume's
        member as their part.
    """
    # Workers elsewhere have another working directory.
    job = partial(_prepare_chunk, root.absolute(), spec, Store(store.root.absolute()))
    done: list[dict[str, Any]] = []
    kept: list[int] = []
    skipped: list[Skipped] = []
    with closing(_outcomes(executor, job, manifest)) as outcomes:
        for position, outcome in enumerate(outcomes):
            if isinstance(outcome, Unreadable):
                row = manifest.iloc[position]
                skipped += [Skipped(item, outcome.reason, str(outcome), int(row["member"])) for item in row["source"]]
            else:
                done.append(outcome)
                kept.append(position)
            if progress:
                progress(position + 1, len(manifest))
    measured = pd.DataFrame(done, index=kept)
    # Rows that were prepared before have these columns already.
    table = manifest.iloc[kept].drop(columns=measured.columns, errors="ignore").reset_index(drop=True)
    return pd.concat([table, measured.reset_index(drop=True)], axis=1), skipped


def without_copies(prepared: pd.DataFrame) -> tuple[pd.DataFrame, list[Skipped]]:
    """Leave out volumes that are another of their patient and study over again, under other instance UIDs.

    Args:
        prepared: a manifest with pixel hashes.

    Returns:
        The manifest with one of each, that of the lowest volume_id, in its old order; and the files of the others.
    """
    what = prepared[["patient_key", "study_key", "modality", "pixel_hash"]].assign(
        size=[
            repr(([int(n) for n in shape], [float(step) for step in steps]))
            for shape, steps in zip(prepared["shape"], prepared["spacing_mm"], strict=True)
        ]
    )
    copy = what.assign(name=prepared["volume_id"]).sort_values("name").duplicated(list(what.columns)).sort_index()
    message = "the values of another volume of this study"
    pairs = zip(prepared.loc[copy, "source"], prepared.loc[copy, "member"], strict=True)
    skipped = [Skipped(item, "DUPLICATE", message, int(member)) for source, member in pairs for item in source]
    return prepared[~copy].reset_index(drop=True), skipped


def shard(manifest: pd.DataFrame, index: int, n_shards: int) -> pd.DataFrame:
    """One of `n_shards` parts of a manifest: whatever the order of its rows, the same volumes; as many in each part."""
    names = [f"{source[0]}\0{member}" for source, member in zip(manifest["source"], manifest["member"], strict=True)]
    # By hash, since neighbours are alike: a part should not get all the large ones.
    drawn = sorted(range(len(names)), key=lambda row: (hashlib.blake2b(names[row].encode()).digest(), names[row]))
    return manifest.iloc[sorted(drawn[index::n_shards])]


def bytes_to_write(manifest: pd.DataFrame, spec: DataSpec, store: Store, part: pd.DataFrame | None = None) -> int:
    """About how many bytes the store will grow by.

    Args:
        manifest: rows that the spec accepts.
        spec: with patch and spacing filled.
        store: what it holds under this spec counts as done.
        part: the rows that will be prepared; None is all. Nothing says whose the entries in the store are: they are
            taken for other parts' first.
    """
    with_spacing, without = (spec.for_volume((spacing,) * 3).digest() for spacing in (1.0, np.nan))
    held = sum(store.size(digest) for digest in {with_spacing, without})
    whole = _bytes_of(manifest, spec)
    return max(0, min(whole - held, whole if part is None else _bytes_of(part, spec)))


def stored_shape(shape: tuple[int, ...], spacing_mm: tuple[float, ...], spec: DataSpec) -> tuple[int, ...]:
    """The spatial shape that a volume will have in the store; where the spec asks for slices, they come first.

    Args:
        shape, spacing_mm: of the volume.
        spec: with patch and spacing filled.
    """
    size = _size(shape, _factor(shape, spacing_mm, spec))
    return size if spec.slice_axis is None else (size[spec.slice_axis], *spec.in_plane(size))


def prepared_array(volume: Volume, spec: DataSpec) -> NDArray[np.generic]:
    """A volume as the store keeps it: resampled to the spec and clipped; CT as int16 HU, all else float32.

    Where the spec asks for slices, they are resampled in their plane alone, and their axis comes first, so that one
    of them lies in one place on the disk: (C, slices, *plane).

    Args:
        volume: float32 (C, *spatial) with spec.volume_dims spatial axes.
        spec: with patch and spacing filled.

    Raises:
        Unreadable: the result would be larger than any scan is.
    """
    shape = volume.array.shape[1:]
    factor = _factor(shape, volume.spacing_mm, spec)
    if np.prod(shape * factor) > MAX_VOXELS:
        raise Unreadable(
            "TOO_LARGE", f"{volume.array.shape[1:]} voxels become more than 2^31 at the spacing of the spec"
        )
    array = np.stack([_resampled(channel, factor) for channel in volume.array])
    if spec.slice_axis is not None:
        array = np.moveaxis(array, 1 + spec.slice_axis, 1)
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


def allowance(root: Path, candidate: Candidate, made: int = 0) -> tuple[float, int]:
    """Seconds and bytes of memory that a volume may take to decode, and to make so many voxels of it."""
    size = 0
    for item in candidate.paths:
        with suppress(OSError):  # the reader will say so
            size += (root / item).stat().st_size
    voxels = prod(candidate.shape) + made
    seconds = _SECONDS + len(candidate.paths) * _SECONDS_PER_FILE + (size + 4 * voxels) / _BYTES_PER_SECOND
    return seconds, _MEMORY + size * _MEMORY_PER_BYTE + voxels * _MEMORY_PER_VOXEL


@contextmanager
def processes(workers: int | None, n_items: int, least: int = 32) -> Iterator[Executor | None]:
    """Processes for `prepare`, one per core by default; None where starting more than one would not pay.

    Args:
        workers: how many at most; None is one per core.
        n_items: volumes to prepare.
        least: volumes that a process pays for.
    """
    workers = min(n_cores() if workers is None else workers, n_items // least)
    if workers < 2:
        yield None
        return
    # Threads, each of which waits for a process of its own.
    with ThreadPoolExecutor(workers) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            dismiss()


def _outcomes(
    executor: Executor | None, job: Callable[[list[Any]], list[_Outcome]], manifest: pd.DataFrame
) -> Generator[_Outcome, None, None]:
    """What became of each row, in order; never more than a window of them is under way."""
    size = max(1, min(_CHUNK, len(manifest) // 256))
    waiting: deque[tuple[list[Any], Future[list[_Outcome]]]] = deque()
    try:
        for start in range(0, len(manifest), size):
            rows = manifest.iloc[start : start + size].itertuples(index=False)
            candidates = [candidate_of(row) for row in rows]
            chunk = [(READERS[candidate.reader], candidate) for candidate in candidates]
            if executor is None:
                yield from job(chunk)
                continue
            waiting.append((chunk, executor.submit(job, chunk)))
            if len(waiting) == _IN_FLIGHT:
                yield from _collected(executor, job, *waiting.popleft())
        while waiting:
            assert executor is not None
            yield from _collected(executor, job, *waiting.popleft())
    finally:
        for _, future in waiting:
            future.cancel()
        dismiss()


def _collected(
    executor: Executor, job: Callable[[list[Any]], list[_Outcome]], chunk: list[Any], future: "Future[list[_Outcome]]"
) -> list[_Outcome]:
    try:
        return future.result()
    except Exception as error:
        # Dask's, for a task whose workers were killed again and again.
        if type(error).__name__ != "KilledWorker":
            raise
    if len(chunk) == 1:
        return [Unreadable("TOO_LARGE", "the Dask workers that read it were killed; out of memory?")]
    outcomes: list[_Outcome] = []
    for item in chunk:
        outcomes += _collected(executor, job, [item], executor.submit(job, [item]))
    return outcomes


def _prepare_chunk(root: Path, spec: DataSpec, store: Store, chunk: list[tuple[Reader, Candidate]]) -> list[_Outcome]:
    outcomes: list[_Outcome] = []
    for reader, candidate in chunk:
        stored = prod(stored_shape(candidate.shape, candidate.spacing_mm, spec))
        seconds, memory = allowance(root, candidate, min(stored, MAX_VOXELS))
        try:
            outcomes.append(
                isolated(_prepare_one, reader, candidate, root, spec, store, seconds=seconds, memory=memory)
            )
        except Unreadable as reason:
            outcomes.append(reason)
    return outcomes


def _prepare_one(reader: Reader, candidate: Candidate, root: Path, spec: DataSpec, store: Store) -> dict[str, Any]:
    key = f"{_content_hash(root, candidate)}{spec.for_volume(candidate.spacing_mm).digest()}"
    facts = store.facts(key)
    if facts is None:
        try:
            volume = reader(root, candidate)
            array = prepared_array(volume, spec)
            measured = statistics(array)
            facts = {name: repr(value) for name, value in measured.items()}
            facts |= {"pixel_hash": pixel_hash(volume.array), "signature": signature(volume.array)}
            facts |= {"shape": " ".join(map(str, array.shape[1:]))}
            if spec.slice_axis is not None:
                spacing_mm = volume.spacing_mm[spec.slice_axis]
                kept = kept_slices(array, measured["low"], measured["high"], spacing_mm, spec.slice_step_mm)
                facts |= {"slices": " ".join(map(str, kept))}
            store.write(key, array, facts)
        except MemoryError:
            raise Unreadable("TOO_LARGE", "not enough memory to prepare the volume") from None
    return {
        "pixel_hash": facts["pixel_hash"],
        "signature": facts["signature"],
        "store_key": key,
        "store_shape": [int(side) for side in facts["shape"].split()],
        **{name: float(facts[name]) for name in ("mean", "std", "low", "high")},
        **({"slices": [int(index) for index in facts["slices"].split()]} if spec.slices else {}),
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
    if _is_one(factor):
        return array
    size = _size(array.shape, factor)
    sigma = np.maximum(0, (1 / factor - 1) / 2)
    smooth = ndimage.gaussian_filter(array, sigma, mode="nearest")
    # Not ndimage.zoom: it bends the spacing until the voxels fill the old extent.
    first = (np.array(array.shape) - 1) / 2 - (np.array(size) - 1) / 2 / factor
    result: NDArray[np.float32] = ndimage.affine_transform(
        smooth, 1 / factor, first, output_shape=size, order=1, mode="nearest"
    )
    return result


def _factor(shape: tuple[int, ...], spacing_mm: tuple[float, ...], spec: DataSpec) -> NDArray[np.float64]:
    """By how much each axis grows; that of slices does not."""
    spec = spec.for_volume(spacing_mm)
    if spec.sizing == "fit":
        assert spec.patch is not None
        sides = spec.in_plane(shape)
        factor = np.full(len(sides), min(1.0, *(np.array(spec.patch) / sides)))
    else:
        factor = np.array(spec.in_plane(spacing_mm)) / np.array(spec.spacing_mm)
    return factor if spec.slice_axis is None else np.insert(factor, spec.slice_axis, 1.0)


def _size(shape: tuple[int, ...], factor: NDArray[np.float64]) -> tuple[int, ...]:
    if _is_one(factor):
        return shape
    return tuple(int(side) for side in np.maximum(np.rint(factor * shape), 1))


def _is_one(factor: NDArray[np.float64]) -> bool:
    return np.allclose(factor, 1, atol=1e-3)


def _bytes_of(manifest: pd.DataFrame, spec: DataSpec) -> int:
    voxels = [
        prod(stored_shape(tuple(shape), tuple(spacing), spec))
        for shape, spacing in zip(manifest["shape"], manifest["spacing_mm"], strict=True)
    ]
    # What is too large is skipped.
    return sum(on_disk(n * (2 if spec.integers else 4) + _HEADER) for n in voxels if n <= MAX_VOXELS)
