"""An encoder with a head that gives a logit for each label or class."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from medclr.errors import MedclrError
from medclr.models.encoder import Architecture


class Classifier(nn.Module):
    """Images float32 (B, C, *patch) in [0, 1] to logits (B, K).

    Args:
        network: gives features (B, feature_dim).
        feature_dim: their length.
        outputs: K.
        dropout: share of the features that training leaves out before the head.
    """

    def __init__(self, network: nn.Module, feature_dim: int, outputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.network = network
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(feature_dim, outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        logits: Tensor = self.head(self.dropout(self.network(images)))
        return logits

    @torch.no_grad()
    def set_head(self, weight: NDArray[np.floating], bias: NDArray[np.floating]) -> None:
        """Take over a head that was fitted elsewhere: weight (F, K) and bias (K,) of the logits."""
        self.head.weight.copy_(torch.from_numpy(weight.T))
        self.head.bias.copy_(torch.from_numpy(bias))


def save_classifier(folder: Path, classifier: Classifier, architecture: Architecture, details: dict[str, Any]) -> None:
    """Write classifier.safetensors and classifier.json; `details` are plain JSON types without a path.

    The record is removed first and written last: a folder without it holds no classifier.

    Raises:
        MedclrError: it cannot be written.
    """
    weights = {name: tensor.contiguous() for name, tensor in classifier.state_dict().items()}
    record = {"schema_version": 1, "architecture": asdict(architecture), **details}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "classifier.json").unlink(missing_ok=True)
        _write(folder / "classifier.safetensors", save(weights))
        _write(folder / "classifier.json", (json.dumps(record, indent=2) + "\n").encode())
    except OSError as error:
        raise MedclrError(
            f"cannot write the classifier {folder}: {error.strerror}; free some space, or use another --out"
        ) from error


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
