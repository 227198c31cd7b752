"""The run folder: what `--out` names, what may be shared of it, and how it survives a crash or a full disk.

Everything is written to a temporary name in the same folder, synced and renamed, so that a file is whole or absent.
`run.json` is the record of the run; `private/` (mode 0700) holds all that could show a patient.
"""

import errno
import fcntl
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import MISSING, Field, fields
from datetime import UTC, datetime
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from medclr.config import paths_of
from medclr.data.durable import sync_folder
from medclr.errors import MedclrError, UsageError

# They say where and with how many hands, and what of it is shown and to whom, not what is computed: a run may go on
# with others.
_HANDS = (
    "out", "workers", "jobs", "scheduler", "checkpoint_minutes", "requeue", "logger", "tracking_uri", "examples"
)  # fmt: skip
ADDRESSES = ("scheduler", "tracking_uri")  # they name machines, so no file of a run has them
_GIVEN = {"config.yaml", "run.json", "inputs.json"} | {
    f"private/{name}" for name in ("lock", "paths.yaml", "unmatched.csv", "places.csv")
}
FREE_FIELDS = (*_HANDS, "report", "share_images")
# What spreadsheets take for the start of a formula, with the full-width forms that some of them accept.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


class Run:
    """One run folder, held for writing by this process.

    folder: the folder; private: its private/; resumed: it held this run already; command_line: the command with
    every setting that is not a default, paths as placeholders, so that it can be shown to anyone.
    """

    def __init__(
        self, folder: Path, command: str, config: Any, record: dict[str, Any], resumed: bool, lock: int
    ) -> None:
        self.folder = folder
        self.private = folder / "private"
        self.resumed = resumed
        self.command_line = command_line(command, config)
        self._command = command
        self._seed = getattr(config, "seed", None)
        self._record = record
        self._lock = lock
        self._clock = time.monotonic()

    @staticmethod
    def open(command: str, config: Any, out: Path | None) -> "Run":
        """Create the run folder, or take up the run that is in it.

        command: its name, such as "pretrain"; config: its frozen dataclass; out: the folder, or None for a fresh
        runs/DATE-TIME-COMMAND. Raises UsageError where the folder holds something else, the run of another
        configuration, or a run that another process is writing; MedclrError where it cannot be written.
        """
        folder = _fresh(command) if out is None else out
        private = folder / "private"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            others = {entry.name for entry in folder.iterdir()} - {"private"}
            if others and not (folder / "run.json").exists() and not (private / "lock").exists():
                raise UsageError(f"--out {folder}: not empty, and not a run of medclr; use another --out")
            private.mkdir(mode=0o700, exist_ok=True)
            private.chmod(0o700)  # a copied folder may have come with wider permissions
            lock = _lock(folder)
        try:
            return _take_up(folder, command, config, lock)
        except BaseException:
            os.close(lock)
            raise

    @staticmethod
    def newest(command: str, root: Path = Path("runs")) -> Path | None:
        """The run of `command` directly under `root` that was completed last, or None."""
        return next(iter(Run.completed(command, root)), None)

    @staticmethod
    def completed(command: str, root: Path = Path("runs")) -> list[Path]:
        """The complete runs of `command` directly under `root`, the last first."""
        done = []
        for path in root.glob("*/run.json"):
            with suppress(MedclrError):
                record = read_record(path.parent)
                if record["command"] == command and record["complete"]:
                    done.append((record["finished"], path.parent))
        return [folder for _, folder in sorted(done, reverse=True)]

    @property
    def complete(self) -> bool:
        """Whether the run has finished, now or when the folder was opened."""
        return bool(self._record["complete"])

    @property
    def outcome(self) -> dict[str, Any]:
        """What `finish` was given; empty before that."""
        return dict(self._record["outcome"])

    def write_bytes(self, name: str, data: bytes) -> Path:
        """Write the file `name` (may start with "private/"), whole or not at all; returns its path."""
        path = self.folder / name
        with writing(self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, data, mode=0o600 if name.startswith("private/") else 0o666)
        return path

    def write_text(self, name: str, text: str) -> Path:
        """Write text as UTF-8."""
        return self.write_bytes(name, text.encode())

    def write_json(self, name: str, value: Any) -> Path:
        """Write plain types and NumPy's as JSON; what is not finite becomes null, which JSON can say."""
        return self.write_text(name, _json(value))

    def write_frame(self, name: str, frame: pd.DataFrame) -> Path:
        """Write a table without its index: parquet where `name` ends so, else CSV in which no text is a formula."""
        if name.endswith(".parquet"):
            buffer = BytesIO()
            frame.to_parquet(buffer, index=False)
            return self.write_bytes(name, buffer.getvalue())
        safe = frame.rename(columns=_no_formula)
        for column in safe.columns:
            if not pd.api.types.is_numeric_dtype(safe[column]):
                safe[column] = safe[column].map(_no_formula)
        return self.write_text(name, safe.to_csv(index=False, lineterminator="\n"))

    def pin(self, inputs: Mapping[str, str]) -> None:
        """Note what the run works on, by hashes; UsageError where the run in this folder worked on something else."""
        path = self.folder / "inputs.json"
        if path.is_file() and json.loads(path.read_text()) != inputs and _is_begun(self.folder):
            raise UsageError(
                f"--out {self.folder}: the volumes, the labels or the encoder have changed since this run began; "
                "use another --out"
            )
        self.write_json("inputs.json", inputs)

    def forget(self) -> None:
        """Let the folder be taken for other settings: these were refused before anything rested on them."""
        (self.folder / "run.json").unlink()

    def write_frames(self, name: str, frames: Iterable[pd.DataFrame]) -> Path:
        """Write a parquet table, one row group a frame, without ever holding all of it; whole or not at all."""
        path = self.folder / name
        partial = path.with_name(f".{path.name}.partial")
        writer = None
        try:
            for frame in frames:
                group = pa.Table.from_pandas(frame, preserve_index=False)
                with writing(self.folder):
                    writer = writer or pq.ParquetWriter(partial, group.schema)
                    writer.write_table(group)
            with writing(self.folder):
                if writer:
                    writer.close()
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
                partial.replace(path)
                sync_folder(path.parent)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise
        return path

    def found(self, **paths: Path | None) -> None:
        """Note what the run found by itself where no path was given, for those that go on from it; see `read_paths`."""
        known = {name: os.path.abspath(path) for name, path in paths.items() if path is not None}
        self.write_text("private/found.yaml", yaml.safe_dump(known, sort_keys=False))

    def finish(self, outcome: Mapping[str, Any]) -> None:
        """Mark the run complete and record its outcome, versions and hardware: no path, host or user name."""
        self._record = self._record | {
            "complete": True,
            "finished": _now(),
            "seconds": round(time.monotonic() - self._clock, 3),
            "seed": self._seed,
            "versions": versions(),
            "hardware": hardware(),
            "git": _git(),
            "outcome": _plain(outcome),
        }
        self.write_json("run.json", self._record)


