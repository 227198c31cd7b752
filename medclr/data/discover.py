"""Folder -> candidates: what every file is, told by its content, never following a link out of the folder."""

import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from medclr.data import dicom, image2d, metaimage, nifti
from medclr.data.candidate import Candidate, Skipped
from medclr.data.isolation import dismiss, isolated
from medclr.data.pool import n_cores, worker_pool
from medclr.errors import Unreadable, UsageError

__all__ = ["Candidate", "Skipped", "check_folder", "discover"]

_INLINE = 200  # files below which starting processes takes longer than reading
_CHUNK = 128  # files a process is given at a time
_SECONDS, _MEMORY = 300.0, 8 << 30  # that the comparison of two images may take

# Formats that are images, told by how they start or, where that says nothing, by how they are named.
_OTHER_STARTS = {
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"BM": "BMP",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"CDF\x01": "MINC 1",
    b"CDF\x02": "MINC 1",
    b"\x89HDF": "HDF5 or MINC 2",
    b"TRACK\0": "a tractogram",
    b"mrtrix tracks": "a tractogram",
    b"NRRD000": "NRRD",
    b"MATRIX7": "ECAT",
}
_OTHER_NAMES = {
    ".mnc": "MINC",
    ".par": "Philips PAR/REC",
    ".rec": "Philips PAR/REC",
    ".head": "AFNI",
    ".brik": "AFNI",
    ".brik.gz": "AFNI",
    ".mgz": "FreeSurfer MGH",
    ".mgh": "FreeSurfer MGH",
    ".trk": "a tractogram",
    ".tck": "a tractogram",
    ".gii": "GIFTI",
    ".nrrd": "NRRD",
    ".nhdr": "NRRD",
    ".v": "ECAT",
    ".img": "an .img file without its .hdr",
    ".hdr": "a header that is not NIfTI's",
    ".zip": "an archive: unpack it first",
    ".tar": "an archive: unpack it first",
    ".tar.gz": "an archive: unpack it first",
    ".tgz": "an archive: unpack it first",
    ".7z": "an archive: unpack it first",
}
# What goes with a header of the same name.
_PIXELS = {".hdr": (".img",), ".HDR": (".IMG",), ".mhd": (".raw", ".zraw")}
_DICOM_NAMES = (".dcm", ".dicom", ".ima")


def discover(
    root: Path,
    workers: int | None = None,
    burned_in: bool = False,
    progress: Callable[[int, int], None] | None = None,
    tilt: dicom.Tilt = "correct",
    uneven: dicom.Uneven = "skip",
) -> tuple[list[Candidate], list[Skipped]]:
    """Find every volume below a folder, from headers alone.

    Args:
        root: the folder.
        workers: processes that read headers; None is one per core, 0 or 1 reads in this one.
        burned_in: accept secondary captures and images that say they have burned-in text.
        progress: called with the number of files read and the number of all, now and then.
        tilt: whether volumes of a tilted gantry are to be sheared right or skipped.
        uneven: whether volumes whose slices lie at uneven steps are to be skipped or interpolated.

    Returns:
        Candidates and skipped files, both in the order of their paths. Every regular file is in the paths of a
        candidate (of several, where it holds several volumes) or is exactly one skipped item.

    Raises:
        UsageError: there is no such folder.
    """
    check_folder(root)
    items, skipped = _walk(root)
    candidates: list[Candidate] = []

    def planes() -> Iterator[dicom.Header]:
        n_done = 0
        for results in _read_all(root, items, workers, burned_in):
            for result in results:
                for one in result:
                    if isinstance(one, dicom.Header):
                        yield one
                    elif isinstance(one, Skipped):
                        skipped.append(one)
                    else:
                        candidates.append(one)
            n_done += len(results)
            if progress:
                progress(n_done, len(items))

    try:
        from_dicom, without_volume = dicom.group(planes(), tilt, uneven, partial(_same_pixels, root))
    finally:
        dismiss()
    candidates += from_dicom
    skipped += without_volume
    return sorted(candidates, key=lambda c: (min(c.paths), c.member)), sorted(skipped, key=lambda s: s.item)


def check_folder(root: Path) -> None:
    """Raise UsageError where there is no such folder."""
    if not root.is_dir():
        what = "a file; name the folder that it is in" if root.is_file() else "no such folder"
        raise UsageError(f"--data {root}: {what}")


class _Item(NamedTuple):
    path: str
    companion: str = ""  # the .img of a .hdr, the .raw of a .mhd


_Result = list[dicom.Header] | list[Candidate] | list[Skipped]


