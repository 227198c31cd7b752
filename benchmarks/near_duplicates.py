"""Near-duplicates: what is found of images that were changed, what is found wrongly, and how long large sets take.

    python benchmarks/near_duplicates.py [N] [FOLDER]

N: signatures on either side of the synthetic comparison (default 20,000). FOLDER: the real sets, nih_cxr_1000,
pneumoniamnist, adrenalmnist3d, msd_hippocampus and dicom_series_multivendor; without it, only the synthetic one runs.
The target is 100,000 against 100,000 in minutes on two cores.
"""

import base64
import io
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from medclr.data.discover import discover
from medclr.data.identity import pixel_hash
from medclr.data.prepare import READERS
from medclr.data.signature import THRESHOLD, near_duplicates, signature
from medclr.errors import Unreadable

Array = NDArray[Any]
Changes = dict[str, Callable[[Array], Array]]
MOST = 300  # images of a set that are changed, and looked for among up to 1,000 others
LOWER = 0.90  # down to which similarity of different images is listed


def main(n: int, folder: Path | None) -> None:
    """Print the tables of docs/leakage.md."""
    if folder:
        images = pictures(folder / "nih_cxr_1000" / "images")
        patients = {name: name.split("_")[0] for name in images}
        report("nih_cxr_1000", images, PLANE, [patients[name] for name in images])
        with np.load(folder / "pneumoniamnist" / "pneumoniamnist.npz") as archive:
            small = [image for split in ("train", "val", "test") for image in archive[f"{split}_images"]]
        report("pneumoniamnist", dict(enumerate(small)), PLANE)
        report("msd_hippocampus", volumes(folder / "msd_hippocampus" / "images"), VOLUME)
        with np.load(folder / "adrenalmnist3d" / "adrenalmnist3d.npz") as archive:
            masks = [image for split in ("train", "val", "test") for image in archive[f"{split}_images"]]
        print(f"\nadrenalmnist3d: {len(masks):,} volumes, {sum(signature(m[None]) == '' for m in masks):,} are masks")
        # What masks would do if they had signatures: noise far below their contrast makes them images.
        noise = np.random.default_rng(0).random(masks[0].shape)
        report("adrenalmnist3d, with noise", {i: m + noise for i, m in enumerate(masks)}, VOLUME)
        archive_3d(folder / "dicom_series_multivendor")
    scale(n)


