"""Compressed frames of one sample a pixel -> stored values (PS3.5 section 8.2), by whichever decoder is installed."""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from struct import unpack_from
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import as_pixel_options
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from medclr.data.jpeg import check_complete, frame_header
from medclr.errors import Unreadable

_JPEG = frozenset({JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1})
# imagecodecs lets other threads run while it decodes, and knows JPEG of 12 bits; pydicom's plugins do neither.
_IMAGECODECS = {
    **dict.fromkeys(_JPEG, "jpeg8_decode"),
    **dict.fromkeys((JPEGLSLossless, JPEGLSNearLossless), "jpegls_decode"),
    **dict.fromkeys((JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K), "jpeg2k_decode"),
}
_ITEM, _END_OF_SEQUENCE = 0xFFFEE000, 0xFFFEE0DD
_CODESTREAM = b"\xff\x4f\xff\x51"  # of JPEG 2000, which may lie in the boxes of a JP2 file
_BOXES = 4096  # bytes within which it begins


def decoders(syntax: str) -> tuple[str, ...]:
    """The packages that decode a transfer syntax here, the one that is used first; () where there is none."""
    own = ("imagecodecs",) if syntax in _IMAGECODECS and _has("imagecodecs") else ()
    if syntax == JPEGExtended12Bit:  # pydicom's others read 8 bits of it alone
        return own + (("pylibjpeg",) if _has("libjpeg") else ())
    others = get_decoder(UID(syntax)).available_plugins
    # pydicom's own RLE is in Python, and slow.
    return own + tuple(sorted(others, key=lambda name: syntax == RLELossless and name != "pylibjpeg"))


def remedy(syntax: str) -> str:
    """The command that brings a decoder for a transfer syntax."""
    return 'pip install "medclr[codecs]"' if syntax in _IMAGECODECS else 'pip install "pylibjpeg-rle>=2"'


def check_decoder(syntax: str) -> None:
    """Raise DECODE where nothing that is installed decodes a transfer syntax."""
    if not decoders(syntax):
        raise Unreadable("DECODE", f"no decoder for {UID(syntax).name}; {remedy(syntax)}")


def decode(frame: bytes, syntax: str, rows: int, columns: int, allocated: int) -> NDArray[Any] | None:
    """One frame as stored values (rows, columns); None where pydicom must decode it.

    Args:
        frame: of one sample a pixel, as `check_frame` lets it pass.
        syntax: a compressed transfer syntax.
        allocated: bits a stored value has once decompressed, where the syntax itself does not say.

    The values are of whichever sign the codec gives them.
    """
    if syntax == RLELossless and _has("rle"):
        from rle.utils import decode_pixel_data

        cells = decode_pixel_data(frame, version=2, rows=rows, columns=columns, bits_allocated=allocated)
        return np.frombuffer(cells, f"<u{allocated // 8}").reshape(rows, columns)
    codec = _codec(syntax)
    if codec is None:
        return None
    stored = codec(frame)
    if syntax in _JPEG:
        check_complete(frame, stored, codec)
    return stored


def decode_by_pydicom(frame: bytes, ds: Dataset) -> NDArray[Any]:
    """One frame as stored values (rows, columns), by what pydicom finds for the transfer syntax of its file."""
    syntax = ds.file_meta.TransferSyntaxUID
    options = as_pixel_options(ds, number_of_frames=1)

    def decoded(one: bytes) -> NDArray[Any]:
        return get_decoder(syntax).as_array(encapsulate([one]), raw=True, **options)[0]

    stored = decoded(frame)
    if syntax in _JPEG:
        check_complete(frame, stored, decoded)
    return stored


def only_frame(value: bytes) -> bytes:
    """The frame of an encapsulated element: all its fragments but the first, which is the offset table (PS3.5 A.4).

    Args:
        value: the element's, and whatever follows in the file.
    """
    fragments: list[bytes] = []
    at = 0
    while at + 8 <= len(value):
        group, element, length = unpack_from("<HHI", value, at)
        at += 8
        if group << 16 | element == _END_OF_SEQUENCE:
            return fragments[1] if len(fragments) == 2 else b"".join(fragments[1:])
        if group << 16 | element != _ITEM:
            raise Unreadable("DECODE", "the compressed pixels are not in items")
        fragments.append(value[at : at + length])
        at += length
    raise Unreadable("TRUNCATED", "the file ends before its pixels do")


def check_frame(frame: bytes, syntax: str, rows: int, columns: int) -> None:
    """Raise for a JPEG of any kind of another size than announced, or that stops before its end.

    Decoders allocate what the frame announces, and some fill what is missing with grey and say nothing. All kinds end
    with the same marker (ISO 10918-1 B.1.1.3, 14495-1 C.1.1, 15444-1 A.4.4), and then with padding at most.
    """
    if syntax not in _IMAGECODECS:
        return
    if not frame[-64:].rstrip(b"\0\xff").endswith(b"\xff\xd9"):
        raise Unreadable("TRUNCATED", "compressed pixels that stop before their end")
    size = _announced(frame)
    if size != (rows, columns):
        raise Unreadable("DECODE", f"{rows}×{columns} pixels; those compressed are {size[0]}×{size[1]}")


def _announced(frame: bytes) -> tuple[int, int]:
    """Rows and columns, of the SIZ segment (15444-1 A.5.1) or the frame header (10918-1 B.2.2, 14495-1 C.2.2)."""
    at = frame.find(_CODESTREAM, 0, _BOXES)
    if at >= 0 and frame[:2] != b"\xff\xd8":
        right, down, left, up = unpack_from(">4I", frame, at + 8)
        return down - up, right - left
    header = frame_header(frame)
    return header.rows, header.columns


@cache
def _codec(syntax: str) -> Callable[[bytes], NDArray[Any]] | None:
    if syntax not in _IMAGECODECS or not _has("imagecodecs"):
        return None
    import imagecodecs

    found: Callable[[bytes], NDArray[Any]] = getattr(imagecodecs, _IMAGECODECS[UID(syntax)])
    return found


def _has(module: str) -> bool:
    return find_spec(module) is not None
