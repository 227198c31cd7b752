"""The planes that one DICOM file holds, told without decoding them.

Values are taken from pydicom's raw elements: that is several times faster than converting them, and warns of nothing,
so no tag value reaches a log.
"""

import logging
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from hashlib import blake2b
from io import BufferedReader, BytesIO
from math import ceil, hypot, sqrt
from operator import mul
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np
import pydicom
from pydicom.charset import convert_encodings, decode_bytes
from pydicom.config import IGNORE
from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.uid import UID

from medclr.data.dicom.elements import Elements, Pixels, quick_elements
from medclr.errors import Unreadable

# Modalities of which every file is an image of its own; where files have positions all the same, they are ignored.
PLANES = frozenset({"CR", "DX", "MG", "RG", "IO", "PX", "XA", "RF", "US"})

MAX_VOXELS = 2**29  # 2 GiB as float32
NATIVE = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", ""})
PIXEL_DATA = 0x7FE00010
PER_FRAME, SHARED = 0x52009230, 0x52009229

Source = Dataset | Elements

HEAD = 65536  # bytes of a file that are read at first
_MOST_KNOWN = 4096  # texts that are remembered
_META = 1024  # bytes within which the transfer syntax stands
_MAX_INFLATED, _MAX_INFLATION = 2**29, 200  # bytes, and times the deflated size
_STEP = 2**20  # bytes inflated at a time
_MOST_DISORDER = 64  # elements out of their order in one file
_LONGEST_VALUE = 2**26  # bytes of an element before the pixels
_MOST_READS, _READS_AN_ITEM = 2_000_000, 4  # of pydicom; ten thousand frames take about as many
_ITEM_TAGS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
_TOO_MANY = "a header of more items than that of any image"
_MOST_TILES = 4096  # of a mosaic
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_DEFLATED_SYNTAX = b"\x02\0\x10\0UI\x16\0" + _DEFLATED
_HU = frozenset({"", "HU", "HU_MOD", "US"})  # rescale types (PS3.3 C.11.1.1.2); US is unspecified
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_NO_PICTURES = {
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.481.2": "a radiotherapy dose",
}
_LONG_VRS = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"})
_PIXEL_TAGS = frozenset({0x7FE00008, 0x7FE00009, PIXEL_DATA})
_COLOURS = ("RGB", "PALETTE", "YBR", "HSV", "ARGB", "CMYK")


class Traits(NamedTuple):
    """What tells images of one place in one series apart, from the plainest to the least."""

    image_type: str
    stack: str
    echo: str
    diffusion: tuple[float, ...]  # b-value, gradient direction
    phase: str  # temporal position, trigger time
    acquisition: str


class Header(NamedTuple):
    """What grouping needs to know of one plane; small, since there may be millions."""

    path: str
    frame: int | None  # of a multi-frame image or tile of a mosaic; None where the file is one plane
    sop: str
    instance: int
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
    space: str  # FrameOfReferenceUID
    traits: Traits
    fault: tuple[str, str] | None  # reason and message, of an image that can't be used
    notes: tuple[str, ...]
    person: str = ""  # where `patient` is blank, digests of name and birth date


def beginning(path: Path) -> tuple[bytes, int]:
    """The first bytes of a file, which nearly always reach to the pixels, and the size of all of it."""
    descriptor = os.open(path, os.O_RDONLY)  # a file object takes longer to make than this does to read
    try:
        return os.read(descriptor, HEAD), os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def headers(path: Path, relative: str, burned_in: bool = False, begun: tuple[bytes, int] | None = None) -> list[Header]:
    """Read one DICOM file up to its pixels: one header a plane.

    Args:
        path: the file, with or without the preamble of PS3.10.
        relative: its path below the root.
        burned_in: accept secondary captures and images that say they have burned-in text.
        begun: its `beginning`, where that was read already.

    Raises:
        Unreadable: it is not DICOM, holds no image, or one of a kind that never becomes a volume.
    """
    try:
        head, size = begun or beginning(path)
        quick = quick_elements(head)
        if quick:
            return described(*quick, size, relative, burned_in)
        with opened(path) as file, quiet():
            return _headers(file, relative, burned_in)
    except Unreadable:
        raise
    except OSError as error:
        raise Unreadable("UNREADABLE", f"cannot be opened: {error.strerror or type(error).__name__}") from None
    except Exception as error:
        raise Unreadable("NOT_DICOM", f"pydicom cannot parse it ({type(error).__name__})") from None


