"""One DICOM series -> Volume, by geometry; a radiograph is a volume of one plane.

`headers` reads one file without its pixels, `group` makes candidates of all of them, `read` makes one candidate a
volume. Values are taken from pydicom's raw elements: that is several times faster than converting them, and warns of
nothing, so no tag value reaches a log.
"""

import logging
import struct
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import nibabel as nib
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.charset import convert_encodings, decode_bytes
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_partial
from pydicom.pixels.processing import apply_modality_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID

from medclr.data.candidate import Candidate, Skipped
from medclr.data.volume import Volume, canonical
from medclr.errors import Unreadable

# Modalities of which every file is an image of its own; where files have positions all the same, they are ignored.
PLANES = frozenset({"CR", "DX", "MG", "RG", "IO", "PX", "XA", "RF", "US"})
# Modalities whose values are a quantity, which stays what it is however it is to be displayed.
_QUANTITIES = frozenset({"CT", "PT"})

MIN_SLICES = 3
MAX_TILT_DEG = 0.5
_HEAD = 65536  # bytes that nearly always reach to the pixels
_MAX_VOXELS = 2**29  # 2 GiB as float32
_AIR_HU = -1024.0

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_NATIVE = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", ""})
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_LONG_VRS = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"})
_PIXEL_DATA = 0x7FE00010
_PIXEL_TAGS = frozenset({0x7FE00008, 0x7FE00009, _PIXEL_DATA})
_COLOURS = ("RGB", "PALETTE", "YBR", "HSV", "ARGB", "CMYK")


class Header(NamedTuple):
    """What grouping needs to know of one file; small, since there may be millions."""

    path: str
    patient: str
    study: str
    series: str
    site: str
    modality: str
    manufacturer: str
    model: str
    kernel: str
    field_strength: float
    rows: int
    columns: int
    spacing: tuple[float, ...]  # between rows, between columns; () where unknown
    orientation: tuple[float, ...]  # six direction cosines, or ()
    position: tuple[float, ...]  # in LPS millimetres, or ()
    directions: tuple[str, ...]  # PatientOrientation
    fault: tuple[str, str] | None  # reason and message, of an image that can't be used
    notes: tuple[str, ...]


def headers(path: Path, relative: str, burned_in: bool = False) -> Header:
    """Read one DICOM file up to its pixels.

    Args:
        path: the file, with or without the preamble of PS3.10.
        relative: its path below the root.
        burned_in: accept secondary captures and images that say they have burned-in text.

    Raises:
        Unreadable: it is not DICOM, holds no image, or one of a kind that never becomes a volume.
    """
    try:
        with path.open("rb") as file, _quiet():
            return _header(file, relative, burned_in)
    except Unreadable:
        raise
    except OSError as error:
        raise Unreadable("UNREADABLE", f"cannot be opened: {error.strerror or type(error).__name__}") from None
    except Exception as error:
        raise Unreadable("NOT_DICOM", f"pydicom cannot parse it ({type(error).__name__})") from None


def group(found: Iterable[Header]) -> tuple[list[Candidate], list[Skipped]]:
    """Make volumes of files: by patient, study and series, in the order of their positions.

    A series of slices becomes one volume or none: a volume with a hole, or of two acquisitions mixed, is worse.
    Each radiograph is a volume of its own.
    """
    series: dict[tuple[str, str, str], list[Header]] = defaultdict(list)
    for header in found:
        series[header.patient, header.study, header.series].append(header)
    candidates: list[Candidate] = []
    skipped: list[Skipped] = []
    for members in series.values():
        slices: list[Header] = []
        for header in members:
            if header.modality not in PLANES:
                slices.append(header)
            elif header.fault:
                skipped.append(Skipped(header.path, *header.fault))
            else:
                candidates.append(_plane_candidate(header))
        if not slices:
            continue
        try:
            candidates.append(_slices_candidate(slices))
        except Unreadable as error:
            skipped += [Skipped(h.path, *(h.fault or (error.reason, str(error)))) for h in slices]
    return candidates, skipped


