"""Prepared volumes on disk: one file a volume, written once and whole, read by the block."""

import hashlib
import json
import mmap
import os
import tempfile
import time
from contextlib import suppress
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from medclr.errors import DataError

_DTYPES = {"I16": "<i2", "F32": "<f4"}  # what prepare writes, by their names in safetensors
_MOST_MAPPED = 256  # entries; each is one open file


class Store:
    """A folder of prepared volumes, safe for several writers and for `kill -9`.

    An entry is a safetensors file: the array, (C, *spatial), and in its header what prepare measured and a checksum
    of both. Its key names content, spec and version, so an entry is never stale; it is written under a temporary
    name in the same folder, synced and renamed, so it is never partial.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, key: str, array: NDArray[np.generic], facts: dict[str, str]) -> None:
        """Add or replace an entry; `facts` are short texts kept in its header."""
        header, voxels = _encoded(array, {**facts, "checksum": _checksum(array, facts)})
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(header)
                file.write(voxels)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def sweep(self, older_than_s: float = 3600.0) -> None:
        """Remove what killed writers left; the younger may be of one that is at work."""
        for partial in self.root.glob("*/.*.part"):
            with suppress(OSError):
                if time.time() - partial.stat().st_mtime > older_than_s:
                    partial.unlink()

    def facts(self, key: str) -> dict[str, str] | None:
        """What prepare noted of a sound entry; None where it is missing, damaged, or has values that are not finite."""
        try:
            with safe_open(self._path(key), framework="numpy") as file:
                facts: dict[str, str] = file.metadata()
                checksum = facts.pop("checksum")
                array = file.get_tensor("volume")
                return facts if checksum == _checksum(array, facts) and _finite(array) else None
        except (OSError, SafetensorError, KeyError, TypeError):
            return None

    def size(self, ending: str) -> int:
        """Bytes that the entries whose keys end so take on the disk."""
        return sum(on_disk(path.stat().st_size) for path in self.root.glob(f"*/*{ending}.safetensors"))

    def read(self, key: str, start: tuple[int, ...], size: tuple[int, ...], fill: float) -> NDArray[Any]:
        """Read a block of a volume without reading the volume.

        Args:
            key: the entry.
            start: first voxel of the block along each spatial axis; may be negative.
            size: voxels along each spatial axis.
            fill: value of voxels that lie outside the volume.

        Returns:
            (C, *size) in the entry's data type: int16 or float32. Where the block lies inside the volume it is a view
            of the mapped file, which is read when it is copied.

        Raises:
            DataError: the entry is not there, or is damaged.
        """
        try:
            path = f"{self.root}/{key[:2]}/{key}.safetensors"  # a Path takes longer to make than to look up
            state = os.stat(path)
            stored = _mapped(path, state.st_ino, state.st_mtime_ns, state.st_size)
            return cut_block(stored, start, size, fill)
        except (OSError, KeyError, ValueError, TypeError):
            raise DataError(
                f"store {self.root}: entry {key[:8]}… is missing or damaged; run `medclr prepare` on the data again"
            ) from None

    def _path(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}.safetensors"


def on_disk(size: int) -> int:
    """Bytes that a file of this size takes, in the blocks of most file systems."""
    return -(-size // 4096) * 4096


@lru_cache(maxsize=_MOST_MAPPED)
def _mapped(path: str, inode: int, mtime_ns: int, size: int) -> NDArray[Any]:
    """The array of an entry, mapped: only what is then touched is read, and what was read before is there.

    All but `path` is for the cache, which must not answer for an entry that was replaced. The format is that of
    safetensors, whose own slicing copies three times: the header's length, the header, the array.
    """
    with open(path, "rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    end = 8 + int.from_bytes(content[:8], "little")
    entry = json.loads(content[8:end])["volume"]
    start, stop = entry["data_offsets"]
    n = prod(entry["shape"])
    found = np.frombuffer(content, _DTYPES[entry["dtype"]], n, end + start).reshape(entry["shape"])
    if end + stop != len(content) or found.nbytes != stop - start:
        raise ValueError
    return found


def cut_block(volume: NDArray[Any], start: tuple[int, ...], size: tuple[int, ...], fill: float) -> NDArray[Any]:
    """A block (C, *size) of a volume (C, *spatial) in its own data type; see `Store.read`."""
    shape = volume.shape
    inside = [slice(max(0, a), max(0, min(n, a + s))) for a, s, n in zip(start, size, shape[1:], strict=True)]
    part = volume[(slice(None), *inside)]
    if part.shape[1:] == size:
        return part
    # Of whole numbers the next below, so that what is filled is never brighter than it should be.
    block = np.full((shape[0], *size), np.floor(fill) if volume.dtype.kind == "i" else fill, volume.dtype)
    if part.size:
        place = [slice(i.start - a, i.stop - a) for a, i in zip(start, inside, strict=True)]
        block[(slice(None), *place)] = part
    return block


def _finite(array: NDArray[np.generic]) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _encoded(array: NDArray[np.generic], metadata: dict[str, str]) -> tuple[bytes, memoryview]:
    """A safetensors file in two parts, its header in one order: safetensors draws another each time."""
    # safetensors takes the bytes as they lie, in whatever order that is.
    payload = memoryview(save({"volume": np.ascontiguousarray(array)}, metadata=metadata))
    end = 8 + int.from_bytes(payload[:8], "little")
    header = json.dumps(json.loads(bytes(payload[8:end])), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return bytes(payload[:8]) + header.encode().ljust(end - 8), payload[end:]


def _checksum(array: NDArray[np.generic], facts: dict[str, str]) -> str:
    header = repr((array.dtype.str, array.shape, sorted(facts.items())))
    digest = hashlib.blake2b(header.encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