def opened(path: Path) -> IO[bytes]:
    """The file; one of the deflated transfer syntax (PS3.5 A.5) inflated in memory, as explicit little endian.

    Raises:
        Unreadable: it inflates to more than any image does, or cannot be inflated.
        OSError: it cannot be opened.
    """
    file = path.open("rb")
    try:
        head = file.read(_META)
        at = head.find(_DEFLATED_SYNTAX)
        if head[128:132] != b"DICM" or at < 0:
            file.seek(0)
            return file
        with file:
            file.seek(0)
            start = 144 + int.from_bytes(head[140:144], "little")  # group length (0002,0000) is the first element
            meta, rest = file.read(start), file.read()
    except BaseException:
        file.close()
        raise
    most = min(_MAX_INFLATED, _MAX_INFLATION * len(rest))
    whole = BytesIO()
    whole.write(meta.replace(_DEFLATED, _DEFLATED[:-3] + b"\0\0\0"))
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        while rest and not stream.eof:
            whole.write(stream.decompress(rest, _STEP))
            rest = stream.unconsumed_tail
            if whole.tell() > most + len(meta):
                raise Unreadable("TOO_LARGE", f"a deflated file that inflates to more than {most:,} bytes")
    except zlib.error:
        raise Unreadable("TRUNCATED", "a deflated file that cannot be inflated") from None
    whole.seek(0)
    return whole


def described(ds: Source, pixels: Pixels | None, size: int, relative: str, burned_in: bool) -> list[Header]:
    """The planes of a parsed file of `size` bytes; raises Unreadable as `headers` does."""
    sop_class = text(ds, 0x00080016) or _meta(ds, 0x00020002)
    if not sop_class and 0x00080060 not in ds and 0x00280010 not in ds:
        raise Unreadable("NOT_DICOM", "no SOP class, modality or rows")
    rows, columns = integer(ds, 0x00280010), integer(ds, 0x00280011)
    if not (rows and columns):
        kind = UID(sop_class, IGNORE).name  # the standard's, or the UID itself
        if "Image" not in kind:
            kind = "a DICOM object" if kind == sop_class else kind.removesuffix(" Storage")
            raise Unreadable("NOT_AN_IMAGE", f"{kind}, without rows and columns")
    if sop_class in _NO_PICTURES:
        raise Unreadable("NOT_AN_IMAGE", _NO_PICTURES[sop_class])
    _refuse(ds, sop_class, burned_in)
    unwanted = _unwanted(ds, burned_in)
    if unwanted and not text(ds, 0x00200032):
        raise Unreadable(*unwanted)  # without a position it is no slice, and leaves no hole
    fault = unwanted or _fault(ds, pixels, size, rows, columns)
    plane = _plane(ds, relative, rows, columns, fault)
    if isinstance(ds, Dataset) and PER_FRAME in ds and plane.modality not in PLANES:
        return _frames(ds, plane)
    if integer_string(ds, 0x00280008) > 1:
        raise Unreadable("UNSUPPORTED", f"{integer_string(ds, 0x00280008)} frames that do not say where each lies")
    if isinstance(ds, Dataset) and "MOSAIC" in plane.traits.image_type.split("\\"):
        return _tiles(ds, plane)
    return [plane]


def _headers(file: IO[bytes], relative: str, burned_in: bool) -> list[Header]:
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(HEAD)
    try:
        ds, pixels = _until_pixels(BytesIO(head))
    except Exception:
        if size <= len(head):
            raise
        pixels = None
    if pixels is None and size > len(head):
        file.seek(0)
        metered = _Metered(file)  # type: ignore[arg-type]
        try:
            ds, pixels = _until_pixels(metered)
        finally:
            metered.check()
    return described(ds, pixels, size, relative, burned_in)


