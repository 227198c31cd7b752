"""The table of volumes: one row a volume, pseudonymous ids, nothing of the pixels."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medclr.data.candidate import Candidate, Skipped
from medclr.data.identity import Pseudonymiser

COLUMNS = (
    "volume_id",
    "patient_key",
    "patient_known",
    "study_key",
    "series_key",
    "pixel_hash",
    "modality",
    "site",
    "manufacturer",
    "model",
    "kernel",
    "field_strength",
    "shape",
    "spacing_mm",
    "orientation",
    "n_files",
    "source",
    "member",
    "frames",
    "reader",
    "notes",
)
# Of these, what can tell domains apart.
DOMAINS = ("site", "modality", "manufacturer", "model", "kernel", "field_strength")


def build_manifest(candidates: list[Candidate], names: Pseudonymiser) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Turn candidates into the manifest and the table that leads its pseudonyms back.

    Args:
        candidates: what `discover` found, with raw ids.
        names: the keyed pseudonyms.

    Returns:
        The manifest (COLUMNS; pixel_hash stays empty until `prepare` has decoded the pixels) and keys: kind,
        pseudonym and raw id of each patient, study, series and site. Both belong in a run's `private/`.
    """
    sites = _letters(candidate.site for candidate in candidates)
    keys: dict[tuple[str, str], str] = {}

    def name(kind: str, raw: str) -> str:
        pseudonym = names.pseudonym(kind, raw)
        keys[kind, pseudonym] = raw
        return pseudonym

    rows = [
        {
            "volume_id": names.pseudonym("volume", f"{c.series_uid}\0{c.paths[0]}\0{c.member}"),
            "patient_key": name("patient", c.patient_id),
            "patient_known": c.patient_known,
            "study_key": name("study", c.study_uid),
            "series_key": name("series", c.series_uid),
            "pixel_hash": "",
            "modality": c.modality,
            "site": sites[c.site],
            "manufacturer": c.manufacturer,
            "model": c.model,
            "kernel": c.kernel,
            "field_strength": c.field_strength,
            "shape": list(c.shape),
            "spacing_mm": list(c.spacing_mm),
            "orientation": c.orientation,
            "n_files": len(c.paths),
            "source": list(c.paths),
            "member": c.member,
            "frames": list(c.frames),
            "reader": c.reader,
            "notes": list(c.notes),
        }
        for c in candidates
    ]
    keys |= {("site", letter): raw for raw, letter in sites.items() if raw}
    lookup = pd.DataFrame([(kind, key, raw) for (kind, key), raw in keys.items()], columns=["kind", "pseudonym", "raw"])
    return pd.DataFrame(rows, columns=list(COLUMNS)), lookup


def candidate_of(row: Any) -> Candidate:
    """The candidate behind a manifest row (a named tuple of `itertuples`), for its reader; its raw ids stay blank."""
    return Candidate(
        reader=row.reader,
        paths=tuple(row.source),
        member=int(row.member),
        patient_id="",
        patient_known=bool(row.patient_known),
        study_uid="",
        series_uid="",
        site="",
        modality=row.modality,
        manufacturer=row.manufacturer,
        model=row.model,
        kernel=row.kernel,
        field_strength=float(row.field_strength),
        shape=tuple(int(n) for n in row.shape),
        spacing_mm=tuple(float(s) for s in row.spacing_mm),
        orientation=row.orientation,
        notes=tuple(row.notes),
        frames=tuple(int(frame) for frame in row.frames),
    )


def skipped_frame(skipped: Iterable[Skipped]) -> pd.DataFrame:
    """The table of skipped items: item, reason, message, part; one row a file, or one a part of it."""
    table = pd.DataFrame([astuple(s) for s in skipped], columns=["item", "reason", "message", "part"])
    return table.astype({"part": "Int64"})


def read_skipped(path: Path) -> list[Skipped]:
    """The inverse of `skipped_frame`, from a CSV file."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    rows = table[["item", "reason", "message", "part"]].to_numpy().tolist()
    return [Skipped(item, reason, message, int(part) if part else None) for item, reason, message, part in rows]


def spatial_dims(manifest: pd.DataFrame) -> pd.Series:
    """How many spatial axes each volume has: 2 or 3."""
    return manifest["shape"].map(len)


def domain_names(rows: pd.DataFrame, column: str) -> NDArray[np.object_]:
    """Of which domain each row is by one of DOMAINS, as text; what is not known is "unknown"."""
    values = rows[column].to_numpy(object)
    # Not by pandas: of a number that is missing, its versions make different texts.
    return np.array(["unknown" if value == "" or pd.isna(value) else str(value) for value in values], object)


def kinds(manifest: pd.DataFrame) -> list[str]:
    """The kind of each volume, such as "CT 3D"."""
    pairs = zip(manifest["modality"], manifest["shape"], strict=True)
    return [f"{modality or 'unknown modality'} {len(shape)}D" for modality, shape in pairs]


def _letters(raw_sites: Iterable[str]) -> dict[str, str]:
    """Name sites A, B, …, Z, AA, … with the commonest first; a volume without a site has none."""
    counts = Counter(raw_sites)
    ranked = sorted(counts.keys() - {""}, key=lambda raw: (-counts[raw], raw))
    return {"": "", **{raw: f"site {_letter(rank)}" for rank, raw in enumerate(ranked)}}


def _letter(rank: int) -> str:
    return (_letter(rank // 26 - 1) if rank >= 26 else "") + chr(ord("A") + rank % 26)