def read(root: Path, candidate: Candidate) -> Volume:
    """Decode a candidate: (1, X, Y, Z) in RAS, or (1, X, Y) for a radiograph; CT in HU.

    The affine is that of PS3.3 C.7.6.2.1.1, turned from LPS to RAS.

    Args:
        root: the folder that the candidate's paths are relative to.
        candidate: one that `group` returned.

    Raises:
        Unreadable: a file is damaged, lacks its decoder, or all pixels are the same.
    """
    notes = list(candidate.notes)
    planes: list[NDArray[np.float32]] = []
    first = last = None
    for relative in candidate.paths:
        last, plane, more = _decode(root / relative, candidate.modality)
        first = first or last
        notes += [note for note in more if note not in notes]
        if planes and plane.shape != planes[0].shape:
            raise Unreadable("DECODE", f"planes of {planes[0].shape} and {plane.shape} pixels in one series")
        planes.append(plane)
    assert first is not None
    assert last is not None
    if min(p.min() for p in planes) == max(p.max() for p in planes):
        raise Unreadable("NOT_FINITE", "a single value everywhere")
    if candidate.modality in PLANES:
        volume = _turned(planes[0], candidate, tuple(notes))
    else:
        affine = _affine(first, last, len(planes))
        volume = canonical(np.stack(planes).transpose(2, 1, 0)[None], affine, tuple(notes))
    if volume.array.shape[1:] != candidate.shape:
        raise Unreadable("DECODE", f"pixels of shape {volume.array.shape[1:]}; the headers said {candidate.shape}")
    return volume


# -- one header --------------------------------------------------------------------------------------------------


def _header(file: IO[bytes], relative: str, burned_in: bool) -> Header:
    head = file.read(_HEAD)
    if _DEFLATED in head[:1024]:
        raise Unreadable("UNSUPPORTED", "a deflated transfer syntax")
    size = file.seek(0, 2)
    try:
        ds, pixels = _until_pixels(BytesIO(head))
    except Exception:
        if size <= len(head):
            raise
        pixels = None
    if pixels is None and size > len(head):
        file.seek(0)
        ds, pixels = _until_pixels(file)
    return _described(ds, pixels, size, relative, burned_in)


class _Pixels(NamedTuple):
    tag: int
    start: int
    length: int  # 0xFFFFFFFF where encapsulated


def _until_pixels(file: Any) -> tuple[Dataset, _Pixels | None]:
    met: list[tuple[int, str | None, int]] = []

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        if tag not in _PIXEL_TAGS:
            return False
        met.append((tag, vr, length))
        return True

    ds = read_partial(file, at_pixels, force=True)
    if not met:
        return ds, None
    tag, vr, length = met[-1]
    return ds, _Pixels(tag, file.tell() + (12 if vr in _LONG_VRS else 8), length)


def _described(ds: Dataset, pixels: _Pixels | None, size: int, relative: str, burned_in: bool) -> Header:
    sop_class = _text(ds, 0x00080016) or _meta(ds, "MediaStorageSOPClassUID")
    if not sop_class and 0x00080060 not in ds and 0x00280010 not in ds:
        raise Unreadable("NOT_DICOM", "no SOP class, modality or rows")
    rows, columns = _integer(ds, 0x00280010), _integer(ds, 0x00280011)
    is_image = bool(rows and columns) or "Image" in UID(sop_class).name
    if not is_image:
        raise Unreadable("NOT_AN_IMAGE", "a DICOM object without rows and columns")
    fault = _fault(ds, pixels, size, rows, columns)
    _refuse(ds, sop_class, burned_in)
    study = _text(ds, 0x0020000D)
    # Without a series UID, what lies in one folder is taken for a series.
    series = _text(ds, 0x0020000E) or f"{study}/{PurePosixPath(relative).parent}"
    strength = _numbers(ds, 0x00180087)
    spacing = _numbers(ds, 0x00280030)
    notes: tuple[str, ...] = ()
    modality = _text(ds, 0x00080060).upper()
    if modality in PLANES and len(spacing) != 2:
        spacing = _numbers(ds, 0x00181164)
        if len(spacing) == 2:
            notes = ("spacing is that at the detector",)
    return Header(
        path=relative,
        patient=_encoded_text(ds, 0x00100020),
        study=study,
        series=series,
        site=_encoded_text(ds, 0x00080080),
        modality=modality,
        manufacturer=_text(ds, 0x00080070),
        model=_text(ds, 0x00081090),
        kernel=_text(ds, 0x00181210).replace("\\", "/"),
        field_strength=_tesla(strength[0]) if strength else float("nan"),
        rows=rows,
        columns=columns,
        spacing=spacing if len(spacing) == 2 and min(spacing) > 0 else (),
        orientation=_numbers(ds, 0x00200037),
        position=_numbers(ds, 0x00200032),
        directions=tuple(part.strip() for part in _text(ds, 0x00200020).split("\\")),
        fault=fault,
        notes=notes,
    )