class _Metered(BufferedReader):
    """A file that ends where it has been read as often as no sound header asks for.

    pydicom takes some 50 µs an item, and an item need be no longer than 8 bytes.
    """

    left = _MOST_READS

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size)
        self.left -= _READS_AN_ITEM if content[:4] in _ITEM_TAGS else 1
        return content if self.left >= 0 else b""

    def check(self) -> None:
        """Raise Unreadable where it ended too early."""
        if self.left < 0:
            raise Unreadable("TOO_LARGE", _TOO_MANY)


def _until_pixels(file: Any) -> tuple[Dataset, Pixels | None]:
    met: list[tuple[int, str | None, int]] = []
    last, disorder = 0, 0

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        nonlocal last, disorder
        disorder += tag <= last
        if disorder > _MOST_DISORDER:  # a tail of zeros would be read eight bytes at a time
            raise ValueError("tags that do not ascend")
        last = tag
        if tag not in _PIXEL_TAGS:
            return False
        met.append((tag, vr, length))
        return True

    # Longer values are passed over unread: none of those that matter here is.
    ds = read_partial(file, at_pixels, defer_size=_LONGEST_VALUE, force=True)
    if not met:
        return ds, None
    tag, vr, length = met[-1]
    return ds, Pixels(tag, file.tell() + (12 if vr in _LONG_VRS else 8), length)


def _plane(ds: Source, relative: str, rows: int, columns: int, fault: tuple[str, str] | None) -> Header:
    """The file as one plane."""
    study = text(ds, 0x0020000D)
    # Without a series UID, what lies in one folder is taken for a series.
    series = text(ds, 0x0020000E) or f"{study}/{PurePosixPath(relative).parent}"
    strength = numbers(ds, 0x00180087)
    spacing = numbers(ds, 0x00280030)
    notes: tuple[str, ...] = ()
    modality = text(ds, 0x00080060).upper()
    if modality in PLANES and len(spacing) != 2:
        spacing = numbers(ds, 0x00181164)
        if len(spacing) == 2:
            notes = ("spacing is that at the detector",)
    patient = _encoded_text(ds, 0x00100020)
    return Header(
        path=relative,
        frame=None,
        sop=text(ds, 0x00080018),
        instance=integer_string(ds, 0x00200013, absent=-1),
        patient=patient,
        study=study,
        series=series,
        site=_encoded_text(ds, 0x00080080),
        modality=modality,
        manufacturer=text(ds, 0x00080070),
        model=text(ds, 0x00081090),
        kernel=text(ds, 0x00181210).replace("\\", "/"),
        field_strength=_tesla(strength[0]) if strength else float("nan"),
        rows=rows,
        columns=columns,
        spacing=_sound_spacing(spacing),
        orientation=_cosines(text(ds, 0x00200037)),
        position=numbers(ds, 0x00200032),
        directions=tuple(part.strip() for part in text(ds, 0x00200020).split("\\")),
        space=text(ds, 0x00200052),
        traits=_known(
            Traits(
                image_type=text(ds, 0x00080008).upper(),
                stack=text(ds, 0x00209056),
                echo=f"{text(ds, 0x00180081)} {text(ds, 0x00180086)}",
                diffusion=(*_doubles(ds, 0x00189087), *_doubles(ds, 0x00189089)),
                phase=f"{text(ds, 0x00200100)} {text(ds, 0x00181060)}",
                acquisition=text(ds, 0x00200012),
            )
        ),
        fault=fault,
        notes=notes,
        person="" if patient else _person(ds),
    )


def _person(ds: Source) -> str:
    name = " ".join(_encoded_text(ds, 0x00100010).replace("^", " ").casefold().split())
    return f"{_digest(name)} {_digest(text(ds, 0x00100030))}"


def _digest(written: str) -> str:
    return blake2b(written.encode(), digest_size=8).hexdigest() if written else ""


