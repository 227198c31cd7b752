"""`medclr scan`: what is in a folder, what was skipped and why, and the manifest."""

from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from medclr.config import PreviewConfig, ReadingConfig, ScanConfig, StoreConfig
from medclr.data.candidate import Skipped
from medclr.data.discover import check_folder, discover
from medclr.data.identity import load_key
from medclr.data.manifest import build_manifest, skipped_frame, spatial_dims
from medclr.data.spec import DataSpec, choose_spec, load_spec
from medclr.data.thumbnail import fair_sample, thumbnails
from medclr.errors import REASONS, DataError, TooManySkipped
from medclr.reporting.console import counted, progress, say
from medclr.reporting.run import Run, hardware, next_command, versions
from medclr.reporting.scan_page import scan_page

READING = ("data", "key_file", "burned_in", "tilt", "uneven", "workers")  # flags that say how scans are read
MOST_PICTURES = 60  # on a page
_NO_FAULT = {"NOT_AN_IMAGE", "OTHER_KIND"}  # archives hold reports, and volumes that nobody asked for


def scan(config: ScanConfig) -> pd.DataFrame:
    """Find the volumes in a folder by their headers alone, and write the manifest.

    Returns:
        The manifest; pixel hashes are empty until `prepare` has decoded the pixels.
    """
    check_inputs(config)
    run = Run.open("scan", config, config.out)
    say(f"run folder: {run.folder}")
    manifest, skipped = survey(config, run)
    summary = summarise(manifest, skipped)
    run.write_json("scan.json", summary)
    page = _report(config, run, manifest, skipped, summary["files"]) if config.report else None
    run.finish({"volumes": len(manifest), "skipped_files": len(skipped)})
    say(f"wrote {run.folder}: scan.json; private/ has manifest.parquet, skipped.csv and keys.csv")
    if page:
        say(f"wrote {page}")
    say(f"next: {next_command('pretrain', config, READING)}")
    check_skipped(config, manifest, skipped)
    return manifest


def check_inputs(config: ReadingConfig) -> None:
    """Raise UsageError for what a new run would remember, and could not be put right in its folder."""
    if config.out is not None and (config.out / "run.json").exists():
        return  # it may go on without the scans
    check_folder(config.data)
    if isinstance(config, StoreConfig | PreviewConfig) and config.spec is not None:
        load_spec(config.spec)


def survey(config: ReadingConfig, run: Run) -> tuple[pd.DataFrame, list[Skipped]]:
    """Scan a folder into a run's `private/`, and say what was found."""
    names = load_key(config.key_file)
    with progress("reading headers") as show:
        candidates, skipped = discover(config.data, config.workers, config.burned_in, show, config.tilt, config.uneven)
    run.write_frame("private/skipped.csv", skipped_frame(skipped))
    refuse_faults(config, run, skipped)
    if not candidates:
        why = ", ".join(f"{reason} {n:,}" for reason, n, _ in _reasons(skipped))
        found = f"{counted(len(skipped), 'file')} skipped ({why})" if skipped else "the folder is empty"
        raise DataError(
            f"--data {config.data}: no volume in it; {found}. Point --data at DICOM, NIfTI, MetaImage, PNG, JPEG or "
            "MedMNIST files"
        )
    manifest, keys = build_manifest(candidates, names)
    run.write_frame("private/keys.csv", keys)
    run.write_frame("private/manifest.parquet", manifest)
    _tell(manifest, skipped)
    return manifest, skipped


def refuse_faults(config: ReadingConfig, run: Run, skipped: list[Skipped]) -> None:
    """Under --strict, raise DataError where a file was skipped for a fault."""
    faults = _faults(skipped)
    if config.strict and faults:
        first = faults[0]
        raise DataError(
            f"--strict: {counted(len(faults), 'file')} cannot be used; the first is {first.reason}: {first.message}. "
            f"All are listed in {run.private / 'skipped.csv'}"
        )


def check_skipped(config: ReadingConfig, manifest: pd.DataFrame, skipped: list[Skipped]) -> None:
    """Raise TooManySkipped where more files were skipped for a fault than --max-skipped allows."""
    faults = len(_faults(skipped))
    # An archive of images is one file of many volumes, a series is many files of one.
    most = max(_files(manifest) + len(_whole(skipped)), len(manifest) + len(skipped))
    if faults > config.max_skipped * most:
        raise TooManySkipped(
            f"{faults:,} of {most:,} files or volumes skipped for a fault ({faults / most:.1%}), "
            f"more than --max-skipped {config.max_skipped:g}; private/skipped.csv says why for each"
        )


