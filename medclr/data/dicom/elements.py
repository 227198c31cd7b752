"""The few elements that a scan needs, read straight from the first bytes of a file.

pydicom parses every element of a file; a scan of millions needs forty of them. What is here reads the common
encodings (PS3.5 section 7.1) and nothing else: at the first thing that is odd it gives up, and pydicom reads the file
instead. So it can be quick without having to be clever.
"""

from struct import Struct
from typing import NamedTuple

# Group 2 and what `header` and `pixels` look at; values of other elements are never touched.
WANTED = frozenset({
    0x00020002, 0x00020010,
    0x00080005, 0x00080008, 0x00080016, 0x00080018, 0x00080060, 0x00080070, 0x00080080, 0x00081090,
    0x00100010, 0x00100020, 0x00100030, 0x00180050, 0x00180081, 0x00180086, 0x00180087, 0x00180088, 0x00181060,
    0x00181164, 0x00181210, 0x00189087, 0x00189089, 0x0020000D, 0x0020000E, 0x00200012, 0x00200013, 0x00200020,
    0x00200032, 0x00200037, 0x00200052, 0x00200100, 0x00209056, 0x00280002, 0x00280004, 0x00280008, 0x00280010,
    0x00280011, 0x00280030, 0x00280100, 0x00280101, 0x00280102, 0x00280103, 0x00280120, 0x00280121, 0x00280301,
    0x00281052, 0x00281053, 0x00281054, 0x00283000,
})  # fmt: skip

_EXPLICIT = b"1.2.840.10008.1.2.1"
_IMPLICIT = b"1.2.840.10008.1.2"
_ENCAPSULATED = (b"1.2.840.10008.1.2.4.", b"1.2.840.10008.1.2.5")
# Where the value begins, counted from the tag, by VR (PS3.5 section 7.1.2).
_VALUE_AT = dict.fromkeys((
    b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS",
    b"ST", b"TM", b"UI", b"UL", b"US",
), 8) | dict.fromkeys((
    b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV",
), 12)  # fmt: skip
_SHORT = frozenset(vr for vr, at in _VALUE_AT.items() if at == 8)
_FUNCTIONAL_GROUPS = 0x52009229  # shared; those per frame are 7 further on
_FIRST_PIXELS = 0x7FE00008
_UNDEFINED = 0xFFFFFFFF
_ITEM, _END_OF_ITEM, _END_OF_SEQUENCE = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_DEEPEST = 8  # sequences within sequences

_tag_vr_length = Struct("<HH2sH").unpack_from
_tag_length = Struct("<HHI").unpack_from
_length = Struct("<I").unpack_from


class Elements(dict[int, bytes]):
    """Raw values, little endian, of those of WANTED that a file has."""


class Pixels(NamedTuple):
    """Where the pixels of a file lie."""

    tag: int
    start: int
    length: int  # 0xFFFFFFFF where encapsulated


def quick_elements(head: bytes) -> tuple[Elements, Pixels] | None:
    """The wanted elements before the pixels.

    Args:
        head: the first bytes of a file.

    Returns:
        Them, and where the pixels lie; None where pydicom must read the file: no preamble, another byte order,
        functional groups, a Siemens mosaic, pixels that begin beyond `head`, or anything that is not as the standard
        has it.
    """
    if head[128:132] != b"DICM":
        return None
    found = Elements()
    try:
        start = _read(head, 132, True, found, until=0x00030000)
        if start is None:
            return None
        syntax = found.get(0x00020010, b"").strip(b" \0")
        if not (syntax in (_EXPLICIT, _IMPLICIT) or syntax.startswith(_ENCAPSULATED)):
            return None
        explicit = syntax != _IMPLICIT
        at = _read(head, start, explicit, found, until=_FUNCTIONAL_GROUPS)
        if at is None or _tag(head, at) in (_FUNCTIONAL_GROUPS, _FUNCTIONAL_GROUPS + 7):
            return None
        if b"MOSAIC" in found.get(0x00080008, b""):
            return None
        at = _read(head, at, explicit, found, until=_FIRST_PIXELS)  # overlays
        return None if at is None else (found, Pixels(_tag(head, at), *_extent(head, at, explicit)))
    except Exception:  # past the end, no VR, too deep: whatever it is, pydicom will say
        return None


def _read(head: bytes, at: int, explicit: bool, found: Elements, until: int) -> int | None:
    """Collect elements up to the first whose tag is not below `until`; returns where that begins."""
    last = 0
    # Names of this function's own: this loop is where the time goes.
    tag_vr_length, wanted, short = _tag_vr_length, WANTED, _SHORT if explicit else frozenset()
    while True:
        group, element, vr, length = tag_vr_length(head, at)
        tag = group << 16 | element
        if not last < tag < until:
            return at if tag >= until else None
        last = tag
        # `_extent`, in place.
        if vr in short:
            at += 8
        else:
            at += _VALUE_AT[vr] if explicit else 8
            length = _length(head, at - 4)[0]
            if length == _UNDEFINED:
                at = _skipped(head, at, explicit, 0)
                if tag in wanted:
                    found[tag] = b""  # that it is there is all that is asked of a sequence
                continue
        if tag in wanted:
            if at + length > len(head):
                return None
            found[tag] = head[at : at + length]
        at += length


def _tag(head: bytes, at: int) -> int:
    group, element, _ = _tag_length(head, at)
    return int(group << 16 | element)


def _extent(head: bytes, at: int, explicit: bool) -> tuple[int, int]:
    """Where the value of an element begins, and its length; KeyError where the VR is none."""
    if not explicit:
        return at + 8, _length(head, at + 4)[0]
    _, _, vr, short = _tag_vr_length(head, at)
    skip = _VALUE_AT[vr]
    return at + skip, _length(head, at + 8)[0] if skip == 12 else short


def _skipped(head: bytes, at: int, explicit: bool, depth: int) -> int:
    """The end of a sequence of undefined length, whose first item begins at `at` (PS3.5 section 7.5)."""
    if depth > _DEEPEST:
        raise ValueError
    while True:
        group, element, length = _tag_length(head, at)
        tag = group << 16 | element
        at += 8
        if tag == _END_OF_SEQUENCE:
            return at
        if tag != _ITEM:
            raise ValueError
        if length != _UNDEFINED:
            at += length
            continue
        while True:  # the elements of the item
            group, element, _ = _tag_length(head, at)
            if group << 16 | element == _END_OF_ITEM:
                at += 8
                break
            value, length = _extent(head, at, explicit)
            at = _skipped(head, value, explicit, depth + 1) if length == _UNDEFINED else value + length
