"""One candidate -> Volume: planes decoded, brought to their modality's values, stacked and turned."""

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import nibabel as nib
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.errors import InvalidDicomError
from pydicom.pixels.processing import apply_modality_lut
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import UID
from scipy import ndimage

from medclr.data.candidate import Candidate
from medclr.data.dicom.codecs import check_decoder, check_frame, decode, decode_by_pydicom, only_frame
from medclr.data.dicom.elements import Pixels, quick_elements
from medclr.data.dicom.header import (
    HEAD,
    NATIVE,
    PER_FRAME,
    PIXEL_DATA,
    PLANES,
    Header,
    Source,
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
from medclr.data.pool import n_cores
from medclr.data.volume import Volume, canonical
from medclr.errors import Unreadable

# Modalities whose values are a quantity, which stays what it is however it is to be displayed.
_QUANTITIES = frozenset({"CT", "PT"})
_AIR_HU = -1024.0
_RLE = "1.2.840.10008.1.2.5"  # whole cells, as where nothing is compressed
_MODALITY_LUT = 0x00283000
_UNDEFINED = 0xFFFFFFFF


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
    stack = _Stack(len(candidate.frames or candidate.paths), _flips(candidate))
    planes = _decoded_all(root, candidate, stack)
    notes = list(dict.fromkeys((*candidate.notes, *(note for plane in planes for note in plane.notes))))
    if len({plane.rescaled for plane in planes}) > 1:
        raise Unreadable("NONUNIFORM", "a rescale, what SUV needs, or MONOCHROME1 on some slices, and none on others")
    _invert_about_one(stack, planes)
    first = stack.plane(0).flat[0]
    if not any((stack.plane(k) != first).any() for k in range(len(planes))):
        raise Unreadable("NOT_FINITE", "a single value everywhere")
    if candidate.modality in PLANES:
        volume = _turned(stack.plane(0), candidate, tuple(notes))
    else:
        placed = placement([plane.header for plane in planes])
        if placed.shift is None and placed.levels is None:
            volume = stack.volume(placed.affine, tuple(notes))
        else:
            slices = [stack.plane(k) for k in range(len(planes))]
            if placed.shift is not None:
                slices = _moved(slices, placed.shift, placed.shape[:2], candidate.modality)
            if placed.levels is not None:
                slices = _between(slices, placed.levels)
            volume = canonical(np.stack(slices).transpose(2, 1, 0)[None], placed.affine, tuple(notes))
    if volume.array.shape[1:] != candidate.shape:
        raise Unreadable("DECODE", f"pixels of shape {volume.array.shape[1:]}; the headers said {candidate.shape}")
    return volume


def _invert_about_one(stack: "_Stack", planes: list["_Plane"]) -> None:
    """Slices of their own slopes were inverted each within its own range; what is equal must be so in all of them."""
    ranges = {plane.inverted for plane in planes if plane.inverted}
    if len(ranges) < 2:
        return
    middle = min(least for least, _ in ranges) + max(most for _, most in ranges)
    for k, plane in enumerate(planes):
        assert plane.inverted is not None  # as `rescaled` says of all
        stack.plane(k)[...] += np.float32(middle - sum(plane.inverted))


def same_pixels(root: Path, ones: list[Header], others: list[Header]) -> bool:
    """Whether planes of one file hold the same values as those of another; False where either cannot be decoded."""
    if len(ones) != len(others):
        return False
    try:
        with quiet():
            one, other = (_planes(root, headers) for headers in (ones, others))
    except Unreadable:
        return False
    return bool(np.array_equal(one, other))


def _planes(root: Path, headers: list[Header]) -> NDArray[np.float32]:
    frames = tuple(header.frame for header in headers if header.frame is not None)
    stack = _Stack(len(headers), (False, False, False))
    _decoded(root / headers[0].path, frames, headers[0].modality, stack, 0)
    return stack.array


def _flips(candidate: Candidate) -> tuple[bool, bool, bool]:
    """Which of slices, rows and columns run against RAS; none of a radiograph, which is turned as a whole."""
    if candidate.modality in PLANES:
        return False, False, False
    columns, rows, slices = (code in "LPI" for code in candidate.orientation)
    return slices, rows, columns


class _Stack:
    """The planes of one volume, each put at once where it will lie in memory, so that nothing is copied later."""

    def __init__(self, n: int, flips: tuple[bool, bool, bool]) -> None:
        self.n = n
        self.flips = flips
        self.array = np.empty((0, 0, 0), np.float32)

    def place(self, k: int, rows: int, columns: int) -> NDArray[np.float32]:
        """Where the values (rows, columns) of plane k go; the first sizes the stack."""
        if not self.array.size:
            self.array = np.empty((self.n, rows, columns), np.float32)
        if self.array.shape[1:] != (rows, columns):
            raise Unreadable("DECODE", f"planes of {self.array.shape[1:]} and {(rows, columns)} pixels in one volume")
        return self.plane(k)

    def plane(self, k: int) -> NDArray[np.float32]:
        """Plane k as it is in its file."""
        slices, rows, columns = self.flips
        plane: NDArray[np.float32] = self.array[self.n - 1 - k if slices else k]
        return plane[:: -1 if rows else 1, :: -1 if columns else 1]

    def volume(self, affine: NDArray[np.float64], notes: tuple[str, ...]) -> Volume:
        """All as (1, X, Y, Z); `affine` is from (column, row, slice) as in the files."""
        turn = nib.orientations.io_orientation(affine)
        array = self.array.transpose(2, 1, 0)
        for axis, flipped in enumerate(reversed(self.flips)):
            if flipped != (turn[axis, 1] < 0):  # the files are others than when they were scanned
                array = np.flip(array, axis)
        moved = affine @ nib.orientations.inv_ornt_aff(turn, array.shape)
        return Volume(array.transpose(np.argsort(turn[:, 0]))[None], moved, notes)


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


class _Plane(NamedTuple):
    """What is told of one decoded plane."""

    header: Header
    rescaled: tuple[bool, ...]  # whether it had a slope, an intercept and a factor to SUV, and was inverted
    inverted: tuple[float, float] | None  # the range within which it was
    notes: tuple[str, ...]


def _decoded_all(root: Path, candidate: Candidate, stack: _Stack) -> list[_Plane]:
    """Decode the files of a candidate into its stack, by as many threads as there are cores."""

    def some(start: int, stop: int) -> list[_Plane]:
        return [
            plane
            for k in range(start, stop)
            for plane in _decoded(root / candidate.paths[k], candidate.frames, candidate.modality, stack, k)
        ]

    n = len(candidate.paths)
    threads = _n_threads()
    with quiet():  # not in the threads: what it changes is global
        done = some(0, 1)
        step = max(1, -(-(n - 1) // (8 * threads)))
        parts = [(start, min(n, start + step)) for start in range(1, n, step)]
        if threads == 1 or not parts:
            return done + [plane for part in parts for plane in some(*part)]
        with ThreadPoolExecutor(threads) as pool:
            return done + [plane for planes in pool.map(some, *zip(*parts, strict=True)) for plane in planes]


def _n_threads() -> int:
    """Cores; but one in a process that was started to share the work, where the others have theirs."""
    if multiprocessing.parent_process() is not None:
        return 1
    return n_cores()


def _decoded(path: Path, frames: tuple[int, ...], modality: str, stack: _Stack, start: int) -> list[_Plane]:
    """Decode one file into the stack, from plane `start` on. `frames` () is the only plane of its file."""
    try:
        with np.errstate(all="ignore"):
            return _quickly(path, modality, stack, start, frames) or _by_pydicom(path, frames, modality, stack, start)
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


def _quickly(path: Path, modality: str, stack: _Stack, start: int, frames: tuple[int, ...]) -> list[_Plane]:
    """The plane of a file in a common encoding, read from where its pixels lie; [] where pydicom must parse it."""
    if frames or modality in SHOWN or modality == "PT":
        return []
    with path.open("rb", buffering=0) as file:
        head, size = file.read(HEAD), os.fstat(file.fileno()).st_size
        quick = quick_elements(head)
        if quick is None or _MODALITY_LUT in quick[0]:
            return []
        elements, pixels = quick
        syntax = transfer_syntax(elements)
        compressed = syntax not in NATIVE
        if compressed != (pixels.length == _UNDEFINED) or integer(elements, 0x00280100) not in (8, 16, 32):
            return []
        (header,) = _sound(described(elements, pixels, size, "", burned_in=True))
        encoding = _encoding(elements, elements)
        file.seek(pixels.start)
        if compressed:
            frame = only_frame(file.read())
            check_frame(frame, syntax, header.rows, header.columns)
            stored = decode(frame, syntax, header.rows, header.columns, encoding.allocated)
            if stored is None:
                return []
        else:
            stored = np.empty((header.rows, header.columns), f"<{'iu'[not encoding.signed]}{encoding.allocated // 8}")
            if _read_whole(file, memoryview(stored.view(np.uint8).reshape(-1).data)) < stored.nbytes:
                raise Unreadable("TRUNCATED", "the file ends before its pixels do")
    return [_filled(stack, start, header, stored, encoding, elements, modality)]


def _read_whole(file: IO[bytes], into: memoryview) -> int:
    done = 0
    while n := file.readinto(into[done:]):  # type: ignore[attr-defined]
        done += n
    return done


def _by_pydicom(path: Path, frames: tuple[int, ...], modality: str, stack: _Stack, start: int) -> list[_Plane]:
    state = path.stat()
    # Of a file with many volumes, all are read one after the other.
    parse = _parsed_once if frames else _parsed
    ds, headers, all_encodings = parse(path, state.st_mtime_ns, state.st_size)
    if (headers[0].frame is not None) != bool(frames) or max(frames or (0,)) >= len(headers):
        raise Unreadable("DECODE", "other frames than when the folder was scanned; scan it again")
    chosen = [headers[frame] for frame in frames or (0,)]
    encodings = [all_encodings[frame] for frame in frames or (0,)]
    return [
        _filled(stack, start + k, header, stored, encoding, ds, modality)
        for k, (header, encoding, stored) in enumerate(zip(chosen, encodings, _stored(ds, chosen), strict=True))
    ]


def _filled(
    stack: _Stack, k: int, header: Header, stored: NDArray[Any], encoding: "_Encoding", ds: Source, modality: str
) -> _Plane:
    if stored.shape != (header.rows, header.columns):
        raise Unreadable("DECODE", f"decoded as {stored.shape}; {header.rows}×{header.columns} were announced")
    values, inverted, notes = _values(stored, encoding, ds, modality)
    stack.place(k, *stored.shape)[...] = values
    rescaled = tuple(part is not None for part in (encoding.slope, encoding.intercept, encoding.suv))
    return _Plane(header, (*rescaled, inverted is not None), inverted, tuple(notes))


def _sound(headers: list[Header]) -> list[Header]:
    if headers[0].fault:
        raise Unreadable(*headers[0].fault)
    return headers


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
    headers = _sound(described(ds, Pixels(PIXEL_DATA, length - len(value), len(value)), length, "", burned_in=True))
    if not transfer_syntax(ds):
        ds.file_meta.TransferSyntaxUID = UID(_guessed_syntax(*map(bool, ds.original_encoding)))
    return ds, headers, _encodings(ds, headers)  # before pydicom converts the elements that it needs


_parsed_once = lru_cache(maxsize=1)(_parsed)


def _stored(ds: Dataset, headers: list[Header]) -> Iterator[NDArray[Any]]:
    """Stored values of planes of one file: it is one, or has frames, or is a mosaic of tiles."""
    frames = [header.frame for header in headers if header.frame is not None]
    if PER_FRAME in ds and frames:
        yield from _whole_frames(ds, frames, len(ds[PER_FRAME].value))
        return
    (whole,) = _whole_frames(ds, [0], 1)
    for header in headers:
        if header.frame is None:
            yield whole
        else:
            down, right = divmod(header.frame, whole.shape[1] // header.columns)
            rows, columns = header.rows, header.columns
            yield whole[down * rows : (down + 1) * rows, right * columns : (right + 1) * columns]


def _whole_frames(ds: Dataset, indices: list[int], n_frames: int) -> Iterator[NDArray[Any]]:
    syntax = transfer_syntax(ds)
    if syntax in NATIVE:
        yield from iter_pixels(ds, raw=True, indices=indices)
        return
    check_decoder(syntax)
    rows, columns, allocated = (integer(ds, tag) for tag in (0x00280010, 0x00280011, 0x00280100))
    frames = list(generate_frames(raw_value(ds, PIXEL_DATA)[0], number_of_frames=n_frames))
    for index in indices:
        check_frame(frames[index], syntax, rows, columns)
        stored = decode(frames[index], syntax, rows, columns, allocated)
        if stored is None:
            stored = decode_by_pydicom(frames[index], ds)
        yield stored


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


def _encoding(ds: Source, rescale: Source) -> _Encoding:
    slope, intercept = numbers(rescale, 0x00281053), numbers(rescale, 0x00281052)
    if any(text(rescale, tag) and not found for tag, found in ((0x00281053, slope), (0x00281052, intercept))):
        raise Unreadable("DECODE", "a rescale slope or intercept that is no number")
    padding = integer(ds, 0x00280120) if 0x00280120 in ds else None
    limit = integer(ds, 0x00280121) if 0x00280121 in ds else padding
    bits, allocated = integer(ds, 0x00280101), integer(ds, 0x00280100)
    if not 0 < bits <= allocated:
        raise Unreadable("DECODE", f"{bits} bits stored of {allocated} allocated")
    suv, note = suv_factor(ds) if isinstance(ds, Dataset) and text(ds, 0x00080060) == "PT" else (None, "")
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
    stored: NDArray[Any], encoding: _Encoding, ds: Source, modality: str
) -> tuple[NDArray[np.float32], tuple[float, float] | None, list[str]]:
    """Stored values -> HU for CT, SUV for PET where that is known, the scanner's units else (PS3.3 C.11.1).

    Beside them the range within which they were inverted, if they were, and notes.
    """
    notes = list(encoding.notes)
    stored = _stored_bits(stored, encoding)
    padded = _padding(stored, encoding) if modality == "CT" or modality in SHOWN else None
    if isinstance(ds, Dataset) and ds.get("ModalityLUTSequence"):
        values = apply_modality_lut(stored, ds).astype(np.float32)
        # The entries of a table run from 0 to the most that their bits hold (C.11.1.1).
        least, most = 0.0, 2.0 ** ds.ModalityLUTSequence[0].LUTDescriptor[2] - 1
        finite = False
    else:
        if modality == "CT" and encoding.intercept is None:
            notes.append("no rescale intercept: stored values taken as HU")
        if encoding.slope == 0:
            notes.append("rescale slope 0 taken as 1")
        suv = encoding.suv or 1.0
        slope, intercept = (encoding.slope or 1.0) * suv, (encoding.intercept or 0.0) * suv
        values = stored.astype(np.float32)
        if slope != 1:
            values *= np.float32(slope)
        values += np.float32(intercept)
        finite = abs(slope) * 2.0**32 + abs(intercept) < 1e38  # whatever is stored
        low = -(2 ** (encoding.bits - 1)) if encoding.signed else 0
        least, most = (slope * end + intercept for end in (low, low + 2**encoding.bits - 1))
    if modality in SHOWN and isinstance(ds, Dataset) and (display := shown(values, ds)):
        values, (least, most) = display
        finite = False
        notes.append("shown as its window or VOI LUT has it")
    inverted = None
    if encoding.inverted and modality not in _QUANTITIES:
        inverted = least, most
        # Least and most value change places, so that bright is dense, as in MONOCHROME2.
        values = np.float32(least + most) - values
    if not finite and not np.isfinite(values).all():
        raise Unreadable("NOT_FINITE", "the rescale gives values that are not finite")
    if modality in SHOWN and padded is not None and padded.any() and not padded.all():
        values[padded] = values[~padded].min()
    elif padded is not None and padded.any():
        padding = values[padded]
        # Air, or beyond any tissue: some scanners declare as padding what is a value of water.
        if padding.max() <= -900 or padding.min() > 3071:
            values[padded] = _AIR_HU
        else:
            notes.append("a pixel padding value within the range of tissue was ignored")
    return values, inverted, notes


def _stored_bits(stored: NDArray[Any], encoding: _Encoding) -> NDArray[Any]:
    """Drop what lies in the bits that hold no pixel (old overlays do), and extend the sign.

    What is decompressed has no such bits, but some codecs leave the sign to the reader.
    """
    width = stored.dtype.itemsize * 8
    if encoding.bits >= width or not (encoding.native or encoding.signed):
        return stored.view(stored.dtype.str.replace("u", "i")) if encoding.signed else stored
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