def read_record(folder: Path) -> dict[str, Any]:
    """The contents of a run's run.json: command, complete, outcome, ...; MedclrError where it is none."""
    try:
        record = json.loads((folder / "run.json").read_bytes())
    except OSError as error:
        raise MedclrError(f"{folder / 'run.json'}: {error.strerror}; is this the folder of a run?") from error
    except ValueError as error:
        raise MedclrError(f"{folder / 'run.json'}: damaged, not JSON; use another run folder") from error
    if not isinstance(record, dict) or not {"medclr", "command", "complete", "outcome"} <= record.keys():
        raise MedclrError(f"{folder / 'run.json'}: not written by medclr; use another run folder")
    return record


def read_paths(folder: Path) -> dict[str, Path | None]:
    """The absolute paths that a run was given or has found, by field; empty where its private/ is not at hand."""
    stored: dict[str, Any] = {}
    for name in ("paths.yaml", "found.yaml"):
        path = folder / "private" / name
        stored |= _read_yaml(path) if path.exists() else {}
    return {name: Path(text) if text else None for name, text in stored.items() if not isinstance(text, list)}


@contextmanager
def writing(folder: Path, flag: str = "--out") -> Iterator[None]:
    """Around writes: what the operating system refuses becomes a MedclrError of one line that names folder and flag."""
    try:
        yield
    except OSError as error:
        raise MedclrError(_explain(error, folder, flag)) from error