def _refuse(ds: Dataset, sop_class: str, burned_in: bool) -> None:
    """Raise for an image that is no part of a volume; the rest of its series does not need it."""
    frames = _numbers(ds, 0x00280008)
    if frames and frames[0] > 1:
        raise Unreadable("UNSUPPORTED", f"a multi-frame image ({frames[0]:.0f} frames)")
    if "MOSAIC" in _text(ds, 0x00080008).upper().split("\\"):
        raise Unreadable("UNSUPPORTED", "a Siemens mosaic: many slices tiled in one image")
    samples, photometric = _integer(ds, 0x00280002), _text(ds, 0x00280004).upper()
    if samples > 1 or photometric.startswith(_COLOURS):
        raise Unreadable("COLOUR", f"{max(samples, 1)} samples a pixel" if samples > 1 else "a colour palette")
    if burned_in:
        return
    if sop_class.startswith(_SECONDARY_CAPTURE):
        raise Unreadable("BURNED_IN", "a secondary capture, which may show a name; --burned-in keeps it")
    if _text(ds, 0x00280301).upper() == "YES":
        raise Unreadable("BURNED_IN", "says it has burned-in annotation; --burned-in keeps it")


def _fault(ds: Dataset, pixels: _Pixels | None, size: int, rows: int, columns: int) -> tuple[str, str] | None:
    """What is wrong with an image that belongs to its series: without it, the others have a hole."""
    if pixels is None:
        return "TRUNCATED", "the file ends before its pixels begin"
    if pixels.tag != _PIXEL_DATA:
        return "UNSUPPORTED", "floating-point pixels"
    if not rows or not columns:
        return "DECODE", "no rows or columns"
    if rows * columns > _MAX_VOXELS:
        return "TOO_LARGE", f"{rows}×{columns} pixels"
    if pixels.length == 0xFFFFFFFF or _transfer_syntax(ds) not in _NATIVE:
        return None
    frames = _numbers(ds, 0x00280008)
    n_pixels = rows * columns * max(1, _integer(ds, 0x00280002)) * (int(frames[0]) if frames else 1)
    needed = (n_pixels * _integer(ds, 0x00280100) + 7) // 8
    present = min(size - pixels.start, pixels.length)
    if present < needed:
        return "TRUNCATED", f"{max(present, 0)} of {needed} bytes of pixels"
    return None


def _raw(ds: Dataset, tag: int) -> tuple[bytes, str]:
    """The bytes of an element and the byte order to read them with; empty where there is none."""
    element = ds.get_item(tag, keep_deferred=True)
    value = getattr(element, "value", None)
    if not isinstance(value, bytes):
        return b"", "<"
    return value, "<" if getattr(element, "is_little_endian", True) else ">"


def _text(ds: Dataset, tag: int) -> str:
    return _raw(ds, tag)[0].decode("latin-1").strip(" \0\t\r\n")


def _encoded_text(ds: Dataset, tag: int) -> str:
    """Text of a person's making, which may be in any of DICOM's character sets."""
    value = _raw(ds, tag)[0].strip(b" \0")
    if value.isascii() and b"\x1b" not in value:
        return value.decode("ascii")
    try:
        encodings = convert_encodings(_text(ds, 0x00080005).split("\\"))
        return decode_bytes(value, encodings, set()).strip()
    except Exception:  # a made-up character set; any stable text will do for an identifier
        return value.decode("latin-1")


def _integer(ds: Dataset, tag: int) -> int:
    value, order = _raw(ds, tag)
    if len(value) < 2:
        return 0
    return int(struct.unpack(order + "L", value)[0] if len(value) == 4 else struct.unpack(order + "H", value[:2])[0])


