"""Checkpoint files that a crash cannot spoil: written beside their target, synced, verified, renamed; no pickle."""

import hashlib
import os
import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
from pytorch_lightning.plugins.io import CheckpointIO

from medclr.data.durable import sync_folder
from medclr.errors import MedclrError

KEPT = 2  # checkpoints of a run
_MAGIC = b"medclr checkpoint 1\n"
_CHUNK = 1 << 20


class SafeCheckpointIO(CheckpointIO):
    """Lightning's checkpoints, each whole or absent: its own writer copies across file systems and can leave half.

    A file is a line that says what it is, the BLAKE2b digest of the rest, and the rest: what `torch.save` gives.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint, and read it back before it gets its name; a full disk leaves the previous one."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_name(f".{target.name}.part")
        try:
            with fresh.open("wb") as file:
                file.write(_MAGIC + bytes(_hasher().digest_size))
                content = _Hashed(file)
                torch.save(checkpoint, content)  # type: ignore[arg-type]  # it asks for no more than write and flush
                file.seek(len(_MAGIC))
                file.write(content.hasher.digest())
                file.flush()
                os.fsync(file.fileno())
                if hasattr(os, "posix_fadvise"):  # else what is read back would be memory, not the disk
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if not intact(fresh):
                fresh.unlink()
                raise MedclrError(
                    f"the checkpoint {target} does not read back as it was written; look at the disk before going on"
                )
            fresh.replace(target)
        except (OSError, RuntimeError) as error:  # torch's zip writer reports a full disk as a RuntimeError
            fresh.unlink(missing_ok=True)
            why = error.strerror if isinstance(error, OSError) else "the disk may be full"
            raise MedclrError(f"cannot write the checkpoint {target}: {why}; free some space and run again") from error
        sync_folder(target.parent)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Read a checkpoint, tensors and plain types alone whatever the caller says."""
        try:
            content = BytesIO(Path(path).read_bytes())
        except OSError as error:
            raise MedclrError(f"cannot read the checkpoint {path}: {error.strerror}") from error
        try:
            if not _fits_digest(content):
                raise ValueError
            content.seek(len(_MAGIC) + _hasher().digest_size)
            state: dict[str, Any] = torch.load(content, map_location=map_location or "cpu", weights_only=True)
        except Exception as error:  # unpickling raises anything on what another program or version wrote
            raise MedclrError(
                f"the checkpoint {path} is damaged or was not written by medclr ({type(error).__name__}); "
                "delete it to train from the start"
            ) from error
        return state

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


def intact(path: Path | str) -> bool:
    """Whether a file is a checkpoint whose content fits the digest kept with it.

    Raises:
        MedclrError: it cannot be read at all, which may be of the file system and pass.
    """
    try:
        with Path(path).open("rb") as file:
            return _fits_digest(file)
    except OSError as error:
        raise MedclrError(f"cannot read the checkpoint {path}: {error.strerror}") from error


def checkpoint_name(epoch: int, step: int) -> str:
    """What the state after `step` steps of an epoch is called; both count from 0."""
    return f"epoch{epoch:04}-step{step:06}.ckpt"


def position(path: Path) -> tuple[int, int]:
    """The epoch of a checkpoint and the steps done of it, by its name."""
    found = re.fullmatch(r"epoch(\d+)-step(\d+)\.ckpt", path.name)
    assert found
    return int(found[1]), int(found[2])


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, the newest first."""
    return sorted((folder / "checkpoints").glob("epoch*-step*.ckpt"), key=position, reverse=True)


def newest_checkpoint(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """What a run goes on from; None where it has to begin.

    A damaged checkpoint is put aside, and the one before it taken, with a warning.

    Args:
        folder: run folder.
        warn: gets the line.

    Raises:
        MedclrError: there are checkpoints, and none is whole.
    """
    found = checkpoints(folder)
    good = next((path for path in found if intact(path)), None)
    if found and good is None:
        raise MedclrError(
            f"{folder / 'checkpoints'}: {' and '.join(path.name for path in found)} damaged, and no other there; "
            "restore one from a copy, or delete them to train from the start"
        )
    for path in found[: found.index(good)] if good else []:
        aside = path.with_name(f"{path.name}.damaged")
        path.replace(aside)
        warn(f"warning: checkpoint {path.name} is damaged (put aside as {aside.name}); taking {good and good.name}")
    return good


def prune(folder: Path) -> None:
    """Leave the newest checkpoints of a run, KEPT of them, and nothing that a killed writer left."""
    for path in [*checkpoints(folder)[KEPT:], *(folder / "checkpoints").glob(".*.part")]:
        path.unlink()


def _fits_digest(file: BinaryIO) -> bool:
    if file.read(len(_MAGIC)) != _MAGIC:
        return False
    hasher = _hasher()
    digest = file.read(hasher.digest_size)
    for chunk in iter(lambda: file.read(_CHUNK), b""):
        hasher.update(chunk)
    return hasher.digest() == digest


class _Hashed:
    """A file to write, and the digest of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.hasher = file, _hasher()

    def write(self, data: bytes) -> int:
        self.hasher.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _hasher() -> "hashlib.blake2b":
    return hashlib.blake2b(digest_size=32)