def summarise(manifest: pd.DataFrame, skipped: list[Skipped]) -> dict[str, Any]:
    """Counts that may be shared: every file is either used or skipped; of one that is used, parts may be skipped."""
    n_used, n_skipped = _files(manifest), len(_whole(skipped))
    columns = ("modality", "manufacturer", "model", "kernel", "orientation", "site")
    return {
        "files": {"all": n_used + n_skipped, "used": n_used, "skipped": n_skipped},
        "volumes": len(manifest),
        "patients": int(manifest["patient_key"].nunique()),
        "patients_known": bool(manifest["patient_known"].all()),
        "spatial_dims": _counts(spatial_dims(manifest)),
        "shape": _counts(manifest["shape"].map(lambda shape: " x ".join(map(str, shape)))),
        "spacing_mm": _counts(manifest["spacing_mm"].map(lambda steps: " x ".join(f"{s:.2f}" for s in steps))),
        **{name: _counts(manifest[name]) for name in columns},
        "skipped": {
            reason: {"files": files, "parts_of_used_files": parts, "meaning": REASONS[reason].cause}
            for reason, files, parts in _reasons(skipped)
        },
    }


def _report(
    config: ScanConfig, run: Run, manifest: pd.DataFrame, skipped: list[Skipped], files: dict[str, int]
) -> Path:
    """Write the page of a scan, and take away the one that an earlier scan wrote to the other place."""
    sample = fair_sample(manifest, MOST_PICTURES)
    with progress("drawing middle slices") as show:
        pictures = thumbnails(sample, config.data, config.workers, show)
    html = scan_page(
        manifest,
        skipped,
        files,
        sample,
        pictures,
        _chosen(manifest),
        {
            "command_line": run.command_line,
            "versions": versions(),
            "hardware": hardware(),
            "shared": config.share_images,
            "burned_in": config.burned_in,
        },
    )
    names = ["private/scan.html", "scan.html"]
    name = names.pop(config.share_images)
    path = run.write_text(name, html)
    (run.folder / names[0]).unlink(missing_ok=True)
    return path


def _chosen(manifest: pd.DataFrame) -> DataSpec | None:
    """What `prepare` would choose for this manifest; None where no spec that ships is for it."""
    try:
        spec = choose_spec(manifest)
    except DataError:
        return None
    return spec.filled(manifest[spec.accepts(manifest)])


def _tell(manifest: pd.DataFrame, skipped: list[Skipped]) -> None:
    known = "" if manifest["patient_known"].all() else " (not all files name their patient)"
    used, unused = _files(manifest), len(_whole(skipped))
    say(f"{counted(len(manifest), 'volume')} of {counted(manifest['patient_key'].nunique(), 'patient')}{known}")
    kinds = manifest.groupby([manifest["modality"], spatial_dims(manifest), manifest["manufacturer"]], sort=True)
    for (modality, dims, manufacturer), group in sorted(kinds, key=lambda kind: -len(kind[1])):
        say(f"  {len(group):>8,}  {modality or 'unknown modality'} {dims}D  {manufacturer or 'unknown manufacturer'}")
    say(f"{counted(used + unused, 'file')}: {used:,} used, {unused:,} skipped")
    for reason, files, parts in _reasons(skipped):
        also = f" (and {counted(parts, 'volume')} of used files)" if parts else ""
        say(f"  {files:>8,}  {reason}: {REASONS[reason].cause}{also}")


def _files(manifest: pd.DataFrame) -> int:
    """Files that volumes are made of; several volumes may come from one."""
    return len({item for source in manifest["source"] for item in source})


def _faults(skipped: list[Skipped]) -> list[Skipped]:
    return [item for item in skipped if item.reason not in _NO_FAULT]


def _whole(skipped: list[Skipped]) -> list[Skipped]:
    """Files of which nothing is used."""
    return [item for item in skipped if item.part is None]


def _reasons(skipped: list[Skipped]) -> list[tuple[str, int, int]]:
    """Each reason with the files, and the parts of used files, that it stands for; the commonest first."""
    rows, files = Counter(item.reason for item in skipped), Counter(item.reason for item in _whole(skipped))
    return [(reason, files[reason], n - files[reason]) for reason, n in rows.most_common()]


def _counts(values: "pd.Series[Any]") -> dict[str, int]:
    return {str(value) or "unknown": int(n) for value, n in values.value_counts().items()}