def _numbers(ds: Dataset, tag: int) -> tuple[float, ...]:
    """Decimal strings as finite numbers; () where there is none or one of them is no number."""
    text = _text(ds, tag)
    if not text:
        return ()
    try:
        numbers = tuple(float(part) for part in text.split("\\"))
    except ValueError:
        return ()
    return numbers if all(abs(number) < 1e9 for number in numbers) else ()


def _tesla(strength: float) -> float:
    return strength / 10_000 if strength > 100 else strength  # some write gauss


def _meta(ds: Dataset, keyword: str) -> str:
    return str(getattr(ds, "file_meta", {}).get(keyword) or "").strip(" \0")


def _transfer_syntax(ds: Dataset) -> str:
    return _meta(ds, "TransferSyntaxUID")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep pydicom from telling what it finds odd: its messages quote tag values."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "pylibjpeg", "openjpeg", "rle")]
    before = [logger.disabled for logger in loggers]
    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.disabled = True
            yield
        finally:
            for logger, disabled in zip(loggers, before, strict=True):
                logger.disabled = disabled


# -- from headers to candidates ------------------------------------------------------------------------------------


def _plane_candidate(header: Header) -> Candidate:
    codes, notes = _plane_directions(header.directions)
    transposed = _is_transposed(codes)
    between_rows, between_columns = header.spacing or (float("nan"), float("nan"))
    shape = (header.columns, header.rows)
    spacing = (between_columns, between_rows)
    if not header.spacing:
        notes += ("spacing unknown",)
    return _candidate(
        header,
        (header.path,),
        shape[::-1] if transposed else shape,
        spacing[::-1] if transposed else spacing,
        codes,
        header.notes + notes,
    )


def _slices_candidate(slices: list[Header]) -> Candidate:
    """One volume of a series, or the reason why not."""
    for header in slices:
        if header.fault:
            reason, message = header.fault
            raise Unreadable(reason, f"another of the {len(slices)} slices of this series is unusable: {message}")
    _same(slices)
    first = slices[0]
    n = len(slices)
    if n < MIN_SLICES:
        raise Unreadable("NONUNIFORM", f"{n} slice{'s' * (n > 1)}; a volume needs at least {MIN_SLICES}")
    if n * first.rows * first.columns > _MAX_VOXELS:
        raise Unreadable("TOO_LARGE", f"{n} slices of {first.rows}×{first.columns} pixels")
    normal = np.cross(first.orientation[:3], first.orientation[3:])
    positions = np.array([header.position for header in slices])
    order = np.argsort(positions @ normal, kind="stable")
    _check_positions(positions[order], normal)
    ordered = [slices[i] for i in order]
    affine = _affine(ordered[0], ordered[-1], n)
    turn = nib.orientations.io_orientation(affine)
    axes = np.argsort(turn[:, 0])
    shape = (first.columns, first.rows, n)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return _candidate(
        first,
        tuple(header.path for header in ordered),
        tuple(shape[i] for i in axes),
        tuple(float(spacing[i]) for i in axes),
        "".join(nib.orientations.ornt2axcodes(turn)),
        first.notes,
    )


def _candidate(
    header: Header,
    paths: tuple[str, ...],
    shape: tuple[int, ...],
    spacing: tuple[float, ...],
    orientation: str,
    notes: tuple[str, ...],
) -> Candidate:
    return Candidate(
        reader="dicom",
        paths=paths,
        member=0,
        patient_id=header.patient or header.study or header.series,
        patient_known=bool(header.patient),
        study_uid=header.study or header.series,
        series_uid=header.series,
        site=header.site,
        modality=header.modality,
        manufacturer=header.manufacturer,
        model=header.model,
        kernel=header.kernel,
        field_strength=header.field_strength,
        shape=shape,
        spacing_mm=spacing,
        orientation=orientation,
        notes=notes,
    )


