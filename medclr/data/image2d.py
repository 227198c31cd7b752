"""MedMNIST archives (.npz) -> Volume: many small images in one file, with splits and without patients."""

import zipfile
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medclr.data.candidate import Candidate
from medclr.data.volume import Volume
from medclr.errors import Unreadable

SPLITS = ("train", "val", "test")

# The 3D sets of CT origin are rescaled to 0..255: not Hounsfield units, so their modality stays unknown.
_MODALITY = {"pneumoniamnist": "DX", "chestmnist": "DX", "breastmnist": "US"}
_MAX_BYTES = 2**33  # of one split in memory
_MAX_INFLATION = 1032  # the most that deflate can compress


def header(path: Path, relative: str) -> list[Candidate]:
    """The images of a MedMNIST archive, from the headers of its arrays alone.

    Args:
        path: the .npz file.
        relative: its path below the root, which the identifiers are made of.

    Returns:
        One candidate an image, in the order train, val, test.

    Raises:
        Unreadable: it is no such archive, or holds something else than grey images.
    """
    try:
        shapes = _shapes(path)
    except Unreadable:
        raise
    except OSError as error:
        raise Unreadable("UNREADABLE", f"cannot be opened: {error.strerror or type(error).__name__}") from None
    except Exception as error:
        raise Unreadable("NOT_AN_IMAGE", f"no readable NumPy archive ({type(error).__name__})") from None
    modality = _MODALITY.get(PurePosixPath(relative).name.split(".")[0].split("_")[0].lower(), "")
    found: list[Candidate] = []
    for split, shape in shapes.items():
        for index in range(shape[0]):
            identity = f"{relative}#{split}/{index}"
            found.append(
                Candidate(
                    reader="npz",
                    paths=(relative,),
                    member=len(found),
                    patient_id=identity,
                    patient_known=False,
                    study_uid=identity,
                    series_uid=identity,
                    site="",
                    modality=modality,
                    manufacturer="",
                    model="",
                    kernel="",
                    field_strength=float("nan"),
                    shape=shape[1:] if len(shape) == 4 else (shape[2], shape[1]),
                    spacing_mm=(float("nan"),) * (len(shape) - 1),
                    orientation="LI" if len(shape) == 3 else "RAS",
                    notes=_NOTES[len(shape) - 1],
                )
            )
    if not found:
        raise Unreadable("NOT_AN_IMAGE", "an archive without images")
    return found


def read(root: Path, candidate: Candidate) -> Volume:
    """One image of an archive.

    Args:
        root: the folder that the candidate's path is relative to.
        candidate: one that `header` returned.

    Returns:
        (1, X, Y), X towards the patient's right and Y towards the head, or (1, X, Y, Z); spacing NaN.

    Raises:
        Unreadable: the archive is damaged or has changed.
    """
    path = root / candidate.paths[0]
    try:
        stat = path.stat()
        pixels = _member(path, candidate.member, stat.st_mtime_ns, stat.st_size)
    except Unreadable:
        raise
    except OSError as error:
        raise Unreadable("UNREADABLE", f"cannot be opened: {error.strerror or type(error).__name__}") from None
    except EOFError:
        raise Unreadable("TRUNCATED", "the archive ends before its arrays do") from None
    except Exception as error:
        raise Unreadable("DECODE", f"the archive is damaged ({type(error).__name__})") from None
    array = pixels.astype(np.float32)
    if not np.isfinite(array).all() or array.min() == array.max():
        raise Unreadable("NOT_FINITE", "values that are not finite, or a single value everywhere")
    affine = np.eye(4)
    affine[range(array.ndim), range(array.ndim)] = np.nan
    if array.ndim == 2:
        # Rows run to the feet and columns to the patient's left, as a radiograph is looked at.
        array = array.T[::-1, ::-1]
    return Volume(np.ascontiguousarray(array[None]), affine, candidate.notes)


_NOTES: dict[int, tuple[str, ...]] = {
    2: ("spacing unknown", "rows taken as running to the feet, columns to the patient's left"),
    3: ("spacing unknown", "axes taken as right, anterior, superior"),
}


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    with zipfile.ZipFile(path) as archive:
        members = set(archive.namelist())
        for split in SPLITS:
            name = f"{split}_images.npy"
            if name not in members:
                continue
            with archive.open(name) as file:
                shape, dtype = _array_header(file)
            if dtype.kind not in "uif":
                raise Unreadable("UNSUPPORTED", f"images of type {dtype}; numbers are needed")
            if len(shape) in (4, 5) and shape[-1] == 3:
                raise Unreadable("COLOUR", "colour images")
            if len(shape) not in (3, 4) or min(shape[1:]) < 3:
                raise Unreadable("UNSUPPORTED", f"images as an array of shape {shape}")
            claimed = int(np.prod([int(n) for n in shape], dtype=object)) * dtype.itemsize
            if claimed > _MAX_BYTES:
                raise Unreadable("TOO_LARGE", f"the {split} images claim {claimed / 2**30:.1f} GiB")
            info = archive.getinfo(name)
            if claimed > info.file_size or claimed > info.compress_size * _MAX_INFLATION:
                raise Unreadable("TRUNCATED", f"the {split} images claim more than the archive holds")
            shapes[split] = shape
    if not shapes:
        raise Unreadable("NOT_AN_IMAGE", "a NumPy archive without train_images, val_images or test_images")
    return shapes


def _array_header(file: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    return tuple(shape), dtype


def _member(path: Path, member: int, mtime_ns: int, size: int) -> NDArray[Any]:
    for split, shape in _shapes_once(path, mtime_ns, size).items():
        if member < shape[0]:
            return np.asarray(_images(path, split, mtime_ns, size)[member])
        member -= shape[0]
    raise Unreadable("UNREADABLE", "the archive has changed since it was scanned")


@lru_cache(maxsize=2)
def _shapes_once(path: Path, mtime_ns: int, size: int) -> dict[str, tuple[int, ...]]:
    return _shapes(path)


# A split is inflated whole, so a process keeps the one that it is working through.
@lru_cache(maxsize=1)
def _images(path: Path, split: str, mtime_ns: int, size: int) -> NDArray[Any]:
    with np.load(path, allow_pickle=False) as archive:
        images: NDArray[Any] = archive[f"{split}_images"]
    return images
