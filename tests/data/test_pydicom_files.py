"""All files that pydicom is tested with: each is in a volume, or skipped for a reason that fits."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medclr.data import dicom
from medclr.data.candidate import Candidate, Skipped
from medclr.data.dicom.elements import quick_elements
from medclr.data.discover import discover
from medclr.data.prepare import READERS
from medclr.errors import Unreadable

ROOT = Path(pydicom.__file__).parent / "data" / "test_files"


@pytest.fixture(scope="module")
def found() -> tuple[list[Candidate], list[Skipped]]:
    return discover(ROOT, workers=0)


def test_each_file_is_accounted_for(found: tuple[list[Candidate], list[Skipped]]) -> None:
    candidates, skipped = found
    used = {path for candidate in candidates for path in candidate.paths}
    whole = [item.item for item in skipped if item.part is None]
    on_disk = {p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*") if p.is_file()}
    assert len(on_disk) > 150
    assert used | set(whole) == on_disk
    assert len(whole) + len(used) == len(on_disk)


@pytest.mark.parametrize(
    ("name", "reason", "words"),
    [
        ("MR_truncated.dcm", "TRUNCATED", "8130 of 8192 bytes"),
        ("MR_small_jpeg_ls_lossless.dcm", "DUPLICATE", "a copy"),
        ("MR_small_bigendian.dcm", "DUPLICATE", "a copy"),
        ("CT_small.dcm", "NONUNIFORM", "1 slice"),
        ("image_dfl.dcm", "BURNED_IN", "secondary capture"),  # deflated
        ("rtdose.dcm", "NOT_AN_IMAGE", "dose"),
        ("liver_1frame.dcm", "NOT_AN_IMAGE", "segmentation"),
        ("rtplan.dcm", "NOT_AN_IMAGE", "RT Plan, without rows"),
        ("waveform_ecg.dcm", "NOT_AN_IMAGE", "ECG Waveform, without rows"),
        ("test-SR.dcm", "NOT_AN_IMAGE", "without rows"),
        ("dicomdirtests/DICOMDIR", "NOT_AN_IMAGE", "Media Storage Directory, without rows"),
        ("SC_rgb_jpeg.dcm", "COLOUR", "3 samples"),
        ("examples_palette.dcm", "COLOUR", "palette"),
        ("JPEG2000.dcm", "BURNED_IN", "secondary capture"),
        ("no_meta.dcm", "NOT_DICOM", "no SOP class"),
        ("dicomdirtests/77654033/CT2/17106", "NONUNIFORM", "slice gap 1.25–202 mm"),
        ("dicomdirtests/TINY_ALPHA/PT000000/ST000000/SE000000/IM000000", "TRUNCATED", "before its pixels"),
    ],
)
def test_the_reason_fits(found: tuple[list[Candidate], list[Skipped]], name: str, reason: str, words: str) -> None:
    (item,) = [item for item in found[1] if item.item == name]
    assert item.reason == reason
    assert words in item.message


def test_the_table_in_the_docs_is_what_is_read() -> None:
    """Of pydicom's and pydicom-data's files; `python benchmarks/pydicom_files.py` makes it again."""
    top = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", top / "benchmarks" / "pydicom_files.py"],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(top)},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == (top / "docs" / "pydicom-files.md").read_text(encoding="utf-8")


def test_every_candidate_is_read(found: tuple[list[Candidate], list[Skipped]]) -> None:
    for candidate in found[0]:
        try:
            array = READERS[candidate.reader](ROOT, candidate).array
        except Unreadable:
            continue
        assert np.isfinite(array).all()
        assert array.min() < array.max()
    names = {Path(c.paths[0]).parent.as_posix() for c in found[0]}
    assert {"dicomdirtests/98892001/CT5N", "dicomdirtests/77654033/CR1"} <= names


def test_the_quick_way_tells_the_same_as_pydicom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers read by `quick_elements`, where it does not give up, and by pydicom alone."""
    used = agree(ROOT, monkeypatch)
    assert used > 80


def agree(root: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Compare both ways on all files below a folder; returns on how many the quick way was taken."""
    quick = 0
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        monkeypatch.setattr(dicom.header, "quick_elements", quick_elements)
        one = told(path)
        monkeypatch.setattr(dicom.header, "quick_elements", lambda head: None)
        assert one == told(path), path
        quick += quick_elements(path.read_bytes()[:65536]) is not None
    return quick


def told(path: Path) -> str:
    try:
        return repr(dicom.headers(path, path.name))
    except Unreadable as error:
        return f"{error.reason}: {error}"