def report(
    name: str, images: dict[Any, Array], changes: dict[str, Callable[[Array], Array]], patients: Any = ()
) -> None:
    """Pairs found among the images as they are, and the share of changed images of which the original is found."""
    arrays = list(images.values())
    originals = [signature(array[None]) for array in arrays]
    i, j, similarity = near_duplicates(originals, threshold=LOWER)
    hashes = [pixel_hash(array) for array in arrays]
    same = np.array([hashes[a] == hashes[b] for a, b in zip(i, j, strict=True)], dtype=bool)
    found = similarity >= THRESHOLD
    n = len(arrays)
    print(f"\n{name}: {n:,} images, {n * (n - 1) // 2:,} pairs")
    print(f"  identical pixels {same.sum()}, other pairs of at least {THRESHOLD}: {(found & ~same).sum()}")
    if len(patients):
        one = np.array([patients[a] == patients[b] for a, b in zip(i, j, strict=True)], dtype=bool)
        print(f"  of those, of one patient {(found & ~same & one).sum()}, of two {(found & ~same & ~one).sum()}")
    keys = list(images)
    for at in np.argsort(-np.where(same, 0, similarity))[:6]:
        print(f"    {similarity[at]:.3f}  {keys[i[at]]}  {keys[j[at]]}")
    chosen = np.arange(n)[:: -(-n // MOST)]
    rivals = np.union1d(chosen, np.arange(n)[:: -(-n // 1000)])
    for change, apply in changes.items():
        changed = [signature(apply(arrays[at])[None]) for at in chosen]
        a, b, _ = near_duplicates(changed, [originals[at] for at in rivals])
        recall = np.isin(np.arange(len(chosen)), a[rivals[b] == chosen[a]]).mean()
        print(f"  {change:28} {recall:7.1%} of {len(chosen):,}", flush=True)


def archive_3d(folder: Path) -> None:
    """DICOM series against the NIfTI files that other converters made of them."""
    read = volumes(folder)
    dicom = {key: array for key, array in read.items() if key[0] == "dicom"}
    nifti = {key: array for key, array in read.items() if key[0] == "nifti"}
    # A converter's file lies beside the series, or beside its folder.
    beside = lambda one, other: Path(other[1]).parent in Path(one[1]).parents  # noqa: E731
    dicom = {key: array for key, array in dicom.items() if any(beside(key, other) for other in nifti)}
    i, j, _ = near_duplicates(*([signature(array[None]) for array in side.values()] for side in (dicom, nifti)))
    names, others = list(dicom), list(nifti)
    right = {a for a, b in zip(i, j, strict=True) if beside(names[a], others[b])}
    wrong = sum(not beside(names[a], others[b]) for a, b in zip(i, j, strict=True))
    print(f"\ndicom_series_multivendor: {len(names)} volumes from DICOM, {len(others)} from NIfTI files")
    print(f"  found beside themselves {len(right)}, pairs with other folders {wrong}")
    print("  missed:", *(str(Path(names[a][1]).parent) for a in range(len(names)) if a not in right), sep="\n    ")


def scale(n: int) -> None:
    """Two sets of smooth noise, one image shared: the time, and the memory on top of the signatures."""
    rng = np.random.default_rng(0)
    first, second = smooth(n, rng), smooth(n, rng)
    second[n // 2] = first[n // 3]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    i, j, _ = near_duplicates(first, second)
    seconds = time.perf_counter() - started
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert (n // 3, n // 2) in set(zip(i.tolist(), j.tolist(), strict=True))
    print(f"\n{n:,} against {n:,} synthetic signatures: {seconds:.0f} s, {more:.0f} MB more, {len(i)} pairs")


def smooth(n: int, rng: np.random.Generator) -> list[str]:
    """Signatures of smooth noise: alike enough that most have candidates."""
    found = []
    for start in range(0, n, 1000):
        noise = rng.standard_normal((min(1000, n - start), 32, 32), dtype=np.float32)
        grids = ndimage.gaussian_filter(noise, (0, 3, 3))
        grids -= grids.min(axis=(1, 2), keepdims=True)
        grids *= 255 / grids.max(axis=(1, 2), keepdims=True)
        found += [base64.b64encode(grid.astype(np.uint8).tobytes()).decode() for grid in grids]
    return found


def pictures(folder: Path) -> dict[str, Array]:
    """The grey pictures of a folder by name."""
    return {path.stem: np.asarray(Image.open(path).convert("L")) for path in sorted(folder.glob("*.png"))}


def volumes(folder: Path) -> dict[Any, Array]:
    """The 3D volumes of a folder as medclr reads them, first channel."""
    found: dict[Any, Array] = {}
    for candidate in discover(folder, workers=0)[0]:
        if len(candidate.shape) == 3:
            try:
                array = READERS[candidate.reader](folder, candidate).array[0]
            except Unreadable:
                continue
            found[(candidate.reader, f"{candidate.paths[0]}#{candidate.member}", len(found))] = array
    return found


def jpeg(quality: int) -> Callable[[Array], Array]:
    def apply(array: Array) -> Array:
        file = io.BytesIO()
        Image.fromarray(array).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file))

    return apply


def resized(factor: float) -> Callable[[Array], Array]:
    def apply(array: Array) -> Array:
        rows, columns = (max(3, round(side * factor)) for side in array.shape)
        return np.asarray(Image.fromarray(array).resize((columns, rows), Image.Resampling.BICUBIC))

    return apply


def trimmed(*shares: float) -> Callable[[Array], Array]:
    """Shares of the side cut off, in front and behind along each axis; one share is for all."""

    def apply(array: Array) -> Array:
        cut = shares * (2 * array.ndim) if len(shares) == 1 else shares
        sides = zip(array.shape, cut[::2], cut[1::2], strict=True)
        return array[tuple(slice(round(n * a), n - round(n * b)) for n, a, b in sides)]

    return apply


def windowed(low: float, high: float) -> Callable[[Array], Array]:
    """Eight bits between two percentiles: what lies outside is saturated."""

    def apply(array: Array) -> Array:
        a, b = np.percentile(array, (low, high))
        return np.rint(np.clip((array - a) / max(b - a, 1e-6), 0, 1) * 255).astype(np.uint8)

    return apply


def resampled(*factors: float) -> Callable[[Array], Array]:
    def apply(array: Array) -> Array:
        f = np.array(factors * array.ndim if len(factors) == 1 else factors)
        smoothed = ndimage.gaussian_filter(array.astype(np.float32), np.maximum(0, (1 / f - 1) / 2))
        return ndimage.zoom(smoothed, f, order=1, grid_mode=True, mode="nearest")

    return apply


PLANE: Changes = {
    "JPEG, quality 90": jpeg(90),
    "JPEG, quality 75": jpeg(75),
    "half the size": resized(0.5),
    "double the size": resized(2),
    "half the size, JPEG 75": lambda array: jpeg(75)(resized(0.5)(array)),
    "another linear scale": lambda array: array * np.float32(3.7) - 1000,
    "8 bits of percentiles 2 to 98": windowed(2, 98),
    "8 bits of percentiles 5 to 90": windowed(5, 90),
    "inverted": lambda array: 255 - array,
    "2% off every border": trimmed(0.02),
    "4% off every border": trimmed(0.04),
    "4% off two borders": trimmed(0.04, 0, 0.04, 0),
    "6% off every border": trimmed(0.06),
    "turned by 1 degree": lambda array: ndimage.rotate(array, 1, reshape=False, order=1, mode="nearest"),
    "mirrored": lambda array: array[:, ::-1],
}
VOLUME: Changes = {
    "half the size": resampled(0.5),
    "double the size": resampled(2),
    "resampled by 0.8, 1.25, 0.7": resampled(0.8, 1.25, 0.7),
    "another linear scale": lambda array: array * np.float32(3.7) - 1000,
    "8 bits of percentiles 2 to 98": windowed(2, 98),
    "8 bits of percentiles 5 to 90": windowed(5, 90),
    "inverted": lambda array: -array.astype(np.float32),
    "3% off every border": trimmed(0.03),
    "5% off every border": trimmed(0.05),
}


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    folders = [Path(word) for word in sys.argv[1:] if not word.isdigit()]
    main(numbers[0] if numbers else 20_000, folders[0] if folders else None)
