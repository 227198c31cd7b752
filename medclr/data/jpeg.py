"""JPEG (ISO 10918-1) that was cut short, though an end marker follows.

libjpeg, and what is made of it, paints what is missing in the middle grey, and says nothing that reaches Python.
"""

from collections.abc import Callable, Iterator
from struct import unpack_from
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medclr.errors import Unreadable

_NO_FRAME_HEADERS = frozenset({0xC4, 0xC8, 0xCC})  # among the markers C0 to CF
_LOSSLESS = frozenset({0xC3, 0xC7, 0xCB, 0xCF})
_JPEG_LS = 0xF7
_RESTART_INTERVAL, _START_OF_SCAN = 0xDD, 0xDA
_END = b"\xff\xd9"
_FILLER = bytes(range(1, 251))
_CUT = "compressed pixels that stop before their end"


class FrameHeader(NamedTuple):
    """What stands before the first scan of a frame (10918-1 B.2.2, 14495-1 C.2.2)."""

    kind: int  # the marker: C0 is baseline
    precision: int  # bits a sample
    rows: int
    columns: int
    components: int
    interval: int = 0  # of restart markers, in blocks or, where lossless, samples; 0 where there are none


def frame_header(frame: bytes) -> FrameHeader:
    """The frame header of a JPEG or JPEG-LS.

    Raises:
        Unreadable: there is none.
    """
    found, interval = None, 0
    for marker, at in _segments(frame):
        if marker == _RESTART_INTERVAL:
            (interval,) = unpack_from(">H", frame, at + 4)
        elif (0xC0 <= marker <= 0xCF and marker not in _NO_FRAME_HEADERS) or marker == _JPEG_LS:
            found = FrameHeader(marker, *unpack_from(">BHHB", frame, at + 4))
    if found is None:
        raise Unreadable("DECODE", "compressed pixels that do not say how many they are")
    return found._replace(interval=interval)


def check_complete(frame: bytes, decoded: NDArray[Any], decode: Callable[[bytes], NDArray[Any]]) -> None:
    """Raise TRUNCATED for a sequential or lossless JPEG of which pixels are missing.

    Restart markers are counted. And where the last pixel has the middle grey, the frame is decoded again with other
    data before its end marker: if all pixels are there already, these are passed over. So what may stay unnoticed is a
    cut within the very last block, or of a lossless one the last row.

    Args:
        frame: up to its end marker, and padding.
        decoded: what it was decoded to, (rows, columns) or (rows, columns, channels).
        decode: what decodes it.
    """
    header = frame_header(frame)
    if header.interval and header.components == 1:
        side = 1 if header.kind in _LOSSLESS else 8
        n = -(-header.rows // side) * -(-header.columns // side)
        if sum(frame.count(bytes([0xFF, 0xD0 + k])) for k in range(8)) < -(-n // header.interval) - 1:
            raise Unreadable("TRUNCATED", _CUT)
    # Of its sign nothing is known.
    if (np.abs(decoded[-1, -1].astype(np.int64)) == 1 << (header.precision - 1)).all():
        end = frame.rfind(_END) % (len(frame) + 1)  # or all of it, where there is none
        # A cut may leave the first half of an escaped FF, with which the filler would be a marker, and not data.
        if not np.array_equal(decode(frame[:end].rstrip(b"\xff") + _FILLER + frame[end:]), decoded):
            raise Unreadable("TRUNCATED", _CUT)


def _segments(frame: bytes) -> Iterator[tuple[int, int]]:
    """The markers before the first scan, and where each is."""
    at = 2
    while at + 10 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:  # any number of these may stand before a marker
            at += 1
            continue
        if marker == _START_OF_SCAN:
            return
        yield marker, at
        at += 2 + unpack_from(">H", frame, at + 2)[0]