def _frames(ds: Dataset, whole: Header) -> list[Header]:
    """The planes of an enhanced multi-frame image (PS3.3 C.7.6.16), each from its functional groups."""
    if 0x00209161 in ds and integer(ds, 0x00209163) != 1:
        raise Unreadable("UNSUPPORTED", "a part of a concatenation; join its parts first")
    for tag in (SHARED, PER_FRAME):  # parsed as soon as they are looked at
        if sum(raw_value(ds, tag)[0].count(one) for one in _ITEM_TAGS) > _MOST_READS // _READS_AN_ITEM:
            raise Unreadable("TOO_LARGE", _TOO_MANY)
    items = list(ds[PER_FRAME].value)
    announced = max(1, integer_string(ds, 0x00280008))
    if len(items) != announced:
        raise Unreadable("DECODE", f"{announced} frames announced, {len(items)} described")
    found: list[Header] = []
    for frame, item in enumerate(items):
        measures, position, orientation, content, echo, diffusion, trigger, kernel = (
            functional_group(ds, item, tag)
            for tag in (0x00289110, 0x00209113, 0x00209116, 0x00209111, 0x00189114, 0x00189117, 0x00189118, 0x00189314)
        )
        types = [functional_group(ds, item, tag) for tag in (0x00189226, 0x00189329, 0x00189751)]
        gradient = diffusion.get(0x00189076)
        spacing = numbers(measures, 0x00280030)
        found.append(
            whole._replace(
                # One frame a file is a series like any other, told by its files.
                frame=frame if announced > 1 else None,
                instance=frame if announced > 1 else whole.instance,
                kernel=text(kernel, 0x00181210).replace("\\", "/") or whole.kernel,
                spacing=_sound_spacing(spacing),
                orientation=_cosines(text(orientation, 0x00200037)),
                position=numbers(position, 0x00200032),
                traits=Traits(
                    image_type="".join(text(one, 0x00089007).upper() for one in types) or whole.traits.image_type,
                    stack=text(content, 0x00209056),
                    echo=str(_doubles(echo, 0x00189082)),
                    diffusion=(
                        *_doubles(diffusion, 0x00189087),
                        *(_doubles(gradient.value[0], 0x00189089) if gradient and gradient.value else ()),
                    ),
                    phase=f"{integer(content, 0x00209128)} {_doubles(trigger, 0x00209153)}",
                    acquisition=str(integer(content, 0x00209156)),
                ),
            )
        )
    return found


def _sound_spacing(values: tuple[float, ...]) -> tuple[float, ...]:
    """Two distances between a micron and a metre, or ()."""
    return values if len(values) == 2 and min(values) >= 1e-3 and max(values) <= 1e3 else ()


@lru_cache(maxsize=_MOST_KNOWN)
def _cosines(written: str) -> tuple[float, ...]:
    return _square(_parsed(written)) if written else ()


def _square(values: tuple[float, ...]) -> tuple[float, ...]:
    """Direction cosines, which are written rounded, at right angles and of length one; () where they are far off."""
    if len(values) != 6:
        return ()
    row: tuple[float, ...] = values[:3]
    column: tuple[float, ...] = values[3:]
    lengths = hypot(*row), hypot(*column)
    if max(abs(length - 1) for length in lengths) > 0.01 or abs(sum(map(mul, row, column))) > 0.01:
        return ()
    # In plain Python: NumPy takes longer over six numbers than all else over a header.
    row = tuple(x / lengths[0] for x in row)
    along = sum(map(mul, row, column))
    column = tuple(y - along * x for x, y in zip(row, column, strict=True))
    length = hypot(*column)
    return (*row, *(y / length for y in column))


def functional_group(ds: Dataset, frame: Dataset, tag: int) -> Dataset:
    """A macro of one frame, or the one that all frames share; empty where there is neither."""
    shared = ds[SHARED].value if SHARED in ds else []
    for item in (frame, *shared[:1]):
        if tag in item and item[tag].value:
            found: Dataset = item[tag].value[0]
            return found
    return Dataset()


