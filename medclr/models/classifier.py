"""An encoder with a linear head: one logit for one binary label."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from medclr.models.encoder import Architecture


class Classifier(nn.Module):
    """Images float32 (B, C, *patch) in [0, 1] to logits (B,).

    Args:
        encoder: gives features (B, feature_dim).
        feature_dim: their length.
    """

    def __init__(self, encoder: nn.Module, feature_dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(feature_dim, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        logits: Tensor = self.head(self.encoder(images))
        return logits.squeeze(1)


def save_classifier(folder: Path, classifier: Classifier, architecture: Architecture, details: dict[str, Any]) -> None:
    """Write classifier.safetensors and classifier.json; `details` are plain JSON types without a path.

    The record is written last, under its final name only when whole: a folder without it holds no classifier.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in classifier.state_dict().items()}
    save_file(weights, folder / "classifier.safetensors")
    record = folder / ".classifier.json.part"
    record.write_text(
        json.dumps({"schema_version": 1, "architecture": asdict(architecture), **details}, indent=2) + "\n"
    )
    record.replace(folder / "classifier.json")
