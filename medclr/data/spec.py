"""How a data set is read and normalised: YAML to a validated DataSpec."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import yaml

from medclr.data.manifest import spatial_dims
from medclr.errors import DataError, UsageError

STORE_VERSION = 2  # raise it when what prepare writes for the same input and spec changes


@dataclass(frozen=True)
class DataSpec:
    """Preprocessing of one kind of volume.

    Attributes:
        name: for reports.
        modality: DICOM modality codes that belong here; "" is a file that does not say (NIfTI).
        spatial_dims: 2 or 3.
        normalisation: how grey values become 0..1: "window" (fixed), "zscore" (mean ± 3 standard deviations of the
            non-zero voxels) or "percentile" (0.5 to 99.5).
        window: the two grey values (HU for CT) that become 0 and 1 under "window".
        clip: the range kept in the store; CT is kept as int16 HU.
        sizing: "spacing" resamples to spacing_mm, "fit" shrinks each image to fit the patch, by pixels.
        spacing_mm: voxel size in the store; None: the median of the data, coarser where max_patch asks for it.
        patch: voxels that the encoder sees; None: the median size at that spacing.
        max_patch: the longest patch axis that None may choose.
        preset: augmentations.
        laterality: left and right differ in meaning, so views are never mirrored.
        domains: manifest columns that tell domains apart.
        licence, citation: of the data, where it is a public set.
    """

    name: str
    modality: tuple[str, ...]
    spatial_dims: Literal[2, 3]
    normalisation: Literal["window", "zscore", "percentile"]
    sizing: Literal["spacing", "fit"]
    max_patch: int
    preset: Literal["ct", "mr", "xray"]
    laterality: bool = True
    window: tuple[float, float] | None = None
    clip: tuple[float, float] | None = None
    spacing_mm: tuple[float, ...] | None = None
    patch: tuple[int, ...] | None = None
    domains: tuple[str, ...] = ()
    licence: str = ""
    citation: str = ""

    def accepts(self, manifest: pd.DataFrame) -> pd.Series:
        """Which rows of a manifest this spec is for."""
        return manifest["modality"].isin(self.modality) & (spatial_dims(manifest) == self.spatial_dims)

    def filled(self, manifest: pd.DataFrame) -> "DataSpec":
        """This spec with patch and spacing chosen from the volumes that it accepts, where it leaves them open.

        The patch is to hold the whole of a median volume: where that is longer than max_patch, voxels are made
        coarser. Nothing is ever made finer than the median.
        """
        shapes = np.array(manifest["shape"].tolist(), dtype=float)
        size = np.median(shapes, axis=0)
        if self.sizing == "fit":
            patch = self.patch or _whole(size / max(1.0, size.max() / self.max_patch))
            return replace(self, patch=patch)
        spacings = np.array(manifest["spacing_mm"].tolist(), dtype=float)
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
    def integers(self) -> bool:
        """Whether the store keeps int16, as CT is recorded."""
        return "CT" in self.modality

    def for_volume(self, spacing_mm: tuple[float, ...]) -> "DataSpec":
        """This spec as it applies to one volume: where its spacing is unknown, its size in voxels is all there is."""
        return self if np.isfinite(spacing_mm).all() else replace(self, sizing="fit")

    def digest(self) -> str:
        """What of this spec decides the contents of the store, as 16 hex digits."""
        size = self.patch if self.sizing == "fit" else self.spacing_mm
        kept = [STORE_VERSION, self.sizing, _floats(size), _floats(self.clip), self.integers]
        return hashlib.blake2b(json.dumps(kept).encode(), digest_size=8).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for YAML and bundles."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def load_spec(path: Path) -> DataSpec:
    """Read a spec from a YAML file, or by the name of one that ships with medclr."""
    shipped = {p.stem: p for p in sorted(_folder().glob("*.yaml"))}
    file = path if path.is_file() else shipped.get(str(path))
    if file is None:
        raise UsageError(f"--spec {path}: no such file; the specs that ship are {', '.join(shipped)}")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--spec {path}: not YAML ({type(error).__name__})") from None
    return parse_spec(content, f"--spec {path}")


def parse_spec(content: Any, source: str) -> DataSpec:
    """Validate a table of keys and values; `source` names it in errors."""
    if not isinstance(content, dict):
        raise UsageError(f"{source}: holds no table of keys and values")
    known = {f.name: f for f in fields(DataSpec)}
    if unknown := sorted(map(str, set(content) - set(known))):
        raise UsageError(f"{source}: unknown keys {', '.join(unknown)}; known are {', '.join(known)}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
    try:
        spec = DataSpec(**values)  # type: ignore[arg-type]  # checked below
    except TypeError as error:
        raise UsageError(f"{source}: {str(error).removeprefix('DataSpec.__init__() ')}") from None
    _check(spec, source)
    return spec


def choose_spec(manifest: pd.DataFrame) -> DataSpec:
    """The shipped spec that accepts most of a manifest, its patch and spacing left open."""
    specs = [load_spec(path) for path in sorted(_folder().glob("*.yaml"))]
    general = [spec for spec in specs if not spec.citation]  # a public set's own spec must be asked for
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
        "preset": ("ct", "mr", "xray"),
        "laterality": (True, False),
    }
    for key, allowed in choices.items():
        if getattr(spec, key) not in allowed:
            raise UsageError(f"{source}: {key} is {getattr(spec, key)!r}; it must be one of {allowed}")
    for key in ("modality", "domains"):
        value = getattr(spec, key)
        if not (isinstance(value, tuple) and all(isinstance(item, str) for item in value)):
            raise UsageError(f"{source}: {key} is {value!r}; it must be a list of texts")
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
    if spec.normalisation == "window" and spec.window is None:
        raise UsageError(f"{source}: normalisation is window, but there is no window")
    if not isinstance(spec.max_patch, int) or spec.max_patch < 8:
        raise UsageError(f"{source}: max_patch is {spec.max_patch!r}; it must be a whole number, 8 or more")


def _floats(values: tuple[float, ...] | None) -> list[float] | None:
    return None if values is None else [float(value) for value in values]


def _whole(size: Any) -> tuple[int, ...]:
    return tuple(max(8, int(side)) for side in np.round(size))


def _folder() -> Path:
    here = Path(__file__).resolve().parent.parent
    installed = here / "data_specs"
    return installed if installed.is_dir() else here.parent / "data_specs"
