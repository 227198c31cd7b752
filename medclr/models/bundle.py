"""Encoder bundles: a folder with weights and everything needed to use them on new data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from medclr.errors import BundleError
from medclr.models.encoder import Architecture, build_encoder, channels_last
from medclr.models.projector import build_projector, describe_projector, hidden_layers
from medclr.models.sealed import Kind, read_sealed, seal_of, write_sealed

_DETAILS = frozenset(
    {"spec", "axis_order", "method", "hyperparameters", "code_version", "manifest_hash", "holdout", "seen"}
)
ENCODER = Kind("encoder", "encoder bundle", "--encoder", "pretrain", 1, _DETAILS | {"architecture", "projector"})


@dataclass(frozen=True)
class Bundle:
    """An encoder that was loaded, every weight of it.

    Attributes:
        encoder: maps (B, channels, *patch) to (B, architecture.feature_dim); in evaluation mode, on the CPU.
        projector: the projector it was trained with, likewise; empty where its weights are from elsewhere.
        architecture: what both were built from.
        details: plain JSON types; keys spec, axis_order, method, hyperparameters, code_version,
            manifest_hash, holdout, seen.
        digest: of all of it, hexadecimal; `fingerprint` is its beginning.
    """

    encoder: nn.Module
    projector: nn.Sequential
    architecture: Architecture
    details: dict[str, Any]
    digest: str

    def middle(self, layers: int = 1) -> nn.Sequential:
        """The encoder and the projector's first layers, from where SimCLRv2 fine-tunes (Chen et al. 2020b, section 2).

        Args:
            layers: of the projector, each with its norm and ReLU; 0 is the encoder alone.

        Returns:
            maps (B, channels, *patch) to (B, hidden units), or features where `layers` is 0; shares its weights
            with this bundle.

        Raises:
            UsageError: the projector has no such hidden layer.
        """
        return nn.Sequential(self.encoder, *hidden_layers(self.projector, layers))


def save_bundle(
    folder: Path, encoder: nn.Module, projector: nn.Module, architecture: Architecture, details: dict[str, Any]
) -> None:
    """Write a bundle, whole or not at all; an older one in the same folder is replaced.

    Args:
        folder: of the bundle; its parent exists.
        encoder: from `build_encoder(architecture)`.
        projector: from `build_projector`, or empty.
        architecture: of the encoder.
        details: as in Bundle, all keys of it; JSON types and tuples, NaN for unknown, and never a path.

    Raises:
        MedclrError: it cannot be written.
    """
    described = describe_projector(projector) if list(projector.children()) else None
    record = {"architecture": architecture.to_dict(), "projector": described, **details}
    write_sealed(ENCODER, folder, _Pair(encoder, projector), record)


def load_bundle(path: Path) -> Bundle:
    """Read a bundle, and accept nothing less than all of its weights.

    Args:
        path: the bundle, or a pretrain run that holds it as encoder/.

    Raises:
        BundleError: it is missing, damaged, from another version, or its weights do not fit its architecture.
    """
    pair, record = read_sealed(ENCODER, path, _build)
    architecture = Architecture.of(record.pop("architecture"))
    digest = record.pop("digest")
    del record["projector"]
    # Making room anew drops the layout where there is a single input channel.
    channels_last(pair.encoder, architecture.spatial_dims)
    assert isinstance(pair.projector, nn.Sequential)
    return Bundle(pair.encoder, pair.projector, architecture, record, digest)


def fingerprint(path: Path) -> str:
    """The record of a bundle, and with it its weights, as 16 hex digits; raises BundleError where there is none."""
    return seal_of(ENCODER, path)


def check_dims(bundle: Bundle, spatial_dims: int) -> None:
    """Raise BundleError unless the encoder takes volumes of that many spatial dimensions, whole or cut into slices."""
    own = 3 if bundle.details["spec"].get("slices") else bundle.architecture.spatial_dims
    if own != spatial_dims:
        raise BundleError(
            f"the encoder bundle is {own}D, these volumes are {spatial_dims}D; "
            f"give --encoder a {spatial_dims}D one, or pretrain on this data"
        )


class _Pair(nn.Module):
    """Both networks under the names that their weights have in the file."""

    def __init__(self, encoder: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.encoder, self.projector = encoder, projector


def _build(record: dict[str, Any]) -> _Pair:
    architecture = Architecture.of(record["architecture"])
    described = record["projector"]
    projector = nn.Sequential() if described is None else build_projector(architecture.feature_dim, **described)
    return _Pair(build_encoder(architecture), projector)
