"""Encoder bundles: a folder with weights and everything needed to use them on new data; no pickle anywhere."""

import hashlib
import json
import math
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from medclr.data.durable import sync_folder
from medclr.errors import BundleError, MedclrError, UsageError
from medclr.models.encoder import Architecture, build_encoder, channels_last
from medclr.models.projector import build_projector

SCHEMA_VERSION = 1
_WEIGHTS, _RECORD = "encoder.safetensors", "encoder.json"
_DETAILS = frozenset(
    {"spec", "axis_order", "method", "hyperparameters", "code_version", "manifest_hash", "holdout", "seen"}
)
_OWN = frozenset({"schema_version", "sha256", "architecture", "projector", "digest"})
_COPY_AGAIN = "copy the bundle again, or run pretrain again"


@dataclass(frozen=True)
class Bundle:
    """An encoder that was loaded, every weight of it.

    Attributes:
        encoder: maps (B, channels, *patch) to (B, architecture.feature_dim); in evaluation mode, on the CPU.
        projector: the projector it was trained with, likewise.
        architecture: what both were built from.
        details: plain JSON types; keys spec, axis_order, method, hyperparameters, code_version,
            manifest_hash, holdout, seen.
    """

    encoder: nn.Module
    projector: nn.Sequential
    architecture: Architecture
    details: dict[str, Any]

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
        linear = [i for i, layer in enumerate(self.projector) if isinstance(layer, nn.Linear)]
        if not 0 <= layers < len(linear):
            raise UsageError(f"layer {layers} of the projector: choose 0 to {len(linear) - 1}, the last hidden one")
        return nn.Sequential(self.encoder, *list(self.projector)[: linear[layers]])


def save_bundle(
    folder: Path, encoder: nn.Module, projector: nn.Module, architecture: Architecture, details: dict[str, Any]
) -> None:
    """Write a bundle, whole or not at all; an older one in the same folder is replaced.

    Args:
        folder: of the bundle; its parent exists.
        encoder: from `build_encoder(architecture)`.
        projector: from `build_projector`.
        architecture: of the encoder.
        details: as in Bundle, all keys of it; JSON types and tuples, NaN for unknown, and never a path.

    Raises:
        MedclrError: it cannot be written.
    """
    if missing := _DETAILS - details.keys():
        raise KeyError(*sorted(missing))
    weights = save(_state(encoder, projector))
    record = {
        "schema_version": SCHEMA_VERSION,
        "sha256": hashlib.sha256(weights).hexdigest(),
        "architecture": asdict(architecture),
        "projector": _describe(projector),
        **details,
    }
    record = _plain(record)
    text = json.dumps(record | {"digest": _digest(record)}, indent=2, allow_nan=False) + "\n"
    fresh, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        _write(fresh / _WEIGHTS, weights)
        _write(fresh / _RECORD, text.encode())
        sync_folder(fresh)
        # A folder cannot be renamed over a full one. Killed between the two renames, the old bundle is still there,
        # and the run that was writing has its checkpoint.
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        fresh.rename(folder)
        sync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise MedclrError(
            f"cannot write the encoder bundle {folder}: {error.strerror}; free some space, or use another --out"
        ) from error


def load_bundle(path: Path) -> Bundle:
    """Read a bundle, and accept nothing less than all of its weights.

    Args:
        path: the bundle, or a pretrain run that holds it as encoder/.

    Raises:
        BundleError: it is missing, damaged, from another version, or its weights do not fit its architecture.
    """
    folder = _find(path)
    record = _read_record(folder)
    tensors = _read_weights(folder, record["sha256"])
    # On the meta device nothing is allocated until the shapes are known to be those of the file.
    with torch.device("meta"):
        architecture, encoder, projector = _build(folder, record)
    _compare(folder, _state(encoder, projector), tensors)
    for name, module in (("encoder", encoder), ("projector", projector)):
        module.to_empty(device="cpu")
        module.load_state_dict({k.removeprefix(f"{name}."): t for k, t in tensors.items() if k.startswith(f"{name}.")})
        module.eval()
    # Making room anew drops the layout where there is a single input channel.
    channels_last(encoder, architecture.spatial_dims)
    details = {key: value for key, value in record.items() if key not in _OWN}
    return Bundle(encoder, projector, architecture, details)


def fingerprint(path: Path) -> str:
    """The record of a bundle, and with it its weights, as 16 hex digits; raises BundleError where there is none."""
    return str(_read_record(_find(path))["digest"])[:16]


def check_dims(bundle: Bundle, spatial_dims: int) -> None:
    """Raise BundleError unless the encoder takes volumes of that many spatial dimensions, whole or cut into slices."""
    own = 3 if bundle.details["spec"].get("slices") else bundle.architecture.spatial_dims
    if own != spatial_dims:
        raise BundleError(
            f"the encoder bundle is {own}D, these volumes are {spatial_dims}D; "
            f"give --encoder a {spatial_dims}D one, or pretrain on this data"
        )


