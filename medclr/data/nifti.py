"""One NIfTI file (.nii, .nii.gz, or .hdr with .img, also of Analyze) -> Volume, or several where it has more axes.

The header is nibabel's; the bytes are read here, never more of them than the header claims.
"""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from io import BytesIO
from math import prod
from pathlib import Path, PurePosixPath
from typing import IO, Any

import nibabel as nib
import numpy as np
from nibabel.imageglobals import logger
from nibabel.spm2analyze import Spm2AnalyzeHeader
from numpy.typing import NDArray

from medclr.data.candidate import Candidate, unnamed
from medclr.data.volume import Volume, canonical, canonical_grid
from medclr.errors import Unreadable

MAX_VOXELS = 2**29  # 2 GiB as float32
_MAX_VOLUMES = 2**14  # time points of one file
_MOST_INFLATED = 2**31  # bytes of a 4D file that are kept while its volumes are read
MAX_INFLATION = 1032  # the most that deflate can compress
_CIFTI = range(3000, 3100)  # intent codes of surfaces and matrices in a NIfTI-2 wrapper
# Intent codes of matrices, vectors, points, quaternions and colours: along their fifth axis there are no volumes.
_TENSORS = {*range(1004, 1011), 2003, 2004}
_ATLAS = 3  # codes from here on are of an atlas
_TO_MM = {"meter": 1000.0, "micron": 0.001}


def header(path: Path, relative: str, companion: Path | None = None, companion_relative: str = "") -> list[Candidate]:
    """What a NIfTI file will be as a volume, or as volumes of one patient where it is 4D or 5D.

    Args:
        path: the .nii, .nii.gz or .hdr file.
        relative: its path below the root; without its ending it stands in for patient and series.
        companion: the .img file that belongs to a .hdr.
        companion_relative: the same below the root.

    Raises:
        Unreadable: it is no NIfTI file, or not in grey.
    """
    with as_unreadable():
        parsed = _parse(path)
        shape, affine, notes = _check(parsed, path, companion)
        grid = canonical_grid(shape, affine)
    first = unnamed(
        _identity(relative),
        reader="nifti",
        paths=(relative, companion_relative) if companion else (relative,),
        member=0,
        **grid._asdict(),
        notes=notes,
    )
    return [replace(first, member=member) for member in range(prod(shape[3:]))]


def read(root: Path, candidate: Candidate) -> Volume:
    """The volume of a NIfTI file: (1, X, Y, Z) in RAS, scaled by the header's slope and intercept.

    Args:
        root: the folder that the candidate's paths are relative to.
        candidate: one that `header` returned.

    Raises:
        Unreadable: the file is damaged, or holds a single value.
    """
    path = root / candidate.paths[0]
    companion = root / candidate.paths[1] if len(candidate.paths) > 1 else None
    with as_unreadable():
        parsed = _parse(path)
        shape, affine, notes = _check(parsed, path, companion)
        stored = _voxels(parsed, companion or path, shape, candidate.member)
        array, more = _scaled(stored, parsed)
        return canonical(array[None], affine, notes + more)


def is_header(start: bytes) -> bool:
    """Whether a file's first 540 (inflated) bytes are a NIfTI header."""
    return start[344:348] in (b"n+1\0", b"ni1\0") or start[4:8] in (b"n+2\0", b"ni2\0")


@contextmanager
def as_unreadable() -> Iterator[None]:
    """Whatever goes wrong within becomes a reason code."""
    # nibabel logs what it finds odd; the candidate's notes and reasons say what matters.
    before, logger.disabled = logger.disabled, True
    try:
        with np.errstate(all="ignore"):
            yield
    except Unreadable:
        raise
    except gzip.BadGzipFile as error:
        reason = "TRUNCATED" if "Compressed file ended" in str(error) else "DECODE"
        raise Unreadable(reason, "the gzip stream is damaged") from None
    except OSError as error:
        raise Unreadable("UNREADABLE", f"cannot be opened: {error.strerror or type(error).__name__}") from None
    except EOFError:
        raise Unreadable("TRUNCATED", "the file ends before its voxels do") from None
    except zlib.error:
        raise Unreadable("DECODE", "the gzip stream is damaged") from None
    except MemoryError:
        raise Unreadable("TOO_LARGE", "not enough memory for the volume") from None
    except Exception as error:
        raise Unreadable("DECODE", f"the header makes no sense ({type(error).__name__})") from None
    finally:
        logger.disabled = before


