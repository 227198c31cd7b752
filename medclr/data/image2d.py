"""PNG and JPEG files, and MedMNIST archives (.npz) of many images -> Volume; neither knows patients or spacing."""

import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from medclr.data.candidate import Candidate, unnamed
from medclr.data.jpeg import check_complete
from medclr.data.volume import Volume
from medclr.errors import Unreadable

SPLITS = ("train", "val", "test")

# The 3D sets of CT origin are rescaled to 0..255: not Hounsfield units, so their modality stays unknown.
_MODALITY = {"pneumoniamnist": "DX", "chestmnist": "DX", "breastmnist": "US"}
_MAX_PIXELS = 2**28  # of one picture
_EXIF_ORIENTATION = 0x0112
_MAX_BYTES = 2**33  # of one split in memory
_MAX_LABELS = 2**28  # bytes, of one split
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
            found.append(
                unnamed(
                    f"{relative}#{split}/{index}",
                    reader="npz",
                    paths=(relative,),
                    member=len(found),
                    modality=modality,
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


def label_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The labels of a MedMNIST archive: per split integers (N,), (N, 1) or, if several of L may hold, 0 and 1 (N, L).

    Raises:
        Unreadable: it is damaged, or holds no such labels.
    """
    found: dict[str, NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as arrays:
            sizes = {member.filename: member.file_size for member in archive.infolist()}
            for split in SPLITS:
                if sizes.get(f"{split}_labels.npy", _MAX_LABELS + 1) <= _MAX_LABELS:
                    found[split] = arrays[f"{split}_labels"]
    except OSError:
        raise
    except Exception as error:
        raise Unreadable("DECODE", f"no readable NumPy archive ({type(error).__name__})") from None
    sound = (a.size and a.dtype.kind in "uib" and a.ndim in (1, 2) for a in found.values())
    if not (found and all(sound)):
        raise Unreadable("UNSUPPORTED", "no train_labels, val_labels and test_labels of whole numbers in it")
    return found


_NOTES: dict[int, tuple[str, ...]] = {
    2: ("spacing unknown", "rows taken as running to the feet, columns to the patient's left"),
    3: ("spacing unknown", "axes taken as right, anterior, superior"),
}


def picture(path: Path, relative: str) -> Candidate:
    """What a PNG or JPEG file will be as a volume of one plane, from its header alone.

    Args:
        path: the file.
        relative: its path below the root, which stands in for patient and series.

    Raises:
        Unreadable: it is neither, or larger than any radiograph.
    """
    with _as_unreadable(), _opened(path) as image:
        columns, rows = image.size
        if image.getexif().get(_EXIF_ORIENTATION, 1) >= 5:
            columns, rows = rows, columns
        if min(rows, columns) < 3:
            raise Unreadable("UNSUPPORTED", f"an image of {rows}×{columns} pixels")
        if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
            raise Unreadable("COLOUR", f"colour mode {image.mode}")
    return unnamed(
        relative,
        reader="picture",
        paths=(relative,),
        member=0,
        shape=(columns, rows),
        spacing_mm=(float("nan"), float("nan")),
        orientation="LI",
        notes=_NOTES[2],
    )


def read_picture(root: Path, candidate: Candidate) -> Volume:
    """A PNG or JPEG file: (1, X, Y), X towards the patient's right and Y towards the head; spacing NaN.

    Args:
        root: the folder that the candidate's path is relative to.
        candidate: one that `picture` returned.

    Raises:
        Unreadable: the file is damaged, has colours, or is one value everywhere.
    """
    with _as_unreadable(), _opened(root / candidate.paths[0]) as image:
        if image.format == "JPEG":
            content = (root / candidate.paths[0]).read_bytes()
            check_complete(content, np.asarray(image), lambda jpeg: np.asarray(Image.open(BytesIO(jpeg))))
        upright = ImageOps.exif_transpose(image)
        # A palette, and three channels, may still be grey, as many radiographs on the web are.
        pixels = np.asarray(upright.convert("RGB") if upright.mode in ("P", "PA", "RGBA", "RGBX") else upright)
    if pixels.ndim == 3:
        channels = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., :1]  # without opacity
        if (channels != channels[..., :1]).any():
            raise Unreadable("COLOUR", "colours, not grey values")
        pixels = channels[..., 0]
    array = pixels.astype(np.float32)
    if array.min() == array.max():
        raise Unreadable("NOT_FINITE", "a single value everywhere")
    return Volume(np.ascontiguousarray(array.T[::-1, ::-1][None]), np.diag([np.nan, np.nan, 1.0, 1.0]), candidate.notes)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    with Image.open(path, formats=("PNG", "JPEG")) as image:
        if image.width * image.height > _MAX_PIXELS:
            raise Unreadable("TOO_LARGE", f"an image of {image.height}×{image.width} pixels")
        yield image


@contextmanager
def _as_unreadable() -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's quote what is in the file
            yield
    except Unreadable:
        raise
    except Image.DecompressionBombError:
        raise Unreadable("TOO_LARGE", "an image of more pixels than any radiograph has") from None
    except OSError as error:  # so does Pillow call what it cannot decode
        if error.errno:
            raise Unreadable("UNREADABLE", f"cannot be opened: {error.strerror}") from None
        reason = "TRUNCATED" if "truncated" in str(error) else "DECODE"
        raise Unreadable(reason, "the image cannot be decoded") from None
    except MemoryError:
        raise Unreadable("TOO_LARGE", "not enough memory for the image") from None
    except Exception as error:
        raise Unreadable("DECODE", f"the image cannot be decoded ({type(error).__name__})") from None


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
