"""What discovery finds, and what it passes over."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True)
class Candidate:
    """Files that together should make one volume, known from their headers alone.

    The identifiers are raw: they become pseudonyms in the manifest and never leave `private/`.

    Attributes:
        reader: which module reads it.
        paths: relative to the root, with "/"; in geometric order along the slice normal.
        member: tells the volumes of one file apart: the first frame; the image inside an .npz, counted over train,
            val and test; else 0.
        patient_known: False where the files name no patient and `patient_id` is only a stand-in.
        modality: as DICOM writes it (CT, MR, DX, ...); "" where unknown.
        field_strength: in tesla; NaN where unknown.
        shape: the spatial shape that the volume will have.
        spacing_mm: its spacing, of the same length; NaN where unknown.
        orientation: where the file's own axes point (of L, R, A, P, S, I), e.g. "LPS".
        notes: what had to be assumed, without patient data.
        frames: of a multi-frame image, or tiles of a mosaic, in geometric order; () where each file is one plane.
    """

    reader: Literal["dicom", "metaimage", "nifti", "npz", "picture"]
    paths: tuple[str, ...]
    member: int
    patient_id: str
    patient_known: bool
    study_uid: str
    series_uid: str
    site: str
    modality: str
    manufacturer: str
    model: str
    kernel: str
    field_strength: float
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    orientation: str
    notes: tuple[str, ...] = ()
    frames: tuple[int, ...] = ()


def unnamed(identity: str, **found: Any) -> Candidate:
    """A candidate of a format that knows neither patient nor scanner; `identity` stands in for patient and series."""
    blank = dict.fromkeys(("site", "modality", "manufacturer", "model", "kernel"), "")
    ids = dict.fromkeys(("patient_id", "study_uid", "series_uid"), identity)
    return Candidate(**{**blank, **ids, "patient_known": False, "field_strength": float("nan"), **found})


@dataclass(frozen=True)
class Skipped:
    """One file that becomes part of no volume: a code of `medclr.errors.REASONS` and one line.

    The message holds no tag value but numbers and what may be shown; only `item` is a path.

    Attributes:
        item: relative to the root.
        part: which volume of the file this is about, where others of it are used; None is the whole file.
    """

    item: str
    reason: str
    message: str
    part: int | None = None


def settled(skipped: Iterable[Skipped], used: set[str]) -> list[Skipped]:
    """One row a file of which nothing is used; of one that is, a row for each part that is not.

    Args:
        skipped: what was skipped, file by file or part by part.
        used: files that volumes are made of.
    """
    rows: dict[tuple[str, int | None], Skipped] = {}
    for one in skipped:
        row = one if one.item in used else replace(one, part=None)
        rows.setdefault((row.item, row.part), row)
    return list(rows.values())