def write_atomic(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a file whole or not at all: a temporary name beside it, synced, renamed. Raises OSError."""
    # A fixed name: the run is locked, and what a kill leaves is overwritten instead of piling up.
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    sync_folder(path.parent)


def command_line(command: str, config: Any) -> str:
    """The command with every setting that is not its default; a path becomes the name of its flag in capitals."""
    paths = paths_of(config)
    shown = {
        field.name: _placeholder(field.name, value) if field.name in paths else value
        for field in fields(config)
        if field.name not in _HANDS and (value := getattr(config, field.name)) != _default(field)
    }
    return shlex.join(["medclr", command, *_flags(shown)])


def _placeholder(name: str, given: Any) -> str | list[str]:
    return (
        [f"{name.upper()}-{number}" for number in range(1, len(given) + 1)] if isinstance(given, list) else name.upper()
    )


def next_command(command: str, config: Any, carried: Iterable[str], **given: Any) -> str:
    """A command that can be typed as it stands.

    Args:
        command: its name.
        config: of the command that ends.
        carried: fields of `config` that the next command takes over where they are not their default.
        given: further flags and their values; None is left out.
    """
    defaults = {field.name: _default(field) for field in fields(config)}
    values = {name: getattr(config, name) for name in carried if getattr(config, name) != defaults[name]} | given
    return shlex.join(["medclr", command, *_flags({name: v for name, v in values.items() if v is not None})])


def _flags(values: Mapping[str, Any]) -> list[str]:
    words = []
    for name, value in values.items():
        several = value if isinstance(value, list) else [value]
        words += [f"--{name.replace('_', '-')}", *(str(v).lower() if isinstance(v, bool) else str(v) for v in several)]
    return words


def versions() -> dict[str, str]:
    """Versions of medclr, Python and the libraries behind the numbers; of those not loaded, none."""
    found = {"medclr": _version("medclr"), "python": platform.python_version()}
    loaded = ("numpy", "scipy", "sklearn", "pandas", "pydicom", "torch", "monai", "pytorch_lightning", "timm")
    return found | {name: str(sys.modules[name].__version__) for name in loaded if name in sys.modules}


def hardware() -> dict[str, Any]:
    """System, machine, cores and, where torch is loaded and sees any, the GPU: nothing that names a host or a user."""
    found: dict[str, Any] = {"system": platform.system(), "machine": platform.machine(), "cores": os.cpu_count()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found |= {"gpu": torch.cuda.get_device_name(0), "gpus": torch.cuda.device_count()}
    return found


def _fresh(command: str) -> Path:
    stem = Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{command}"
    with writing(stem):
        stem.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(1, 1000):
            folder = stem if attempt == 1 else stem.with_name(f"{stem.name}-{attempt}")
            # Two commands may start in the same second: whoever makes the folder has it.
            with suppress(FileExistsError):
                folder.mkdir()
                return folder
    raise MedclrError(f"{stem}: a thousand runs of this name; name one with --out")


def _lock(folder: Path) -> int:
    """Hold the run until this process ends, however it ends; returns the open file."""
    file = os.open(folder / "private" / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        # lockf, not flock: a flock lives on in forked workers, which may outlast a killed parent.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            os.close(file)
            raise UsageError(f"--out {folder}: another medclr is writing this run; wait or use another --out") from None
        # Some cluster file systems are mounted without locks; the run itself needs none.
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            os.close(file)
            raise
    return file


def _take_up(folder: Path, command: str, config: Any, lock: int) -> Run:
    paths = {name: _stored(name, given) for name, given in paths_of(config).items()}
    hidden = {*paths, *ADDRESSES}
    settings = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in hidden}
    if (folder / "run.json").exists():
        record = read_record(folder)
        if record["command"] != command:
            raise UsageError(f"--out {folder}: holds a run of `medclr {record['command']}`; use another --out")
        others = _others(folder, settings, paths)
        if not others:
            return Run(folder, command, config, record, resumed=True, lock=lock)
        if _is_begun(folder):
            fix = "use another --out, or the old setting" + ("s" if len(others) > 1 else "")
            raise UsageError(f"--out {folder}: holds a run with {'; '.join(others)}. To go on, {fix}")
    return _begin(folder, command, config, settings, paths, lock)


def _is_begun(folder: Path) -> bool:
    """Whether there is more in it than what a run is given: one that was refused may be begun with other settings."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return bool(found - _GIVEN)


def _begin(
    folder: Path, command: str, config: Any, settings: Mapping[str, Any], paths: Mapping[str, Any], lock: int
) -> Run:
    record = {
        "medclr": _version("medclr"),
        "command": command,
        "complete": False,
        "started": _now(),
        "outcome": {},
    }
    run = Run(folder, command, config, record, resumed=False, lock=lock)
    with writing(folder):
        (folder / "inputs.json").unlink(missing_ok=True)
    run.write_text("private/paths.yaml", yaml.safe_dump(paths, sort_keys=False))
    header = f"# medclr {command}: every setting but the paths, which are in private/paths.yaml\n"
    run.write_text("config.yaml", header + yaml.safe_dump(settings, sort_keys=False))
    run.write_json("run.json", record)  # last: it makes the folder a run
    return run


def _others(folder: Path, settings: Mapping[str, Any], paths: Mapping[str, Any]) -> list[str]:
    """The fields in which the run in the folder differs."""
    stored = _read_yaml(folder / "config.yaml")
    names = [*settings, *sorted(set(stored) - set(settings))]
    others = [
        f"{name} {_show(stored.get(name))}, not {_show(settings.get(name))}"
        for name in names
        if name not in FREE_FIELDS and stored.get(name) != settings.get(name)
    ]
    if (folder / "private" / "paths.yaml").exists():  # not in a run that was shared
        stored = _read_yaml(folder / "private" / "paths.yaml")
        others += [f"another --{name}" for name in paths if name not in FREE_FIELDS and stored.get(name) != paths[name]]
    return others


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        stored = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise MedclrError(f"{path}: cannot be read; restore it, or use another --out") from error
    if not isinstance(stored, dict):
        raise MedclrError(f"{path}: damaged; restore it, or use another --out")
    return stored


def _stored(name: str, given: Path | list[Path] | None) -> str | list[str] | None:
    if given is None:
        return None
    return [_absolute(name, path) for path in given] if isinstance(given, list) else _absolute(name, given)


def _absolute(name: str, path: Path) -> str:
    # A spec that is no file is the name of one that ships, wherever the command is started.
    return str(path) if name == "spec" and not path.exists() else os.path.abspath(path)


def _show(value: Any) -> str:
    return "unset" if value is None else json.dumps(value, ensure_ascii=False)


def _default(field: "Field[Any]") -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _explain(error: OSError, folder: Path, flag: str) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left on the device of {folder}; free some or use another {flag}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"no permission to write {folder}; change it or use another {flag}"
    if error.errno == errno.EROFS:
        return f"{folder} is on a read-only file system; use another {flag}"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"{folder}: a file stands where a folder is needed; use another {flag}"
    return f"cannot write {folder}: {error.strerror or type(error).__name__}; use another {flag}"


def _no_formula(cell: Any) -> Any:
    return "'" + cell if isinstance(cell, str) and cell.startswith(FORMULA_STARTS) else cell


def _json(value: Any) -> str:
    return json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _git() -> dict[str, Any] | None:
    """Commit of the checkout that this code runs from; None for an installed copy, even inside someone's repository."""
    package = Path(__file__).parents[1]

    def git(*words: str) -> str:
        # In a hook, git's own variables point at another repository.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        return subprocess.run(
            ["git", "-C", str(package), *words],
            capture_output=True, text=True, check=True, timeout=10, env=environment,
        ).stdout.strip()  # fmt: skip

    try:
        git("ls-files", "--error-unmatch", "errors.py")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.SubprocessError):
        return None
