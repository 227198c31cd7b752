"""One candidate -> Volume: planes decoded, brought to their modality's values, stacked and turned."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels.processing import apply_modality_lut
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import UID
from scipy import ndimage

from medclr.data.candidate import Candidate
from medclr.data.dicom.elements import Pixels
from medclr.data.dicom.header import (
    NATIVE,
    PER_FRAME,
    PIXEL_DATA,
    PLANES,
    Header,
    described,
    functional_group,
    integer,
    numbers,
    opened,
    quiet,
    raw_value,
    text,
    transfer_syntax,
)
from medclr.data.dicom.photometry import SHOWN, shown, suv_factor
from medclr.data.dicom.series import is_transposed, placement
from medclr.data.volume import Volume, canonical
from medclr.errors import Unreadable

# Modalities whose values are a quantity, which stays what it is however it is to be displayed.
_QUANTITIES = frozenset({"CT", "PT"})
_AIR_HU = -1024.0
_RLE = "1.2.840.10008.1.2.5"  # whole cells, as where nothing is compressed


def read(root: Path, candidate: Candidate) -> Volume:
    """Decode a candidate: (1, X, Y, Z) in RAS, or (1, X, Y) for a radiograph; CT in HU.

    The affine is that of PS3.3 C.7.6.2.1.1, turned from LPS to RAS. Slices of a tilted gantry are moved within their
    planes, by linear interpolation, until they stand upright; slices at uneven steps are interpolated to even ones.

    Args:
        root: the folder that the candidate's paths are relative to.
        candidate: one that `group` returned.

    Raises:
        Unreadable: a file is damaged, lacks its decoder, or all pixels are the same.
    """
    try:
        return _assembled(root, candidate)
    except MemoryError:
        raise Unreadable("TOO_LARGE", "not enough memory for the volume") from None


def _assembled(root: Path, candidate: Candidate) -> Volume:
    headers: list[Header] = []
    planes: list[NDArray[np.float32]] = []
    scaled: set[tuple[bool, ...]] = set()
    notes = list(candidate.notes)
    for relative in candidate.paths:
        for header, plane, rescale, more in _decoded(root / relative, candidate.frames or None, candidate.modality):
            notes += [note for note in more if note not in notes]
            scaled.add(rescale)
            if planes and plane.shape != planes[0].shape:
                raise Unreadable("DECODE", f"planes of {planes[0].shape} and {plane.shape} pixels in one volume")
            headers.append(header)
            planes.append(plane)
    if len(scaled) > 1:
        raise Unreadable("NONUNIFORM", "a rescale or what SUV needs on some slices, and none on others")
    if min(p.min() for p in planes) == max(p.max() for p in planes):
        raise Unreadable("NOT_FINITE", "a single value everywhere")
    if candidate.modality in PLANES:
        volume = _turned(planes[0], candidate, tuple(notes))
    else:
        placed = placement(headers)
        if placed.shift is not None:
            planes = _moved(planes, placed.shift, placed.shape[:2], candidate.modality)
        if placed.levels is not None:
            planes = _between(planes, placed.levels)
        volume = canonical(np.stack(planes).transpose(2, 1, 0)[None], placed.affine, tuple(notes))
    if volume.array.shape[1:] != candidate.shape:
        raise Unreadable("DECODE", f"pixels of shape {volume.array.shape[1:]}; the headers said {candidate.shape}")
    return volume


def same_pixels(root: Path, ones: list[Header], others: list[Header]) -> bool:
    """Whether planes of one file hold the same values as those of another; False where either cannot be decoded."""
    if len(ones) != len(others):
        return False
    try:
        pairs = zip(*(_planes(root, headers) for headers in (ones, others)), strict=True)
        return all(np.array_equal(one, other) for one, other in pairs)
    except Unreadable:
        return False


def _planes(root: Path, headers: list[Header]) -> list[NDArray[np.float32]]:
    frames = tuple(header.frame for header in headers if header.frame is not None)
    return [plane for _, plane, *_ in _decoded(root / headers[0].path, frames or None, headers[0].modality)]


def _between(planes: list[NDArray[np.float32]], levels: NDArray[np.float64]) -> list[NDArray[np.float32]]:
    """Slices at whole and broken numbers of planes, by linear interpolation."""
    lower = np.minimum(levels.astype(int), len(planes) - 2)
    share = (levels - lower).astype(np.float32)
    return [planes[k] * (1 - w) + planes[k + 1] * w for k, w in zip(lower, share, strict=True)]


def _moved(
    planes: list[NDArray[np.float32]], shift: NDArray[np.float64], size: tuple[int, ...], modality: str
) -> list[NDArray[np.float32]]:
    """Each plane (rows, columns) on a canvas of (columns, rows) `size`, moved by its own share of pixels."""
    outside = _AIR_HU if modality == "CT" else float(min(plane.min() for plane in planes))
    columns, rows = size
    moved = []
    for plane, (right, down) in zip(planes, shift, strict=True):
        moved.append(
            ndimage.affine_transform(
                plane, (1, 1), (-down, -right), output_shape=(rows, columns), order=1, mode="constant", cval=outside
            )
        )
    return moved


def _turned(plane: NDArray[np.float32], candidate: Candidate, notes: tuple[str, ...]) -> Volume:
    """(rows, columns) -> (1, X, Y): X towards the right (or front), Y towards the head."""
    array = plane.T
    for axis, code in enumerate(candidate.orientation):
        if code in "LPI":
            array = np.flip(array, axis)
    if is_transposed(candidate.orientation):
        array = array.T
    return Volume(np.ascontiguousarray(array[None]), np.diag([*candidate.spacing_mm, 1.0, 1.0]), notes)


# -- planes ---------------------------------------------------------------------------------------------------------


def _decoded(
    path: Path, frames: tuple[int, ...] | None, modality: str
) -> list[tuple[Header, NDArray[np.float32], tuple[bool, ...], list[str]]]:
    """Each plane's header, values (rows, columns), whether it had a slope, an intercept and a factor to SUV, and notes.

    `frames` None is the only plane of its file.
    """
    try:
        with quiet(), np.errstate(all="ignore"):
            state = path.stat()
            # Of a file with many volumes, all are read one after the other.
            parse = _parsed_once if frames else _parsed
            ds, headers, all_encodings = parse(path, state.st_mtime_ns, state.st_size)
            if (headers[0].frame is None) != (frames is None) or max(frames or (0,)) >= len(headers):
                raise Unreadable("DECODE", "other frames than when the folder was scanned; scan it again")
            chosen = [headers[frame] for frame in frames or (0,)]
            encodings = [all_encodings[frame] for frame in frames or (0,)]
            planes = []
            for header, encoding, stored in zip(chosen, encodings, _stored(ds, chosen), strict=True):
                if stored.shape != (header.rows, header.columns):
                    raise Unreadable(
                        "DECODE", f"decoded as {stored.shape}; {header.rows}×{header.columns} were announced"
                    )
                values, notes = _values(stored, encoding, ds, modality)
                rescale = tuple(part is not None for part in (encoding.slope, encoding.intercept, encoding.suv))
                planes.append((header, values, rescale, notes))
            return planes
    except Unreadable:
        raise
    except OSError as error:
        raise Unreadable("UNREADABLE", f"cannot be opened: {error.strerror or type(error).__name__}") from None
    except MemoryError:
        raise Unreadable("TOO_LARGE", "not enough memory for the pixels") from None
    except InvalidDicomError:
        raise Unreadable("NOT_DICOM", "pydicom cannot parse it") from None
    except BaseException as error:
        # A decoder written in Rust panics with what is no Exception.
        if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
            raise
        raise Unreadable("DECODE", f"the pixels cannot be decoded ({type(error).__name__})") from None


def _parsed(path: Path, mtime_ns: int, size: int) -> tuple[Dataset, list[Header], list["_Encoding"]]:
    """A file with its pixels undecoded, its planes, and how the values of each are encoded.

    `mtime_ns` and `size` are of no use but to the cache, which must not answer for a file that has changed.
    """
    with opened(path) as file:
        length = file.seek(0, 2)  # of a deflated file, inflated
        file.seek(0)
        ds = pydicom.dcmread(file, force=True)
    value, _ = raw_value(ds, PIXEL_DATA)
    if not value:
        raise Unreadable("TRUNCATED", "the file ends before its pixels do")
    headers = described(ds, Pixels(PIXEL_DATA, length - len(value), len(value)), length, "", burned_in=True)
    if headers[0].fault:
        raise Unreadable(*headers[0].fault)
    if not transfer_syntax(ds):
        ds.file_meta.TransferSyntaxUID = UID(_guessed_syntax(*map(bool, ds.original_encoding)))
    return ds, headers, _encodings(ds, headers)  # before pydicom converts the elements that it needs


_parsed_once = lru_cache(maxsize=1)(_parsed)


def _stored(ds: Dataset, headers: list[Header]) -> Iterator[NDArray[Any]]:
    """Stored values of planes of one file: it is one, or has frames, or is a mosaic of tiles."""
    frames = [header.frame for header in headers if header.frame is not None]
    if PER_FRAME in ds and frames:
        yield from iter_pixels(ds, raw=True, indices=frames)
        return
    (whole,) = iter_pixels(ds, raw=True)
    for header in headers:
        if header.frame is None:
            yield whole
        else:
            down, right = divmod(header.frame, whole.shape[1] // header.columns)
            rows, columns = header.rows, header.columns
            yield whole[down * rows : (down + 1) * rows, right * columns : (right + 1) * columns]


def _guessed_syntax(implicit: bool, little: bool) -> str:
    if implicit:
        return "1.2.840.10008.1.2"
    return "1.2.840.10008.1.2.1" if little else "1.2.840.10008.1.2.2"


class _Encoding(NamedTuple):
    """How stored values become values."""

    bits: int
    allocated: int
    high_bit: int
    signed: bool
    native: bool
    inverted: bool
    slope: float | None
    intercept: float | None
    padding: tuple[int, int] | None
    suv: float | None
    notes: tuple[str, ...]


def _encodings(ds: Dataset, headers: list[Header]) -> list[_Encoding]:
    common = _encoding(ds, ds)
    frames = ds[PER_FRAME].value if PER_FRAME in ds else None
    if not frames:
        return [common] * len(headers)
    rescales = [functional_group(ds, frames[header.frame or 0], 0x00289145) for header in headers]
    return [_encoding(ds, rescale) if len(rescale) else common for rescale in rescales]


def _encoding(ds: Dataset, rescale: Dataset) -> _Encoding:
    slope, intercept = numbers(rescale, 0x00281053), numbers(rescale, 0x00281052)
    if any(text(rescale, tag) and not found for tag, found in ((0x00281053, slope), (0x00281052, intercept))):
        raise Unreadable("DECODE", "a rescale slope or intercept that is no number")
    padding = integer(ds, 0x00280120) if 0x00280120 in ds else None
    limit = integer(ds, 0x00280121) if 0x00280121 in ds else padding
    bits, allocated = integer(ds, 0x00280101), integer(ds, 0x00280100)
    if not 0 < bits <= allocated:
        raise Unreadable("DECODE", f"{bits} bits stored of {allocated} allocated")
    suv, note = suv_factor(ds) if text(ds, 0x00080060) == "PT" else (None, "")
    return _Encoding(
        bits=bits,
        allocated=allocated,
        high_bit=integer(ds, 0x00280102),
        signed=integer(ds, 0x00280103) == 1,
        native=transfer_syntax(ds) in (*NATIVE, _RLE),
        inverted=text(ds, 0x00280004).upper() == "MONOCHROME1",
        slope=slope[0] if slope else None,
        intercept=intercept[0] if intercept else None,
        padding=(padding, limit) if padding is not None and limit is not None else None,
        suv=suv,
        notes=(note,) if note else (),
    )


def _values(
    stored: NDArray[Any], encoding: _Encoding, ds: Dataset, modality: str
) -> tuple[NDArray[np.float32], list[str]]:
    """Stored values -> HU for CT, SUV for PET where that is known, the scanner's units else (PS3.3 C.11.1)."""
    notes = list(encoding.notes)
    stored = _stored_bits(stored, encoding)
    padded = _padding(stored, encoding) if modality == "CT" else None
    if ds.get("ModalityLUTSequence"):
        values = np.asarray(apply_modality_lut(stored, ds), dtype=np.float32)
        # The entries of a table run from 0 to the most that their bits hold (C.11.1.1).
        least, most = 0.0, 2.0 ** ds.ModalityLUTSequence[0].LUTDescriptor[2] - 1
    else:
        if modality == "CT" and encoding.intercept is None:
            notes.append("no rescale intercept: stored values taken as HU")
        if encoding.slope == 0:
            notes.append("rescale slope 0 taken as 1")
        suv = encoding.suv or 1.0
        slope, intercept = (encoding.slope or 1.0) * suv, (encoding.intercept or 0.0) * suv
        values = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
        low = -(2 ** (encoding.bits - 1)) if encoding.signed else 0
        least, most = (slope * end + intercept for end in (low, low + 2**encoding.bits - 1))
    if modality in SHOWN and (display := shown(values, ds)):
        values, (least, most) = display
        notes.append("shown as its window or VOI LUT has it")
    if encoding.inverted and modality not in _QUANTITIES:
        # Least and most value change places, so that bright is dense, as in MONOCHROME2.
        values = np.float32(least + most) - values
    if not np.isfinite(values).all():
        raise Unreadable("NOT_FINITE", "the rescale gives values that are not finite")
    if padded is not None and padded.any():
        padding = values[padded]
        # Air, or beyond any tissue: some scanners declare as padding what is a value of water.
        if padding.max() <= -900 or padding.min() > 3071:
            values[padded] = _AIR_HU
        else:
            notes.append("a pixel padding value within the range of tissue was ignored")
    return values, notes


def _stored_bits(stored: NDArray[Any], encoding: _Encoding) -> NDArray[Any]:
    """Drop what lies in the bits that hold no pixel (old overlays do), and extend the sign.

    What is decompressed has no such bits, but some codecs leave the sign to the reader.
    """
    width = stored.dtype.itemsize * 8
    if encoding.bits >= width or not (encoding.native or encoding.signed):
        return stored
    unsigned = stored.astype(stored.dtype.newbyteorder("=")).view(f"u{stored.dtype.itemsize}")
    shift = encoding.high_bit + 1 - encoding.bits
    if encoding.native and 0 < shift <= width - encoding.bits:
        unsigned = unsigned >> shift
    kept: NDArray[Any] = unsigned & unsigned.dtype.type(2**encoding.bits - 1)
    if not encoding.signed:
        return kept
    sign = unsigned.dtype.type(2 ** (encoding.bits - 1))
    extended: NDArray[Any] = ((kept ^ sign) - sign).view(f"i{stored.dtype.itemsize}")
    return extended


def _padding(stored: NDArray[Any], encoding: _Encoding) -> NDArray[np.bool_] | None:
    """Where the plane holds padding (PS3.3 C.7.5.1.1.2), whatever sign the element was written with."""
    if encoding.padding is None:
        return None
    sign = 2 ** (encoding.bits - 1) if encoding.signed else 0
    low, high = sorted(((value & (2**encoding.bits - 1)) ^ sign) - sign for value in encoding.padding)
    return np.asarray((stored >= low) & (stored <= high))
