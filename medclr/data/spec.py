"""How a data set is read and normalised: YAML to a validated DataSpec."""

import difflib
import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import yaml

from medclr.data.layout import TableLayout, parse_layout
from medclr.data.manifest import DOMAINS, spatial_dims
from medclr.errors import DataError, UsageError

# Modalities whose augmentations are known; a spec of others, or of files that do not say, may take any preset.
_PRESET_OF = {
    "ct": ("CT",),
    "mr": ("MR",),
    "pet": ("PT", "NM"),
    "xray": ("DX", "CR", "RG", "RF", "XA", "MG", "IO", "PX"),
    "us": ("US", "IVUS"),
}
STORE_VERSION = 3  # raise it when what prepare writes for the same input and spec changes
SLICE_AXES = {"sagittal": 0, "coronal": 1, "axial": 2}


@dataclass(frozen=True)
class DataSpec:
    """Preprocessing of one kind of volume.

    Attributes:
        name: for reports.
        modality: DICOM modality codes that belong here; "" is a file that does not say (NIfTI, PNG, most of .npz).
        spatial_dims: 2 or 3, of what the encoder sees.
        slices: with spatial_dims 2, the plane in which volumes are cut into slices; "" is for radiographs.
        slice_step_mm: slices nearer than this to the last one that was kept are left out.
        normalisation: how grey values become 0..1: "window" (fixed), "zscore" (mean ± 3 standard deviations of the
            non-zero voxels) or "percentile" (0.5 to 99.5).
        window: the two grey values (HU for CT) that become 0 and 1 under "window".
        clip: the range kept in the store; CT is kept as int16 HU.
        sizing: "spacing" resamples to spacing_mm, "fit" shrinks each image to fit the patch, by pixels.
        spacing_mm: voxel size in the store, of slices in their plane; None: the median of the data, coarser where
            max_patch asks for it.
        patch: voxels that the encoder sees; None: the median size at that spacing.
        max_patch: the longest patch axis that None may choose.
        preset: augmentations.
        laterality: left and right differ in meaning, so views are never mirrored.
        domains: manifest columns that tell domains apart; prepare counts the volumes of each.
        files: regular expression that finds something in the path of each file that belongs here; "" is all files.
        licence, citation: of the data, where it is a public set; runs on it name both.
        table: how the set's own label table is laid out, where it has one.
    """

    name: str
    modality: tuple[str, ...]
    spatial_dims: Literal[2, 3]
    normalisation: Literal["window", "zscore", "percentile"]
    sizing: Literal["spacing", "fit"]
    max_patch: int
    preset: Literal["ct", "mr", "pet", "xray", "us"]
    laterality: bool = True
    window: tuple[float, float] | None = None
    clip: tuple[float, float] | None = None
    spacing_mm: tuple[float, ...] | None = None
    patch: tuple[int, ...] | None = None
    slices: Literal["", "axial", "coronal", "sagittal"] = ""
    slice_step_mm: float = 2.0
    domains: tuple[str, ...] = ()
    files: str = ""
    licence: str = ""
    citation: str = ""
    table: TableLayout | None = None

    def accepts(self, manifest: pd.DataFrame) -> pd.Series:
        """Which rows of a manifest this spec is for."""
        fits = manifest["modality"].isin(self.modality) & (spatial_dims(manifest) == self.volume_dims)
        if self.files:
            fits &= manifest["source"].map(lambda source: all(re.search(self.files, item) for item in source))
        return fits

    def filled(self, manifest: pd.DataFrame) -> "DataSpec":
        """This spec with patch and spacing chosen from the volumes that it accepts, where it leaves them open.

        The patch is to hold the whole of a median volume: where that is longer than max_patch, voxels are made
        coarser. Nothing is ever made finer than the median.
        """
        shapes = np.array([self.in_plane(shape) for shape in manifest["shape"]], dtype=float)
        size = np.median(shapes, axis=0)
        if self.sizing == "fit":
            patch = self.patch or _whole(size / max(1.0, size.max() / self.max_patch))
            return replace(self, patch=patch)
        spacings = np.array([self.in_plane(spacing) for spacing in manifest["spacing_mm"]], dtype=float)
        known = np.isfinite(spacings).all(axis=1)
        if not known.any():  # nothing says how large a voxel is: sizes are all there is
            return replace(self, sizing="fit").filled(manifest)
        spacing = np.array(self.spacing_mm or np.median(spacings[known], axis=0))
        extent = np.median(shapes[known] * spacings[known], axis=0)
        if self.spacing_mm is None:
            spacing = np.maximum(spacing, extent / self.max_patch)
        patch = self.patch or _whole(np.minimum(extent / spacing, self.max_patch))
        return replace(self, spacing_mm=tuple(round(float(s), 4) for s in spacing), patch=patch)

    @property
    def volume_dims(self) -> int:
        """How many spatial axes the volumes have: one more than what the encoder sees, where it sees slices."""
        return 3 if self.slices else self.spatial_dims

    @property
    def slice_axis(self) -> int | None:
        """The spatial axis of a volume (right, anterior, superior) that slices follow each other along."""
        return SLICE_AXES[self.slices] if self.slices else None

    def in_plane(self, values: Sequence[Any]) -> list[Any]:
        """What there is per spatial axis of a volume, without the axis of its slices."""
        return [value for axis, value in enumerate(values) if axis != self.slice_axis]

    @property
    def integers(self) -> bool:
        """Whether the store keeps int16, as CT is recorded."""
        return "CT" in self.modality

    def for_volume(self, spacing_mm: tuple[float, ...]) -> "DataSpec":
        """This spec as it applies to one volume: where its spacing is unknown, its size in voxels is all there is."""
        return self if np.isfinite(self.in_plane(spacing_mm)).all() else replace(self, sizing="fit")

    def digest(self) -> str:
        """What of this spec decides the contents of the store, as 16 hex digits."""
        size = self.patch if self.sizing == "fit" else self.spacing_mm
        kept: list[Any] = [STORE_VERSION, self.sizing, _floats(size), _floats(self.clip), self.integers]
        if self.slices:
            kept += [self.slices, float(self.slice_step_mm)]
        return hashlib.blake2b(json.dumps(kept).encode(), digest_size=8).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for YAML and bundles."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def load_spec(path: Path) -> DataSpec:
    """Read a spec from a YAML file, or by the name of one that ships with medclr.

    A file may describe several sets: what they share, and under `members` what each has beside or instead of it.
    """
    if path.is_file():
        found = dict(_contents(path, f"--spec {path}"))
        if len(found) > 1:
            raise UsageError(
                f"--spec {path}: holds {len(found)} specs ({', '.join(found)}); keep one of them in a file"
            )
        (content,) = found.values()
        return parse_spec(content, f"--spec {path}")
    shipped = _shipped()
    if str(path) not in shipped:
        near = difflib.get_close_matches(str(path), shipped, n=3)
        if near:
            fix = f"did you mean {' or '.join(near)}? `medclr doctor` lists all {len(shipped)}"
        else:
            general, sets = spec_names()
            fix = f"by modality there are {', '.join(general)}; of public sets {', '.join(sets)}"
        raise UsageError(f"--spec {path}: no such file, nor a spec that ships; {fix}")
    return parse_spec(shipped[str(path)], f"--spec {path}")


