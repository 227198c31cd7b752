"""Checkpoints that a crash cannot spoil: written beside their target, synced, renamed; read without pickle's powers."""

import os
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO

from medclr.errors import MedclrError


class SafeCheckpointIO(CheckpointIO):
    """Lightning's checkpoints, each whole or absent: its own writer copies across file systems and can leave half."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; a full disk leaves the previous one as it was."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_name(f".{target.name}.part")
        try:
            with fresh.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(target)
        except (OSError, RuntimeError) as error:  # torch's zip writer reports a full disk as a RuntimeError
            fresh.unlink(missing_ok=True)
            why = error.strerror if isinstance(error, OSError) else "the disk may be full"
            raise MedclrError(f"cannot write the checkpoint {target}: {why}; free some space and run again") from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Read a checkpoint, tensors and plain types alone whatever the caller says."""
        try:
            state: dict[str, Any] = torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except Exception as error:  # unpickling raises anything on a file that is not whole
            raise MedclrError(
                f"the checkpoint {path} is damaged or was not written by medclr ({type(error).__name__}); "
                "delete it to train from the start"
            ) from error
        return state

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)