def _same(slices: list[Header]) -> None:
    """Raise unless all slices have the geometry that one volume needs."""
    without = sum(not (h.spacing and len(h.orientation) == 6 and len(h.position) == 3) for h in slices)
    if without:
        raise Unreadable("NO_GEOMETRY", f"{without} of {len(slices)} slices without position, orientation or spacing")
    sizes = {(h.rows, h.columns) for h in slices}
    if len(sizes) > 1:
        raise Unreadable("NONUNIFORM", f"slices of {len(sizes)} sizes in one series")
    orientations = np.array([h.orientation for h in slices])
    rows, columns = orientations[:, :3], orientations[:, 3:]
    lengths = np.linalg.norm(orientations.reshape(-1, 3), axis=1)
    if abs(lengths - 1).max() > 0.01 or abs((rows * columns).sum(axis=1)).max() > 0.01:
        raise Unreadable("NO_GEOMETRY", "direction cosines that are not at right angles or not of length one")
    if np.ptp(orientations, axis=0).max() > 1e-3:
        raise Unreadable("NONUNIFORM", "slices of different orientation in one series")
    spacings = np.array([h.spacing for h in slices])
    if (np.ptp(spacings, axis=0) > 1e-3 * spacings.min(axis=0)).any():
        raise Unreadable("NONUNIFORM", "slices of different pixel spacing in one series")


def _check_positions(positions: NDArray[np.float64], normal: NDArray[np.float64]) -> None:
    """Raise unless the positions, sorted along the normal, are one line of equal steps at right angles to the slices.

    A slice may be off its place by 1% of the step, or by the 0.05 mm that come of positions written with one decimal
    (where that is less than a tenth of the step).
    """
    n = len(positions)
    along = positions @ normal
    gaps = np.diff(along)
    n_places = 1 + int((gaps > 1e-3).sum())
    if n_places < n:
        raise Unreadable("DUPLICATE", f"{n} slices at {n_places} positions: several images of one place in one series")
    line = (positions[-1] - positions[0]) / (n - 1)
    step = float(line @ normal)
    tolerance = max(0.01 * step, min(0.05, 0.1 * step))
    if abs(along - along[0] - step * np.arange(n)).max() > tolerance:
        raise Unreadable("NONUNIFORM", f"slice gap {gaps.min():.3g}–{gaps.max():.3g} mm; slices are missing or uneven")
    sideways = positions - positions[0] - np.outer(np.arange(n), line)
    if np.linalg.norm(sideways, axis=1).max() > max(tolerance, 0.05):
        raise Unreadable("NONUNIFORM", "the slices' corners are not on one line")
    tilt = float(np.degrees(np.arctan2(np.linalg.norm(line - step * normal), step)))
    if tilt > MAX_TILT_DEG:
        raise Unreadable("GANTRY_TILT", f"slices sheared by {tilt:.1f} degrees against their normal")


def _affine(first: Header, last: Header, n_slices: int) -> NDArray[np.float64]:
    """From (column, row, slice) to RAS; `first` and `last` along the normal."""
    affine = np.eye(4)
    affine[:3, 0] = np.array(first.orientation[:3]) * first.spacing[1]
    affine[:3, 1] = np.array(first.orientation[3:]) * first.spacing[0]
    affine[:3, 2] = (np.array(last.position) - np.array(first.position)) / (n_slices - 1)
    affine[:3, 3] = first.position
    lps_to_ras: NDArray[np.float64] = np.diag([-1.0, -1.0, 1.0, 1.0])
    return lps_to_ras @ affine


