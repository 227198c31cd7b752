"""Sealed folders: weights, and a record of everything that it takes to use them; whole or not at all, and no pickle."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from medclr.data.durable import sync_folder
from medclr.errors import BundleError, MedclrError, UsageError

Network = TypeVar("Network", bound=nn.Module)
_OWN = frozenset({"schema_version", "sha256", "digest"})


@dataclass(frozen=True)
class Kind:
    """What a sealed folder holds, and how messages speak of it.

    Attributes:
        name: of its two files and, in a run, of the folder: "encoder".
        what: "encoder bundle"; flag: that names one; command: that writes one.
        version: of the record; keys: that the record has beside the seal's own.
    """

    name: str
    what: str
    flag: str
    command: str
    version: int
    keys: frozenset[str]

    @property
    def weights(self) -> str:
        return f"{self.name}.safetensors"

    @property
    def record(self) -> str:
        return f"{self.name}.json"

    @property
    def again(self) -> str:
        return f"copy the {self.what.split()[-1]} again, or run {self.command} again"


def write_sealed(kind: Kind, folder: Path, network: nn.Module, record: dict[str, Any]) -> None:
    """Write weights and record; an older folder is replaced.

    Args:
        kind: of the folder.
        folder: its parent exists.
        network: whose weights and buffers are written.
        record: all keys of the kind; JSON types and tuples, NaN for unknown, and never a path.

    Raises:
        MedclrError: it cannot be written.
    """
    if missing := kind.keys - record.keys():
        raise KeyError(*sorted(missing))
    # safetensors takes only contiguous tensors, and channels-last is not.
    weights = save({name: tensor.contiguous() for name, tensor in network.state_dict().items()})
    sealed = {"schema_version": kind.version, "sha256": hashlib.sha256(weights).hexdigest(), **record}
    sealed = _plain(sealed)
    text = json.dumps(sealed | {"digest": digest_of(sealed)}, indent=2, allow_nan=False) + "\n"
    fresh, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        _write(fresh / kind.weights, weights)
        _write(fresh / kind.record, text.encode())
        sync_folder(fresh)
        # A folder cannot be renamed over a full one. Killed between the two renames, the old one is still there, and
        # the run that was writing can write it again.
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
            f"cannot write the {kind.what} {folder}: {error.strerror}; free some space, or use another --out"
        ) from error


def read_sealed(kind: Kind, path: Path, build: Callable[[dict[str, Any]], Network]) -> tuple[Network, dict[str, Any]]:
    """Read a folder, and accept nothing less than all of its weights.

    Args:
        kind: of the folder.
        path: the folder, or the run that holds it.
        build: a record to the network that it describes.

    Returns:
        The network in evaluation mode, on the CPU; and the record, of whose seal only `digest` is left.

    Raises:
        BundleError: it is missing, damaged, from another version, or its weights do not fit the network.
    """
    folder = _find(kind, path)
    record = _read_record(kind, folder)
    tensors = _read_weights(kind, folder, record["sha256"])
    # On the meta device nothing is allocated until the shapes are known to be those of the file.
    try:
        with torch.device("meta"):
            network = build(record)
    except (UsageError, TypeError, KeyError, ValueError, RuntimeError, OverflowError, AttributeError) as error:
        why = " ".join(str(error).split())[:200]
        raise BundleError(f"{kind.what} {folder}: {kind.record} describes no network ({why}); {kind.again}") from error
    _compare(kind, folder, network.state_dict(), tensors)
    # Built anew, since a network may hold values that are no weights; what is drawn for it changes nothing else.
    with torch.random.fork_rng(devices=[]):
        network = build(record)
    network.load_state_dict(tensors)
    return network.eval(), {key: record[key] for key in record if key == "digest" or key not in _OWN}


def digest_of(record: dict[str, Any]) -> str:
    """Of all that a record says, so that what it says of preprocessing and of patients seen can be believed."""
    rest = {key: value for key, value in record.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, allow_nan=False).encode()).hexdigest()


def seal_of(kind: Kind, path: Path) -> str:
    """The record of a folder, and with it its weights, as 16 hex digits; raises BundleError where there is none."""
    return str(_read_record(kind, _find(kind, path))["digest"])[:16]


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


def _find(kind: Kind, path: Path) -> Path:
    for folder in (path, path / kind.name):
        if (folder / kind.record).is_file() or (folder / kind.weights).is_file():
            return folder
    state = f"holds no {kind.what}" if path.exists() else "does not exist"
    raise BundleError(f"{kind.flag} {path} {state}; give a finished {kind.command} run, or the {kind.name}/ of one")


def _read(kind: Kind, folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise BundleError(f"{kind.what} {folder}: {name}: {error.strerror}; {kind.again}") from error


def _read_record(kind: Kind, folder: Path) -> dict[str, Any]:
    try:
        record = json.loads(_read(kind, folder, kind.record))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{kind.what} {folder}: {kind.record} is not JSON; {kind.again}") from error
    if not isinstance(record, dict):
        raise BundleError(f"{kind.what} {folder}: {kind.record} is not the record of one; {kind.again}")
    version = record.get("schema_version")
    if version != kind.version:
        raise BundleError(
            f"{kind.what} {folder}: schema version {version!r}, and this medclr reads {kind.version}; "
            f"use the medclr that wrote it, or run {kind.command} again"
        )
    if missing := sorted((_OWN | kind.keys) - record.keys()):
        raise BundleError(f"{kind.what} {folder}: {kind.record} lacks {', '.join(missing)}; {kind.again}")
    if record["digest"] != digest_of(record):
        raise BundleError(f"{kind.what} {folder}: {kind.record} is not as saved: damaged or edited; {kind.again}")
    return record


def _read_weights(kind: Kind, folder: Path, sha256: str) -> dict[str, Tensor]:
    content = _read(kind, folder, kind.weights)
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise BundleError(
            f"{kind.what} {folder}: {kind.weights} ({len(content):,} bytes) is not the file that was saved "
            f"(sha256 {found[:12]}…, not {str(sha256)[:12]}…): damaged, cut short or swapped; {kind.again}"
        )
    try:
        return load(content)
    except SafetensorError as error:
        raise BundleError(f"{kind.what} {folder}: {kind.weights} is not a safetensors file; {kind.again}") from error


def _compare(kind: Kind, folder: Path, wanted: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    other = [k for k in wanted if k in found and (wanted[k].shape, wanted[k].dtype) != (found[k].shape, found[k].dtype)]
    faults = [
        _some("missing", [k for k in wanted if k not in found]),
        _some("unexpected", [k for k in found if k not in wanted]),
        _some("of another shape", [f"{k} {_form(found[k])} for {_form(wanted[k])}" for k in other]),
    ]
    if any(faults):
        matched = len(wanted.keys() & found.keys()) - len(other)
        raise BundleError(
            f"{kind.what} {folder}: {matched} of {len(wanted)} weights fit; {'; '.join(filter(None, faults))}; "
            f"{kind.weights} and {kind.record} are of different {kind.name}s, {kind.again}"
        )


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _some(kind: str, items: list[str], most: int = 3) -> str:
    return f"{len(items)} {kind}: {', '.join(items[:most])}{', …' if len(items) > most else ''}" if items else ""
