"""Is this machine fit for medclr? One line per question, each with its remedy."""

import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from pydicom import uid
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medclr import __version__
from medclr.config import DoctorConfig
from medclr.data.dicom.codecs import decoders, remedy
from medclr.data.identity import DEFAULT_KEY
from medclr.data.pool import n_cores
from medclr.data.spec import spec_names
from medclr.errors import MedclrError

_SHOWN = ("torch", "monai", "pytorch-lightning", "pydicom", "numpy")

_SYNTAXES = {
    "JPEG baseline": uid.JPEGBaseline8Bit,
    "JPEG extended, 12 bits": uid.JPEGExtended12Bit,
    "JPEG lossless": uid.JPEGLosslessSV1,
    "JPEG-LS": uid.JPEGLSLossless,
    "JPEG 2000": uid.JPEG2000Lossless,
    "high-throughput JPEG 2000": uid.HTJ2KLossless,
    "RLE": uid.RLELossless,
}

_GIB = 2**30


@dataclass(frozen=True)
class Check:
    """One answer: what was asked, how it stands, what was found, and what to do about it."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    fix: str = ""


def doctor(config: DoctorConfig) -> list[Check]:
    """Check versions, decoders, processor, GPU, memory, free disk and write permission, list the specs, and print all.

    Raises:
        MedclrError: at least one check failed.
    """
    checks = [
        *_versions(),
        *_decoders(),
        *_machine(),
        _disk(config.out),
        _writable("writing to --out", config.out, "choose another --out, or change the folder's permissions"),
        *_specs(),
        _writable("writing the key", Path(DEFAULT_KEY).expanduser().parent, "name a file elsewhere with --key-file"),
    ]
    _print(checks)
    if failed := [check.name for check in checks if check.status == "fail"]:
        raise MedclrError(f"doctor: {', '.join(failed)} failed; the remedy stands beside it")
    return checks


def _print(checks: list[Check]) -> None:
    console = Console()
    if not console.is_terminal:
        for check in checks:
            print(f"{check.status:<4}  {check.name}: {check.found}" + (f"; {check.fix}" if check.fix else ""))
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    colour = {"ok": "green", "warn": "yellow", "fail": "red"}
    for check in checks:
        table.add_row(f"[{colour[check.status]}]{check.status}[/]", check.name, escape(check.found), escape(check.fix))
    console.print(table)


def _versions() -> Iterator[Check]:
    yield Check("medclr", "ok", f"{__version__} on Python {platform.python_version()}")
    try:
        lines = importlib.metadata.requires("medclr") or []
    except importlib.metadata.PackageNotFoundError:
        yield Check("installation", "warn", "a source tree that is not installed", "pip install -e . in the checkout")
        lines = list(_SHOWN)
    for requirement in map(Requirement, lines):
        # The extras say so in their marker, and nobody has to have them.
        if not (requirement.marker and "extra" in str(requirement.marker)):
            yield from _version(requirement)


def _version(requirement: Requirement) -> Iterator[Check]:
    install = f'pip install "{requirement}"'
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        yield Check(requirement.name, "fail", "missing", install)
        return
    if not requirement.specifier.contains(version, prereleases=True):
        yield Check(requirement.name, "fail", f"{version}, but {requirement.specifier} is needed", install)
    elif requirement.name in _SHOWN:
        yield Check(requirement.name, "ok", version)


def _decoders() -> Iterator[Check]:
    for name, syntax in _SYNTAXES.items():
        if found := decoders(syntax):
            yield Check(name, "ok", "read by " + ", ".join(found))
        else:
            yield Check(name, "warn", "no decoder; such series will be skipped (DECODE)", remedy(syntax))


def _machine() -> Iterator[Check]:
    cores = n_cores()
    yield Check("processor", "ok", f"{cores} core{'s' if cores > 1 else ''}")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    yield _enough("memory", memory, "GiB", warn=7, fail=2, fix="use a smaller --batch-size and fewer --workers")
    # Seconds to import, so only when it is asked for.
    import torch

    if not torch.cuda.is_available():
        built = "this torch is built for CPUs" if torch.version.cuda is None else "torch sees none"
        yield Check("GPU", "ok", f"none ({built}); small encoders train on the processor")
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield Check("GPU", "ok", f"{properties.name}, {properties.total_memory / _GIB:.0f} GiB")


def _specs() -> Iterator[Check]:
    general, sets = spec_names()
    yield Check("specs by modality", "ok", ", ".join(general))
    yield Check("specs of public sets", "ok", ", ".join(sets))


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(_existing(folder)).free / _GIB
    return _enough("free disk for --out", free, "GiB", warn=20, fail=1, fix="free some, or use another --out")


def _enough(name: str, amount: float, unit: str, warn: float, fail: float, fix: str) -> Check:
    found = f"{amount:,.1f} {unit}"
    if amount < fail:
        return Check(name, "fail", found, fix)
    return Check(name, "warn", found, fix) if amount < warn else Check(name, "ok", found)


def _writable(name: str, folder: Path, fix: str) -> Check:
    # Permission bits do not tell of read-only mounts, nor bind root; writing does.
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):
            return Check(name, "ok", "possible")
    except OSError as error:
        return Check(name, "fail", (error.strerror or "not possible").lower(), fix)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there already."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder
