"""`medclr leakage`: what two sets of scans share: patients, studies, series, pixels, or nearly the same pixels."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from medclr.config import LeakageConfig
from medclr.data.identity import Pseudonymiser, load_key
from medclr.data.labels import read_keyed
from medclr.data.signature import THRESHOLD, near_duplicates
from medclr.errors import DataError, LeakageError, UsageError
from medclr.reporting.console import counted, progress, say
from medclr.reporting.run import Run, read_paths

_NAMED = {"patients": "patient", "studies": "study", "series": "series"}  # what is checked, and its column here
_RAW = {"patient": "patient_id", "study": "study_uid", "series": "series_uid"}


@dataclass(frozen=True)
class _Side:
    """One of the two: rows with id, source, patient, study, series, split, pixel_hash and signature; "" is unknown.

    flag: that named it; manifest: or else a label table; under_key: its pseudonyms are of the key at hand.
    """

    flag: str
    rows: pd.DataFrame
    manifest: bool
    under_key: bool


def leakage(config: LeakageConfig) -> dict[str, Any]:
    """Compare two sets, or one with itself: across patients where it is a manifest, across splits where it is a table.

    Returns:
        What leakage.json holds: per kind the verdict ("shared", "clean" or "not checkable"), how many, and why not.

    Raises:
        LeakageError: patients, studies, series or identical pixels are shared; under --strict near-duplicates too.
    """
    run = Run.open("leakage", config, config.out)
    say(f"run folder: {run.folder}")
    paths = [path for path in (config.first, config.second) if path is not None]
    keys = [key for path in paths if path.is_dir() and (key := read_paths(path).get("key_file"))]
    names = load_key(config.key_file or (keys[0] if keys else None))
    sides = [_read(path, flag, names) for path, flag in zip(paths, ("--first", "--second"), strict=False)]
    for side in sides:
        say(f"{side.flag}: {'manifest' if side.manifest else 'label table'} with {counted(len(side.rows), 'row')}")
    first, second = sides[0], sides[-1]
    within = len(sides) == 1
    checks, shared = {}, []
    for kind, column in _NAMED.items():
        checks[kind], pairs = _named(first, second, column, within)
        shared.append(pairs.assign(kind=kind))
    for kind, compare in (("pixels", _pixels), ("near_duplicates", _near)):
        checks[kind], pairs = compare(first, second, within)
        shared.append(pairs.assign(kind=kind))
    columns = ["kind", "first", "second", "similarity", "first_source", "second_source"]
    run.write_frame("private/shared.csv", pd.concat([frame.reindex(columns=columns) for frame in shared]))
    found = {
        "sides": [{"kind": "manifest" if s.manifest else "label table", "rows": len(s.rows)} for s in sides],
        "threshold": THRESHOLD,
        "checks": checks,
    }
    run.write_json("leakage.json", found)
    run.finish({kind: check["verdict"] for kind, check in checks.items()})
    for kind, check in checks.items():
        say(f"{kind.replace('_', '-')}: {_sentence(kind, check)}")
    say(f"wrote {run.folder}: leakage.json; private/ has shared.csv, which lists what is shared")
    grave = [kind for kind in checks if kind != "near_duplicates" or config.strict]
    leaks = [
        f"{kind.replace('_', '-')} {checks[kind]['shared']:,}" for kind in grave if checks[kind]["verdict"] == "shared"
    ]
    if leaks:
        where = "within --first" if within else "by --first and --second"
        raise LeakageError(
            f"shared {where}: {', '.join(leaks)}. {run.private / 'shared.csv'} lists them; take them out of one side"
        )
    return found


def _read(path: Path, flag: str, names: Pseudonymiser) -> _Side:
    file = path / "private" / "manifest.parquet" if path.is_dir() else path
    if not file.is_file():
        fix = "that run did not finish scanning, or its private/ is gone" if path.is_dir() else "no such file"
        raise UsageError(f"{flag} {path}: {fix}; name a run folder, a manifest.parquet or a label table")
    if file.suffix.lower() == ".parquet" and _is_manifest(file):
        return _Side(flag, _of_manifest(pd.read_parquet(file)), True, _made_under(file.with_name("keys.csv"), names))
    return _Side(flag, _of_labels(read_keyed(file), names), False, True)


def _is_manifest(file: Path) -> bool:
    try:
        return {"volume_id", "patient_key", "pixel_hash"} <= set(pq.read_schema(file).names)
    except (OSError, ValueError):
        raise DataError(f"{file.name}: not a parquet file, or a damaged one; write it again") from None


def _of_manifest(table: pd.DataFrame) -> pd.DataFrame:
    # Other files name no study or series, and their path stands in for it.
    dicom = table["reader"] == "dicom"
    return pd.DataFrame(
        {
            "id": table["volume_id"],
            "source": [source[0] for source in table["source"]],
            "patient": table["patient_key"].where(table["patient_known"].astype(bool), ""),
            "study": table["study_key"].where(dicom, ""),
            "series": table["series_key"].where(dicom, ""),
            "split": "",
            "pixel_hash": table["pixel_hash"],
            "signature": table.get("signature", ""),
        }
    )


def _of_labels(table: pd.DataFrame, names: Pseudonymiser) -> pd.DataFrame:
    rows = pd.DataFrame({"id": [f"row {row}" for row in table.index], "source": ""}, index=table.index)
    for kind, raw in _RAW.items():
        values = table[raw] if raw in table else pd.Series("", index=table.index)
        rows[kind] = [names.pseudonym(kind, value) if value else "" for value in values]
    rows["split"] = table["split"].str.lower() if "split" in table else ""
    return rows.assign(pixel_hash="", signature="").reset_index(drop=True)


def _made_under(keys: Path, names: Pseudonymiser) -> bool:
    """Whether the table beside a manifest shows that its pseudonyms are of this key."""
    if not keys.is_file():
        return False
    table = pd.read_csv(keys, dtype=str, keep_default_na=False, nrows=100)
    # Cells that a spreadsheet would take for a formula are not as they were.
    return any(names.pseudonym(kind, raw) == key for kind, key, raw in table[["kind", "pseudonym", "raw"]].to_numpy())


def _named(first: _Side, second: _Side, column: str, within: bool) -> tuple[dict[str, Any], pd.DataFrame]:
    """Patients, studies or series by pseudonym: equal ones prove, others clear only under one key."""
    if within:
        rows = first.rows[(first.rows[column] != "") & (first.rows["split"] != "")]
        splits = rows.groupby(column)["split"].nunique()
        both = sorted(splits.index[splits > 1])
        why = "" if not first.manifest and (first.rows["split"] != "").all() else "not every row has a split"
        why = "a manifest has no splits; give --second" if first.manifest else why
    else:
        both = sorted(set(first.rows[column]) & set(second.rows[column]) - {""})
        why = "" if first.under_key and second.under_key else "not known to be under one key; give --key-file"
    unknown = _without((first,) if within else (first, second), column, f"no {column}")
    return _verdict(len(both), why or unknown), pd.DataFrame({"first": both, "second": both})


def _pixels(first: _Side, second: _Side, within: bool) -> tuple[dict[str, Any], pd.DataFrame]:
    a, b = (side.rows[side.rows["pixel_hash"] != ""] for side in (first, second))
    a, b = (rows.assign(at=rows.index)[["at", "pixel_hash"]] for rows in (a, b))
    pairs = a.merge(b, on="pixel_hash", suffixes=("_a", "_b"))
    i, j = pairs["at_a"].to_numpy(), pairs["at_b"].to_numpy()
    if within:
        keep = (i < j) & _of_two_patients(first, i, j)
        i, j = i[keep], j[keep]
    why = _without((first,) if within else (first, second), "pixel_hash", "no pixels (scanned, not prepared)")
    return _verdict(len(i), why), _listed(first, second, i, j, np.ones(len(i)))


def _near(first: _Side, second: _Side, within: bool) -> tuple[dict[str, Any], pd.DataFrame]:
    with progress("comparing signatures") as show:
        others = None if within else list(second.rows["signature"])
        i, j, similarity = near_duplicates(list(first.rows["signature"]), others, progress=show)
    hashes = [side.rows["pixel_hash"].to_numpy()[at] for side, at in ((first, i), (second, j))]
    keep = hashes[0] != hashes[1]
    if within:
        keep &= _of_two_patients(first, i, j)
    i, j, similarity = i[keep], j[keep], similarity[keep]
    why = _without((first,) if within else (first, second), "signature", "no signature (not prepared, or a mask)")
    return _verdict(len(i), why), _listed(first, second, i, j, similarity)


def _of_two_patients(side: _Side, i: Any, j: Any) -> Any:
    """Pairs that are not known to be of one patient, who may well have been scanned twice."""
    patients = side.rows["patient"].to_numpy()
    return (patients[i] != patients[j]) | (patients[i] == "")


def _without(sides: tuple[_Side, ...], column: str, what: str) -> str:
    """What keeps a column from being compared, in words; empty where every row has a value."""
    parts = []
    for side in sides:
        n = int((side.rows[column] == "").sum())
        if column in ("pixel_hash", "signature") and not side.manifest:
            parts.append(f"{side.flag} is a label table, without pixels")
        elif n:
            parts.append(f"{n:,} of {counted(len(side.rows), 'row')} of {side.flag} have {what}")
    return "; ".join(parts)


def _verdict(n: int, why: str) -> dict[str, Any]:
    return {"verdict": "shared" if n else "not checkable" if why else "clean", "shared": n, "not_checked": why}


def _listed(first: _Side, second: _Side, i: Any, j: Any, similarity: Any) -> pd.DataFrame:
    a, b = first.rows.iloc[i], second.rows.iloc[j]
    return pd.DataFrame(
        {
            "first": a["id"].to_numpy(),
            "second": b["id"].to_numpy(),
            "similarity": np.round(similarity, 4),
            "first_source": a["source"].to_numpy(),
            "second_source": b["source"].to_numpy(),
        }
    )


def _sentence(kind: str, check: dict[str, Any]) -> str:
    rest = f" (not checkable: {check['not_checked']})" if check["not_checked"] else ""
    if check["verdict"] == "shared":
        return f"{check['shared']:,} shared{rest}"
    return "clean, none shared" if check["verdict"] == "clean" else f"not checkable: {check['not_checked']}"