def _state(encoder: nn.Module, projector: nn.Module) -> dict[str, Tensor]:
    parts = {"encoder": encoder, "projector": projector}
    # safetensors takes only contiguous tensors, and channels-last is not.
    return {f"{part}.{k}": t.contiguous() for part, module in parts.items() for k, t in module.state_dict().items()}


def _describe(projector: nn.Module) -> dict[str, int]:
    linear = [layer for layer in projector.modules() if isinstance(layer, nn.Linear)]
    normed = any(isinstance(layer, nn.BatchNorm1d) for layer in projector.modules())
    return {"hidden": linear[0].out_features, "out": linear[-1].out_features, "layers": len(linear), "norm": normed}


def _plain(value: Any) -> Any:
    """The same in strict JSON: what is unknown is null, since NaN is not JSON."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _find(path: Path) -> Path:
    for folder in (path, path / "encoder"):
        if (folder / _RECORD).is_file() or (folder / _WEIGHTS).is_file():
            return folder
    state = "holds no encoder bundle" if path.exists() else "does not exist"
    raise BundleError(f"--encoder {path} {state}; give a finished pretrain run, or the encoder/ of one")


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise BundleError(f"encoder bundle {folder}: {name}: {error.strerror}; {_COPY_AGAIN}") from error


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads(_read(folder, _RECORD))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"encoder bundle {folder}: {_RECORD} is not JSON; {_COPY_AGAIN}") from error
    if not isinstance(record, dict):
        raise BundleError(f"encoder bundle {folder}: {_RECORD} is not an encoder's; {_COPY_AGAIN}")
    version = record.get("schema_version")
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"encoder bundle {folder}: schema version {version!r}, and this medclr reads {SCHEMA_VERSION}; "
            "use the medclr that wrote it"
        )
    if missing := sorted((_OWN | _DETAILS) - record.keys()):
        raise BundleError(f"encoder bundle {folder}: {_RECORD} lacks {', '.join(missing)}; {_COPY_AGAIN}")
    if record["digest"] != _digest(record):
        raise BundleError(f"encoder bundle {folder}: {_RECORD} is not as saved: damaged or edited; {_COPY_AGAIN}")
    return record


def _digest(record: dict[str, Any]) -> str:
    """Of all that a record says, so that what it says of preprocessing and of patients seen can be believed."""
    rest = {key: value for key, value in record.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _read_weights(folder: Path, sha256: str) -> dict[str, Tensor]:
    content = _read(folder, _WEIGHTS)
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise BundleError(
            f"encoder bundle {folder}: {_WEIGHTS} ({len(content):,} bytes) is not the file that was saved "
            f"(sha256 {found[:12]}…, not {str(sha256)[:12]}…): damaged, cut short or swapped; {_COPY_AGAIN}"
        )
    try:
        return load(content)
    except SafetensorError as error:
        raise BundleError(f"encoder bundle {folder}: {_WEIGHTS} is not a safetensors file; {_COPY_AGAIN}") from error


def _build(folder: Path, record: dict[str, Any]) -> tuple[Architecture, nn.Module, nn.Sequential]:
    try:
        architecture = Architecture(**record["architecture"] | {"patch": tuple(record["architecture"]["patch"])})
        encoder = build_encoder(architecture)
        return architecture, encoder, build_projector(architecture.feature_dim, **record["projector"])
    except (UsageError, TypeError, KeyError, ValueError, RuntimeError, OverflowError) as error:
        why = " ".join(str(error).split())[:200]
        raise BundleError(f"encoder bundle {folder}: {_RECORD} describes no network ({why}); {_COPY_AGAIN}") from error


def _compare(folder: Path, wanted: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    other = [k for k in wanted if k in found and (wanted[k].shape, wanted[k].dtype) != (found[k].shape, found[k].dtype)]
    faults = [
        _some("missing", [k for k in wanted if k not in found]),
        _some("unexpected", [k for k in found if k not in wanted]),
        _some("of another shape", [f"{k} {_form(found[k])} for {_form(wanted[k])}" for k in other]),
    ]
    if any(faults):
        matched = len(wanted.keys() & found.keys()) - len(other)
        raise BundleError(
            f"encoder bundle {folder}: {matched} of {len(wanted)} weights fit; {'; '.join(filter(None, faults))}; "
            f"{_WEIGHTS} and {_RECORD} are of different encoders, {_COPY_AGAIN}"
        )


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _some(kind: str, items: list[str], most: int = 3) -> str:
    return f"{len(items)} {kind}: {', '.join(items[:most])}{', …' if len(items) > most else ''}" if items else ""