def _tiles(ds: Dataset, whole: Header) -> list[Header]:
    """The planes of a Siemens mosaic: square tiles, row by row, along the normal of Siemens' private header.

    The position of the mosaic is that of its own corner, as if the tiles were one large slice about the same centre.
    """
    from nibabel.nicom import csareader  # here, where warnings are off: it warns on import

    try:
        private = csareader.get_csa_header(ds) or {}
        n, normal = csareader.get_n_mosaic(private), csareader.get_slice_normal(private)
    except Exception:  # anything may stand in a private element
        n, normal = None, None
    gap, notes = numbers(ds, 0x00180088), whole.notes
    if not gap:
        gap, notes = numbers(ds, 0x00180050), (*notes, "no spacing between slices: their thickness was taken for it")
    if not n or normal is None or not gap or not (whole.spacing and len(whole.orientation) == len(whole.position) * 2):
        raise Unreadable(
            "NO_GEOMETRY", "a mosaic without the private header that says how many slices it has, and where"
        )
    if whole.fault:
        raise Unreadable(*whole.fault)
    if not 0 < n <= _MOST_TILES:
        raise Unreadable("DECODE", f"a mosaic of {n} tiles")
    side = ceil(sqrt(n))
    if whole.rows % side or whole.columns % side:
        raise Unreadable("DECODE", f"a mosaic of {whole.rows}×{whole.columns} pixels cannot hold {side}×{side} tiles")
    rows, columns = whole.rows // side, whole.columns // side
    along_row, along_column = np.array(whole.orientation[:3]), np.array(whole.orientation[3:])
    corner = (
        np.array(whole.position)
        + along_row * whole.spacing[1] * (whole.columns - columns) / 2
        + along_column * whole.spacing[0] * (whole.rows - rows) / 2
    )
    # The cross product is the sharper of the two, the private normal knows which way.
    cross = np.cross(along_row, along_column)
    step = cross * np.sign(cross @ np.asarray(normal)) * abs(gap[0])
    return [
        whole._replace(
            frame=k,
            instance=k,
            rows=rows,
            columns=columns,
            position=tuple((corner + k * step).tolist()),
            notes=notes,
        )
        for k in range(n)
    ]


def _refuse(ds: Source, sop_class: str, burned_in: bool) -> None:
    """Raise for an image that is no part of a volume; the rest of its series does not need it."""
    samples, photometric = integer(ds, 0x00280002), text(ds, 0x00280004).upper()
    if samples > 1 or photometric.startswith(_COLOURS):
        raise Unreadable("COLOUR", f"{max(samples, 1)} samples a pixel" if samples > 1 else "a colour palette")
    if sop_class.startswith(_SECONDARY_CAPTURE) and not burned_in:
        raise Unreadable("BURNED_IN", "a secondary capture, which may show a name; --burned-in keeps it")


def _unwanted(ds: Source, burned_in: bool) -> tuple[str, str] | None:
    """Why an image that could be read is not to be."""
    if text(ds, 0x00080060).upper() == "CT" and text(ds, 0x00281054).upper() not in _HU:
        return "UNSUPPORTED", "CT whose values are not Hounsfield units"
    if text(ds, 0x00280301).upper() == "YES" and not burned_in:
        return "BURNED_IN", "says it has burned-in annotation; --burned-in keeps it"
    return None


def _fault(ds: Source, pixels: Pixels | None, size: int, rows: int, columns: int) -> tuple[str, str] | None:
    """What is wrong with an image that belongs to its series: without it, the others have a hole."""
    if pixels is None:
        return "TRUNCATED", "the file ends before its pixels begin"
    if pixels.tag != PIXEL_DATA:
        return "UNSUPPORTED", "floating-point pixels"
    if not rows or not columns:
        return "DECODE", "no rows or columns"
    if rows * columns > MAX_VOXELS:
        return "TOO_LARGE", f"{rows}×{columns} pixels"
    if pixels.length == 0xFFFFFFFF:
        return None
    left = size - pixels.start
    if pixels.length > left + 1:  # all the same whether the image would be whole; who reads that much, allocates it
        return "TRUNCATED", f"{max(left, 0)} of {pixels.length} bytes of pixels"
    if transfer_syntax(ds) not in NATIVE:
        return None
    n_pixels = rows * columns * max(1, integer(ds, 0x00280002)) * max(1, integer_string(ds, 0x00280008))
    needed = (n_pixels * integer(ds, 0x00280100) + 7) // 8
    if min(left, pixels.length) < needed:
        return "TRUNCATED", f"{min(left, pixels.length)} of {needed} bytes of pixels"
    return None


