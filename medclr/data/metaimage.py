"""One MetaImage file (.mha, or .mhd with its .raw or .zraw) -> Volume, as LUNA16 has them.

The header is lines of text, `key = value`; the format has no standard but ITK's MetaIO, which this follows.
"""

import zlib
from math import prod
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medclr.data.candidate import Candidate, unnamed
from medclr.data.nifti import MAX_INFLATION, MAX_VOXELS, as_unreadable, by, finite, is_sound
from medclr.data.volume import Volume, canonical, canonical_grid
from medclr.errors import Unreadable

_LONGEST_HEADER = 2**16  # bytes
_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def header(path: Path, relative: str, companion: Path | None = None, companion_relative: str = "") -> Candidate:
    """What a MetaImage file will be as a volume.

    Args:
        path: the .mha or .mhd file.
        relative: its path below the root; without its ending it stands in for patient and series.
        companion: the .raw or .zraw file of a .mhd, of the same name.
        companion_relative: the same below the root.

    Raises:
        Unreadable: it is no image, or not in grey.
    """
    with as_unreadable():
        layout = _layout(path, companion)
        grid = canonical_grid(layout.shape, layout.affine)
    return unnamed(
        str(PurePosixPath(relative).with_suffix("")),
        reader="metaimage",
        paths=(relative, companion_relative) if companion else (relative,),
        member=0,
        **grid._asdict(),
    )


def read(root: Path, candidate: Candidate) -> Volume:
    """The volume of a MetaImage file: (1, X, Y, Z) in RAS.

    Args:
        root: the folder that the candidate's paths are relative to.
        candidate: one that `header` returned.

    Raises:
        Unreadable: the file is damaged, or holds a single value.
    """
    path = root / candidate.paths[0]
    companion = root / candidate.paths[1] if len(candidate.paths) > 1 else None
    with as_unreadable():
        layout = _layout(path, companion)
        array, notes = finite(_voxels(layout, companion or path).astype(np.float32))
        return canonical(array[None], layout.affine, notes)


class _Layout(NamedTuple):
    shape: tuple[int, ...]
    affine: NDArray[np.float64]  # to RAS
    dtype: np.dtype[np.generic]
    zipped: bool
    start: int  # of the voxels, in the file that holds them


def _layout(path: Path, companion: Path | None) -> _Layout:
    fields, end = _fields(path)
    _check_kind(fields)
    shape = tuple(int(n) for n in fields.get("DimSize", "").split())
    if len(shape) != 3 or min(shape) < 3 or int(fields.get("NDims", "3")) != 3:
        raise Unreadable("UNSUPPORTED", f"shape {by(shape)}; volumes of three axes, of at least 3 voxels, are needed")
    if prod(shape) > MAX_VOXELS:
        raise Unreadable("TOO_LARGE", f"shape {by(shape)} is {prod(shape) * 4 / 2**30:.1f} GiB as float32")
    order = "<>"[_is_true(fields, "BinaryDataByteOrderMSB", "ElementByteOrderMSB")]
    dtype = np.dtype(order + _TYPES[fields["ElementType"]])
    zipped = _is_true(fields, "CompressedData")
    start, size = _place(fields, path, end, companion), (companion or path).stat().st_size
    n_bytes = prod(shape) * dtype.itemsize
    if start == -1:  # the voxels are what the file ends with
        start = max(0, size - n_bytes)
    if n_bytes > (size - start) * (MAX_INFLATION if zipped else 1):
        raise Unreadable("TRUNCATED", f"{prod(shape)} voxels of {dtype.itemsize} bytes do not fit in {size} bytes")
    return _Layout(shape, _affine(fields), dtype, zipped, start)


def _fields(path: Path) -> tuple[dict[str, str], int]:
    """The header, and where it ends: ElementDataFile is its last line."""
    with path.open("rb") as file:
        start = file.read(_LONGEST_HEADER)
    fields: dict[str, str] = {}
    end = 0
    for line in start.splitlines(keepends=True):
        end += len(line)
        key, equals, value = line.decode("latin-1").partition("=")
        fields[key.strip()] = value.strip()
        if key.strip() == "ElementDataFile":
            return fields, end
        if not equals:
            break
    raise Unreadable("DECODE", "the header of a MetaImage that does not say where its voxels are")


def _check_kind(fields: dict[str, str]) -> None:
    if fields.get("ObjectType", "Image") != "Image":
        raise Unreadable("NOT_AN_IMAGE", "MetaIO's, and no image")
    if int(fields.get("ElementNumberOfChannels", "1")) != 1:
        raise Unreadable("UNSUPPORTED", "several values a voxel")
    if fields.get("ElementType") not in _TYPES:
        raise Unreadable("UNSUPPORTED", "voxels of a type that MetaImage does not define, or that has no one size")
    if not _is_true(fields, "BinaryData", absent=True):
        raise Unreadable("UNSUPPORTED", "voxels as text")


def _place(fields: dict[str, str], path: Path, end: int, companion: Path | None) -> int:
    """Where in its file the first voxel is; -1 where that must be told from the end."""
    where = fields["ElementDataFile"]
    if where.upper() == "LOCAL" and companion is None:
        return end
    if companion is None or where != companion.name:
        raise Unreadable(
            "UNSUPPORTED", "voxels in several files, or in one of another name than the .mhd; or that file is missing"
        )
    return max(-1, int(fields.get("HeaderSize", "0")))


def _affine(fields: dict[str, str]) -> NDArray[np.float64]:
    steps = _numbers(fields, ("ElementSpacing", "ElementSize"), 3, [1.0, 1.0, 1.0])
    # The direction of each axis, one after the other.
    directions = _numbers(fields, ("TransformMatrix", "Rotation", "Orientation"), 9, np.eye(3).ravel())
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(directions, (3, 3)).T * steps
    affine[:3, 3] = _numbers(fields, ("Offset", "Position", "Origin"), 3, [0.0, 0.0, 0.0])
    affine = _LPS_TO_RAS @ affine
    if not is_sound(affine):
        raise Unreadable("NO_GEOMETRY", "directions or spacing that are singular or not finite")
    return affine


def _numbers(
    fields: dict[str, str], names: tuple[str, ...], n: int, absent: NDArray[np.float64] | list[float]
) -> NDArray[np.float64]:
    """The first of several names of the same thing."""
    written = next((fields[name] for name in names if name in fields), None)
    values = np.array(absent if written is None else [float(part) for part in written.split()])
    if len(values) != n:
        raise Unreadable("NO_GEOMETRY", f"{names[0]} of {len(values)} numbers; it must have {n}")
    return values


def _is_true(fields: dict[str, str], *names: str, absent: bool = False) -> bool:
    return next((fields[name][:1] in ("T", "t", "1") for name in names if name in fields), absent)


def _voxels(layout: _Layout, path: Path) -> NDArray[np.generic]:
    n_bytes = prod(layout.shape) * layout.dtype.itemsize
    with path.open("rb") as file:
        file.seek(layout.start)
        content = file.read() if layout.zipped else file.read(n_bytes)
    if layout.zipped:
        stream = zlib.decompressobj(32 + zlib.MAX_WBITS)
        content = stream.decompress(content, n_bytes)
        stream.decompress(stream.unconsumed_tail, 1)  # at its end a stream is checked against its checksum
        if not stream.eof:
            raise EOFError
    if len(content) < n_bytes:
        raise EOFError
    return np.frombuffer(content, layout.dtype).reshape(layout.shape, order="F")