def _is_zipped(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if _is_zipped(path) else path.open("rb")  # type: ignore[return-value]


def _parse(path: Path) -> Any:
    with _open(path) as file:
        start = file.read(540)
    if not is_header(start):
        return _analyze(start)
    if start[4:8] in (b"n+2\0", b"ni2\0"):
        if len(start) < 540:
            raise EOFError
        return nib.Nifti2Header.from_fileobj(BytesIO(start))
    return nib.Nifti1Header.from_fileobj(BytesIO(start[:348]))


def _analyze(start: bytes) -> Any:
    """The header of an Analyze 7.5 pair, as NIfTI would have it: without sform and qform, so by its first method.

    SPM's scale is taken where there is one. Coronal, sagittal and flipped files are read differently by everyone.
    """
    if len(start) < 348 or 348 not in (int.from_bytes(start[:4], order) for order in ("little", "big")):
        raise Unreadable("UNSUPPORTED", "neither a NIfTI header nor one of Analyze")
    old = Spm2AnalyzeHeader.from_fileobj(BytesIO(start[:348]), check=False)
    if bytes(old["orient"]).strip(b"\0 "):
        raise Unreadable("UNSUPPORTED", "an Analyze file that is not transverse; convert it to NIfTI")
    new = nib.nifti1.Nifti1PairHeader(endianness=old.endianness)
    new.set_data_dtype(old.get_data_dtype())
    new.set_data_shape(old.get_data_shape())
    new.set_zooms(np.abs(old.get_zooms()))
    new.set_data_offset(old.get_data_offset())
    new.set_slope_inter(*old.get_slope_inter())
    return new


def _check(
    parsed: Any, path: Path, companion: Path | None
) -> tuple[tuple[int, ...], NDArray[np.float64], tuple[str, ...]]:
    """Shape without trailing axes of one, affine in mm, notes; refuses what is not grey volumes."""
    if int(parsed["intent_code"]) in _CIFTI:
        raise Unreadable("UNSUPPORTED", "CIFTI: surfaces or a matrix, no volume")
    if int(parsed["intent_code"]) in _TENSORS:
        raise Unreadable("UNSUPPORTED", "a vector or a matrix in each voxel")
    if companion is None and bytes(parsed["magic"])[:2] == b"ni":
        raise Unreadable("TRUNCATED", "a .hdr without its .img")
    try:
        dtype = parsed.get_data_dtype()
    except nib.spatialimages.HeaderDataError:
        raise Unreadable("UNSUPPORTED", "a data type that NIfTI does not define") from None
    if dtype.fields is not None:
        raise Unreadable("COLOUR", "RGB voxels")
    if dtype.kind not in "iuf" or dtype.itemsize not in (1, 2, 4, 8):
        raise Unreadable("UNSUPPORTED", f"voxels of type {dtype}")
    if bytes(parsed["magic"])[:2] == b"n+" and parsed.get_data_offset() < int(parsed["sizeof_hdr"]):
        raise Unreadable("DECODE", "voxels that would begin within the header")
    shape = tuple(int(n) for n in parsed.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) < 3 or min(shape[:3]) < 3 or min(shape) < 1:
        raise Unreadable("UNSUPPORTED", f"shape {by(shape)}; volumes of at least 3 voxels a side are needed")
    n_voxels = prod(shape[:3])
    if prod(shape[3:]) > _MAX_VOLUMES:
        raise Unreadable("TOO_LARGE", f"{prod(shape[3:]):,} volumes in one file")
    if n_voxels > MAX_VOXELS:
        raise Unreadable("TOO_LARGE", f"shape {by(shape)} is {n_voxels * 4 / 2**30:.1f} GiB as float32")
    pixels = companion or path
    with pixels.open("rb") as file:
        inflation = MAX_INFLATION if file.read(2) == b"\x1f\x8b" else 1
    size = pixels.stat().st_size
    if parsed.get_data_offset() + prod(shape) * dtype.itemsize > size * inflation:
        raise Unreadable("TRUNCATED", f"{prod(shape)} voxels of {dtype.itemsize} bytes do not fit in {size} bytes")
    affine, notes = _affine(parsed)
    return shape, affine, notes


def _affine(parsed: Any) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    tried: list[tuple[NDArray[np.float64], tuple[str, ...]]] = []
    if int(parsed["sform_code"]) > 0:
        tried.append((np.asarray(parsed.get_sform(), dtype=np.float64), ()))
    if int(parsed["qform_code"]) > 0:
        with suppress(ValueError, nib.spatialimages.HeaderDataError):
            tried.append((np.asarray(parsed.get_qform(), dtype=np.float64), ()))
    if not tried:
        note = "no sform or qform: axes as NIfTI's method 1 has them, so left and right may be exchanged"
        tried.append((np.asarray(parsed.get_base_affine(), dtype=np.float64), (note,)))
    sound = [one for one in tried if is_sound(one[0])]
    if not sound:
        raise Unreadable("NO_GEOMETRY", "sform and qform are singular or not finite")
    affine, notes = sound[0]
    if len(sound) == 2:
        notes += _disagreement(affine, sound[1][0], int(parsed["sform_code"]))
    return _in_mm(affine, np.linalg.norm(affine[:3, :3], axis=0), parsed, notes)


def is_sound(affine: NDArray[np.float64]) -> bool:
    """Whether an affine (4, 4) is finite, of steps between a nanometre and a kilometre, and has three directions."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    # The determinant of the directions is one for right angles; near nought, two axes coincide.
    sound = np.isfinite(affine).all() and (spacing > 1e-6).all() and (spacing < 1e6).all()
    return bool(sound and abs(np.linalg.det(affine[:3, :3] / spacing)) > 0.1)


def _disagreement(sform: NDArray[np.float64], qform: NDArray[np.float64], code: int) -> tuple[str, ...]:
    """A note where sform and qform put the volume elsewhere; refused where they mirror each other.

    An sform of an atlas (codes 3 and up) is a registration, whose spacing need not be that of the scan.
    """
    if np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0:
        raise Unreadable("NO_GEOMETRY", "sform and qform disagree about left and right")
    here, there = (np.linalg.norm(affine[:3, :3], axis=0) for affine in (sform, qform))
    if not np.allclose(here, there, rtol=0.01, atol=1e-3):
        if code < _ATLAS:
            raise Unreadable("NO_GEOMETRY", "sform and qform disagree about the spacing")
        return ("the sform is that of an atlas, whose spacing differs from the scan's",)
    return () if np.allclose(sform, qform, rtol=0.01, atol=0.5) else ("sform and qform differ; the sform was taken",)


def _in_mm(
    affine: NDArray[np.float64], spacing: NDArray[np.float64], parsed: Any, notes: tuple[str, ...]
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    try:
        unit = parsed.get_xyzt_units()[0]
    except KeyError:
        unit = "unknown"
    factor = _TO_MM.get(unit, 1.0)
    if factor != 1.0:
        # Many a file says metres or microns and means millimetres.
        if (spacing * factor).min() > 0.005 and (spacing * factor).max() < 50:
            affine = np.diag([factor, factor, factor, 1.0]) @ affine
            notes += (f"spacing converted from {unit} to mm",)
        else:
            notes += (f"the unit says {unit}; the spacing was taken as mm",)
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    skew = np.degrees(np.arcsin(min(1.0, np.abs(directions.T @ directions - np.eye(3)).max())))
    if skew > 0.5:
        notes += (f"axes {skew:.1f} degrees off right angles",)
    return affine, notes


def _voxels(parsed: Any, path: Path, shape: tuple[int, ...], member: int) -> NDArray[Any]:
    dtype = parsed.get_data_dtype()
    n_bytes = prod(shape[:3]) * dtype.itemsize
    offset = int(parsed.get_data_offset())
    if len(shape) > 3 and offset + prod(shape) * dtype.itemsize <= _MOST_INFLATED and _is_zipped(path):
        # To find a time point in a gzip stream is to inflate all before it; so it is done once for all of them.
        state = path.stat()
        start = offset + member * n_bytes
        content = _inflated(path, state.st_mtime_ns, state.st_size, offset + prod(shape) * dtype.itemsize)
        if len(content) < start + n_bytes:
            raise EOFError
        return np.frombuffer(content, dtype, prod(shape[:3]), start).reshape(shape[:3], order="F")
    with _open(path) as file:
        file.seek(offset + member * n_bytes)
        content = file.read(n_bytes)
        if len(content) < n_bytes:
            raise EOFError
        file.read(1)  # at its end a gzip stream is checked against its checksum
    return np.frombuffer(content, dtype=dtype).reshape(shape[:3], order="F")


@lru_cache(maxsize=1)
def _inflated(path: Path, mtime_ns: int, size: int, n_bytes: int) -> bytes:
    with _open(path) as file:
        content = file.read(n_bytes)
        file.read(1)  # at its end a gzip stream is checked against its checksum
    return content


def _scaled(stored: NDArray[Any], parsed: Any) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    slope, intercept = parsed.get_slope_inter()
    scaled = stored if slope is None else stored * np.float64(slope) + np.float64(intercept)
    return finite(scaled.astype(np.float32))


def finite(array: NDArray[np.float32]) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """The same array with its minimum in place of what is not finite, and a note of that; refuses a single value."""
    notes: tuple[str, ...] = ()
    sound = np.isfinite(array)
    if not sound.all():
        n_bad = int(array.size - sound.sum())
        if n_bad == array.size:
            raise Unreadable("NOT_FINITE", "no finite value")
        array[~sound] = array[sound].min()
        notes = (f"{n_bad} voxels that are not finite set to the minimum",)
    if array.min() == array.max():
        raise Unreadable("NOT_FINITE", "a single value everywhere")
    return array, notes


def _identity(relative: str) -> str:
    path = PurePosixPath(relative)
    name = path.name
    for ending in (".gz", ".nii", ".hdr"):
        if name.lower().endswith(ending):
            name = name[: -len(ending)]
    return str(path.with_name(name)) if name else relative


def by(shape: tuple[int, ...]) -> str:
    """A shape as text."""
    return "×".join(str(n) for n in shape)