def spec_names() -> tuple[list[str], list[str]]:
    """The names of the specs that ship: by modality, and of public sets."""
    sets = {name: bool(content.get("citation")) for name, content in _shipped().items()}
    return [name for name in sets if not sets[name]], [name for name in sets if sets[name]]


def parse_spec(content: Any, source: str) -> DataSpec:
    """Validate a table of keys and values; `source` names it in errors."""
    if not isinstance(content, dict):
        raise UsageError(f"{source}: holds no table of keys and values")
    known = {f.name: f for f in fields(DataSpec)}
    if unknown := sorted(map(str, set(content) - set(known))):
        raise UsageError(f"{source}: unknown keys {', '.join(unknown)}; known are {', '.join(known)}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
    if values.get("table") is not None:
        values["table"] = parse_layout(content["table"], source)
    if missing := [
        name for name, f in known.items() if name not in values and f.default is f.default_factory is MISSING
    ]:
        raise UsageError(f"{source}: lacks {', '.join(missing)}; copy a spec that ships (medclr doctor lists them)")
    spec = DataSpec(**values)  # type: ignore[arg-type]  # checked below
    _check(spec, source)
    return spec


def choose_spec(manifest: pd.DataFrame) -> DataSpec:
    """The shipped spec that accepts most of a manifest, its patch and spacing left open."""
    general = [load_spec(Path(name)) for name in spec_names()[0]]  # a public set's own spec must be asked for
    best = max(general, key=lambda spec: int(spec.accepts(manifest).sum()))
    if not best.accepts(manifest).any():
        found = sorted(set(manifest["modality"]))
        raise DataError(f"no shipped spec is for modality {', '.join(found)}; write one and pass it with --spec")
    return best


def _check(spec: DataSpec, source: str) -> None:
    choices = {
        "spatial_dims": (2, 3),
        "normalisation": ("window", "zscore", "percentile"),
        "sizing": ("spacing", "fit"),
        "preset": tuple(_PRESET_OF),
        "laterality": (True, False),
        "slices": ("", *SLICE_AXES),
    }
    for key, allowed in choices.items():
        if getattr(spec, key) not in allowed:
            raise UsageError(f"{source}: {key} is {getattr(spec, key)!r}; it must be one of {allowed}")
    for key in ("modality", "domains"):
        value = getattr(spec, key)
        if not (isinstance(value, tuple) and all(isinstance(item, str) for item in value)):
            raise UsageError(f"{source}: {key} is {value!r}; it must be a list of texts")
    if strange := [name for name in spec.domains if name not in DOMAINS]:
        raise UsageError(f"{source}: domains has {strange[0]!r}; each must be one of {', '.join(DOMAINS)}")
    for key in ("name", "files", "licence", "citation"):
        if not isinstance(getattr(spec, key), str):
            raise UsageError(f"{source}: {key} is {getattr(spec, key)!r}; it must be a text")
    named = {code: preset for preset, codes in _PRESET_OF.items() for code in codes if code in spec.modality}
    if named and spec.preset not in named.values():
        code, preset = next(iter(named.items()))
        raise UsageError(f"{source}: preset is {spec.preset}, but modality is {code}, whose preset is {preset}")
    try:
        re.compile(spec.files)
    except re.error as error:
        raise UsageError(f"{source}: files is no regular expression ({error})") from None
    for key, length in {"window": 2, "clip": 2, "spacing_mm": spec.spatial_dims, "patch": spec.spatial_dims}.items():
        value = getattr(spec, key)
        sound = value is None or (
            isinstance(value, tuple)
            and len(value) == length
            and all(isinstance(v, (int, float)) and math.isfinite(v) for v in value)
        )
        if not sound:
            raise UsageError(f"{source}: {key} is {value!r}; it must be a list of {length} numbers")
    if any(not isinstance(side, int) or side < 8 for side in spec.patch or ()):
        raise UsageError(f"{source}: patch is {spec.patch}; each side must be a whole number, 8 or more")
    if any(step <= 0 for step in spec.spacing_mm or ()):
        raise UsageError(f"{source}: spacing_mm is {spec.spacing_mm}; each must be above 0")
    for key in ("window", "clip"):
        pair = getattr(spec, key)
        if pair is not None and not pair[0] < pair[1]:
            raise UsageError(f"{source}: {key} is {pair}; the first must be below the second")
    if spec.slices and spec.spatial_dims != 2:
        raise UsageError(f"{source}: slices is {spec.slices}, but spatial_dims {spec.spatial_dims}; slices are 2D")
    if spec.slices == "sagittal" and not spec.laterality:
        raise UsageError(f"{source}: a sagittal slice has no left and right to mirror; set laterality to true")
    step = spec.slice_step_mm
    if not (isinstance(step, (int, float)) and math.isfinite(step) and step >= 0):
        raise UsageError(f"{source}: slice_step_mm is {step!r}; it must be a number, 0 or more")
    if spec.normalisation == "window" and spec.window is None:
        raise UsageError(f"{source}: normalisation is window, but there is no window")
    if not isinstance(spec.max_patch, int) or spec.max_patch < 8:
        raise UsageError(f"{source}: max_patch is {spec.max_patch!r}; it must be a whole number, 8 or more")


@cache
def _shipped() -> dict[str, dict[str, Any]]:
    found = (_contents(file, f"--spec {file.stem}") for file in sorted(_folder().glob("*.yaml")))
    return dict(one for specs in found for one in specs)


def _contents(file: Path, source: str) -> Iterator[tuple[str, Any]]:
    """The specs in a file, by name, as YAML gives them."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{source}: not YAML ({type(error).__name__})") from None
    if not (isinstance(content, dict) and "members" in content):
        yield file.stem, content
        return
    members = content.pop("members")
    if not (isinstance(members, dict) and all(isinstance(member, dict) for member in members.values())):
        raise UsageError(f"{source}: members must be a table of names, each with its own keys and values")
    for name, own in members.items():
        table = {**content.get("table", {}), **own.get("table", {})}
        yield name, {"name": name, **content, **own, **({"table": table} if table else {})}


def _floats(values: tuple[float, ...] | None) -> list[float] | None:
    return None if values is None else [float(value) for value in values]


def _whole(size: Any) -> tuple[int, ...]:
    return tuple(max(8, int(side)) for side in np.round(size))


def _folder() -> Path:
    here = Path(__file__).resolve().parent.parent
    installed = here / "data_specs"
    return installed if installed.is_dir() else here.parent / "data_specs"