def _walk(root: Path) -> tuple[list[_Item], list[Skipped]]:
    """All regular files below the root in the order of their names, and what can't be one."""
    inside = root.resolve()
    items: list[_Item] = []
    skipped: list[Skipped] = []
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
        except OSError as error:
            skipped.append(Skipped(_as_text(folder) or ".", "UNREADABLE", f"a folder: {error.strerror}"))
            continue
        files: list[str] = []
        below: list[str] = []
        for entry in entries:
            relative = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir(follow_symlinks=False):
                below.append(relative)
            elif not _is_text(relative):
                skipped.append(Skipped(_as_text(relative), "UNREADABLE", "a name that is not UTF-8; rename it"))
            elif entry.is_symlink():
                skipped.append(_link(root, inside, relative))
            elif entry.is_file(follow_symlinks=False):
                files.append(relative)
        items += _paired(files)
        folders += reversed(below)
    return items, skipped


def _is_text(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _as_text(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _link(root: Path, inside: Path, relative: str) -> Skipped:
    try:
        target = (root / relative).resolve(strict=True)
    except (OSError, RuntimeError):
        return Skipped(relative, "UNREADABLE", "a link to nothing")
    if target.is_relative_to(inside):
        return Skipped(relative, "DUPLICATE", "a link within the folder; what it points to is read where it lies")
    return Skipped(relative, "UNREADABLE", "a link out of the folder")


def _paired(files: list[str]) -> list[_Item]:
    """A .img goes with its .hdr, either of them zipped or not; a .raw or .zraw with its .mhd."""
    present = set(files)
    companions = {}
    for path in files:
        stem = path.removesuffix(".gz")
        for ending, others in _PIXELS.items():
            names = {f"{stem.removesuffix(ending)}{other}{zipped}" for other in others for zipped in ("", ".gz")}
            if stem.endswith(ending) and (found := names & present):
                companions[path] = min(found)
    taken = set(companions.values())
    return [_Item(path, companions.get(path, "")) for path in files if path not in taken]


def _read_all(root: Path, items: list[_Item], workers: int | None, burned_in: bool) -> Iterator[list[_Result]]:
    chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
    look = partial(_look_at_chunk, root, burned_in)
    n_workers = min(n_cores() if workers is None else workers, len(chunks))
    if n_workers < 2 or len(items) < _INLINE:
        yield from map(look, chunks)
        return
    with worker_pool(n_workers, "reads headers") as pool:
        yield from pool.map(look, chunks)


def _same_pixels(root: Path, ones: list[dicom.Header], others: list[dicom.Header]) -> bool:
    """Decoded in a process apart, since this one must not end with its decoder."""
    try:
        return bool(isolated(dicom.same_pixels, root, ones, others, seconds=_SECONDS, memory=_MEMORY))
    except Unreadable:
        return False


def _look_at_chunk(root: Path, burned_in: bool, items: Iterable[_Item]) -> list[_Result]:
    return [_look_at(root, burned_in, item) for item in items]


def _look_at(root: Path, burned_in: bool, item: _Item) -> _Result:
    try:
        return _classified(root, burned_in, item)
    except Unreadable as error:
        reason, message = error.reason, str(error)
    except OSError as error:
        reason, message = "UNREADABLE", f"cannot be opened: {error.strerror or type(error).__name__}"
    paths = [item.path, item.companion] if item.companion else [item.path]
    return [Skipped(path, reason, message) for path in paths]


def _classified(root: Path, burned_in: bool, item: _Item) -> _Result:
    path = root / item.path
    name = path.name.lower()
    begun = dicom.beginning(path)  # once: on a network disk it is the opening that takes time
    start = begun[0]
    if not start:
        raise Unreadable("NOT_AN_IMAGE", "an empty file")
    if start[128:132] == b"DICM":
        return dicom.headers(path, item.path, burned_in, begun)
    companion = root / item.companion if item.companion else None
    if name.endswith((".mhd", ".mha")) or start.startswith(b"ObjectType"):
        return [metaimage.header(path, item.path, companion, item.companion)]
    if item.companion or nifti.is_header(_inflated(start)) or name.endswith((".nii", ".nii.gz")):
        return nifti.header(path, item.path, companion, item.companion)
    if start.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
        return [image2d.picture(path, item.path)]
    if start.startswith(b"PK\x03\x04") and name.endswith(".npz"):
        return list(image2d.header(path, item.path))
    if start[:2] in (b"\x02\0", b"\x08\0") or name.endswith(_DICOM_NAMES):
        try:
            return dicom.headers(path, item.path, burned_in, begun)
        except Unreadable as error:
            if error.reason != "NOT_DICOM" or name.endswith(_DICOM_NAMES):
                raise
    for magic, kind in _OTHER_STARTS.items():
        if start.startswith(magic):
            raise Unreadable("UNSUPPORTED", kind)
    for ending, kind in _OTHER_NAMES.items():
        if name.endswith(ending):
            raise Unreadable("UNSUPPORTED", kind)
    raise Unreadable("NOT_AN_IMAGE", "neither DICOM, NIfTI, PNG, JPEG nor a MedMNIST archive")


def _inflated(start: bytes) -> bytes:
    """The first bytes of a file, inflated if it is a gzip stream."""
    if not start.startswith(b"\x1f\x8b"):
        return start
    try:
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(start, 540)
    except zlib.error:
        return b""