def _plane_directions(directions: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Where the columns' and the rows' numbers grow towards, of L R A P S I, from PatientOrientation (C.7.6.1.1.1)."""
    letters = "".join({"H": "S", "F": "I"}.get(part[:1].upper(), part[:1].upper()) for part in directions)
    axes = [next((axis for axis in ("LR", "AP", "SI") if letter in axis), "") for letter in letters]
    if len(axes) == 2 and all(axes) and axes[0] != axes[1]:
        return letters, ()
    return "LI", ("patient orientation absent or odd: columns taken as running to the left, rows to the feet",)


def _is_transposed(codes: str) -> bool:
    return codes[0] in "SI"


def _turned(plane: NDArray[np.float32], candidate: Candidate, notes: tuple[str, ...]) -> Volume:
    """(rows, columns) -> (1, X, Y): X towards the right (or front), Y towards the head."""
    array = plane.T
    for axis, code in enumerate(candidate.orientation):
        if code in "LPI":
            array = np.flip(array, axis)
    if _is_transposed(candidate.orientation):
        array = array.T
    return Volume(np.ascontiguousarray(array[None]), np.diag([*candidate.spacing_mm, 1.0, 1.0]), notes)


# -- pixels --------------------------------------------------------------------------------------------------------


def _decode(path: Path, modality: str) -> tuple[Header, NDArray[np.float32], list[str]]:
    """One plane (rows, columns) in its modality's values, with its header."""
    try:
        size = path.stat().st_size
        with _quiet(), np.errstate(all="ignore"):
            with path.open("rb") as file:
                ds = pydicom.dcmread(file, force=True)
            value, _ = _raw(ds, _PIXEL_DATA)
            if not value:
                raise Unreadable("TRUNCATED", "the file ends before its pixels do")
            header = _described(ds, _Pixels(_PIXEL_DATA, size - len(value), len(value)), size, "", burned_in=True)
            if header.fault:
                raise Unreadable(*header.fault)
            if not _transfer_syntax(ds):
                ds.file_meta.TransferSyntaxUID = UID(_guessed_syntax(*map(bool, ds.original_encoding)))
            encoding = _encoding(ds)  # before pydicom converts the elements that it needs
            stored = pixel_array(ds, raw=True)
            if stored.shape != (header.rows, header.columns):
                raise Unreadable("DECODE", f"decoded as {stored.shape}; {header.rows}×{header.columns} were announced")
            values, notes = _values(stored, encoding, ds, modality)
            return header, values, notes
    except Unreadable:
        raise
    except OSError as error:
        raise Unreadable("UNREADABLE", f"cannot be opened: {error.strerror or type(error).__name__}") from None
    except MemoryError:
        raise Unreadable("TOO_LARGE", "not enough memory for the pixels") from None
    except InvalidDicomError:
        raise Unreadable("NOT_DICOM", "pydicom cannot parse it") from None
    except Exception as error:
        raise Unreadable("DECODE", f"the pixels cannot be decoded ({type(error).__name__})") from None


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
    slope: float
    intercept: float | None
    padding: tuple[int, int] | None


def _encoding(ds: Dataset) -> _Encoding:
    slope, intercept = _numbers(ds, 0x00281053), _numbers(ds, 0x00281052)
    padding = _integer(ds, 0x00280120) if 0x00280120 in ds else None
    limit = _integer(ds, 0x00280121) if 0x00280121 in ds else padding
    bits, allocated = _integer(ds, 0x00280101), _integer(ds, 0x00280100)
    if not 0 < bits <= allocated:
        raise Unreadable("DECODE", f"{bits} bits stored of {allocated} allocated")
    return _Encoding(
        bits=bits,
        allocated=allocated,
        high_bit=_integer(ds, 0x00280102),
        signed=_integer(ds, 0x00280103) == 1,
        native=_transfer_syntax(ds) in _NATIVE,
        inverted=_text(ds, 0x00280004).upper() == "MONOCHROME1",
        slope=slope[0] if slope else 1.0,
        intercept=intercept[0] if intercept else None,
        padding=(padding, limit) if padding is not None and limit is not None else None,
    )


def _values(
    stored: NDArray[Any], encoding: _Encoding, ds: Dataset, modality: str
) -> tuple[NDArray[np.float32], list[str]]:
    """Stored values -> HU for CT, the scanner's units else (PS3.3 C.11.1)."""
    notes: list[str] = []
    stored = _stored_bits(stored, encoding)
    padded = _padding(stored, encoding) if modality == "CT" else None
    # Least and most value change places, so that bright is dense, as in MONOCHROME2.
    inverted = encoding.inverted and modality not in _QUANTITIES
    if ds.get("ModalityLUTSequence"):
        values = np.asarray(apply_modality_lut(stored, ds), dtype=np.float32)
        if inverted:
            # The table reads what was stored; its entries run from 0 to the most that their bits hold (C.11.1.1).
            values = np.float32(2 ** ds.ModalityLUTSequence[0].LUTDescriptor[2] - 1) - values
    else:
        if inverted:
            stored = (-1 if encoding.signed else 2**encoding.bits - 1) - stored.astype(np.int64)
        if modality == "CT" and encoding.intercept is None:
            notes.append("no rescale intercept: stored values taken as HU")
        if not encoding.slope:
            notes.append("rescale slope 0 taken as 1")
        values = stored.astype(np.float32) * np.float32(encoding.slope or 1.0) + np.float32(encoding.intercept or 0.0)
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