def raw_value(ds: Source, tag: int) -> tuple[bytes, str]:
    """The bytes of an element and the byte order to read them with; empty where there is none."""
    if isinstance(ds, Elements):
        return ds.get(tag, b""), "<"
    element = ds.get_item(tag, keep_deferred=True)
    value = getattr(element, "value", None)
    if not isinstance(value, bytes):
        return b"", "<"
    return value, "<" if getattr(element, "is_little_endian", True) else ">"


def text(ds: Source, tag: int) -> str:
    """A text without its padding; "" where there is none."""
    value = ds.get(tag, b"") if type(ds) is Elements else raw_value(ds, tag)[0]
    return _decoded(value) if value else ""


# A series repeats most of its texts and numbers: it is quicker to know them again, and they are kept once.
@lru_cache(maxsize=_MOST_KNOWN)
def _decoded(value: bytes) -> str:
    return value.decode("latin-1").strip(" \0\t\r\n")


def _encoded_text(ds: Source, tag: int) -> str:
    """Text of a person's making, which may be in any of DICOM's character sets."""
    value = raw_value(ds, tag)[0].strip(b" \0")
    if not value:
        return ""
    if value.isascii() and b"\x1b" not in value:
        return value.decode("ascii")
    try:
        with quiet():
            encodings = convert_encodings(text(ds, 0x00080005).split("\\"))
            return decode_bytes(value, encodings, set()).strip()
    except Exception:  # a made-up character set; any stable text will do for an identifier
        return value.decode("latin-1")


def integer(ds: Source, tag: int) -> int:
    if type(ds) is Elements:
        value, order = ds.get(tag, b""), "<"
        if len(value) == 2:
            return value[0] | value[1] << 8
    else:
        value, order = raw_value(ds, tag)
        if not value and isinstance(known := getattr(ds.get(tag), "value", None), int):
            return known  # pydicom converts the pixels' sign as soon as it looks into a sequence
    if len(value) < 2:
        return 0
    return int(struct.unpack(order + "L", value)[0] if len(value) == 4 else struct.unpack(order + "H", value[:2])[0])


def _doubles(ds: Source, tag: int) -> tuple[float, ...]:
    value, order = raw_value(ds, tag)
    return struct.unpack(f"{order}{len(value) // 8}d", value) if value and len(value) % 8 == 0 else ()


def integer_string(ds: Source, tag: int, absent: int = 0) -> int:
    """An integer written as text (VR IS)."""
    values = numbers(ds, tag)
    return int(values[0]) if values else absent


def numbers(ds: Source, tag: int) -> tuple[float, ...]:
    """Decimal strings as finite numbers; () where there is none or one of them is no number."""
    written = text(ds, tag)
    return _parsed(written) if written else ()


@lru_cache(maxsize=_MOST_KNOWN)
def _parsed(written: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in written.split("\\"))
    except ValueError:
        return ()
    return values if all(abs(value) < 1e9 for value in values) else ()


@lru_cache(maxsize=_MOST_KNOWN)
def _known(traits: Traits) -> Traits:
    """The first that was equal: a series has few, and so they are kept once."""
    return traits


def _tesla(strength: float) -> float:
    return strength / 10_000 if strength > 100 else strength  # some write gauss


def _meta(ds: Source, tag: int) -> str:
    if isinstance(ds, Elements):
        return text(ds, tag)
    element = getattr(ds, "file_meta", {}).get(tag)
    return str(element.value or "").strip(" \0") if element else ""


def transfer_syntax(ds: Source) -> str:
    return _meta(ds, 0x00020010)


@contextmanager
def quiet() -> Iterator[None]:
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
