import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from medclr.data import discover as module
from medclr.data.discover import discover
from medclr.data.prepare import READERS
from medclr.errors import UsageError

Write = Callable[..., Any]


@pytest.fixture
def tree(tmp_path: Path, write_dicom: Write, write_series: Write, stored: NDArray[np.int16]) -> Path:
    """One of everything."""
    root = tmp_path / "data"
    write_series(root / "ct", stored)
    write_dicom(root / "odd/report.dcm", stored[0], SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", Rows=0)
    write_dicom(root / "odd/capture", stored[0], SOPClassUID="1.2.840.10008.5.1.4.1.1.7", Modality="OT")
    (root / "odd/text.dcm").write_text("not at all")
    (root / "odd/nothing").touch()
    (root / "odd/notes.txt").write_text("a note")
    (root / "odd/photo.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (root / "odd/scan.mgz").write_bytes(b"\x1f\x8b\x08\0junk")
    (root / "odd/all.zip").write_bytes(b"PK\x03\x04")
    (root / "nii").mkdir()
    nib.save(nib.Nifti1Image(stored, np.eye(4)), root / "nii/a.nii.gz")
    nib.save(nib.Nifti1Pair(stored, np.eye(4)), root / "nii/pair.hdr")
    nib.save(nib.Nifti1Pair(stored[:, :1], np.eye(4)), root / "nii/thin.hdr")
    (root / "nii/alone.img").write_bytes(b"\0" * 64)
    np.savez(root / "small.npz", train_images=np.zeros((3, 4, 4), np.uint8), test_images=np.ones((2, 4, 4), np.uint8))
    return root


def test_every_file_is_in_one_place(tree: Path) -> None:
    candidates, skipped = discover(tree, workers=0)
    files = sorted(p.relative_to(tree).as_posix() for p in tree.rglob("*") if p.is_file())
    used = {path for candidate in candidates for path in candidate.paths}
    assert sorted([*used, *(one.item for one in skipped)]) == files
    assert [(c.reader, len(c.paths), c.member) for c in candidates] == [
        ("dicom", 4, 0),
        ("nifti", 1, 0),
        ("nifti", 2, 0),
        *(("npz", 1, k) for k in range(5)),
    ]
    assert {one.item: one.reason for one in skipped} == {
        "nii/alone.img": "UNSUPPORTED",
        "nii/thin.hdr": "UNSUPPORTED",
        "nii/thin.img": "UNSUPPORTED",
        "odd/all.zip": "UNSUPPORTED",
        "odd/capture": "BURNED_IN",
        "odd/nothing": "NOT_AN_IMAGE",
        "odd/notes.txt": "NOT_AN_IMAGE",
        "odd/photo.png": "DECODE",
        "odd/report.dcm": "NOT_AN_IMAGE",
        "odd/scan.mgz": "UNSUPPORTED",
        "odd/text.dcm": "NOT_DICOM",
    }
    assert not any("CANARY" in one.message or "P1" in one.message for one in skipped)


def test_names_do_not_matter(tree: Path) -> None:
    (tree / "nii/a.nii.gz").rename(tree / "nii/a.bin")
    for path in (tree / "ct").iterdir():
        path.rename(path.with_suffix(".txt"))
    candidates, _ = discover(tree, workers=0)
    assert [c.reader for c in candidates][:3] == ["dicom", "nifti", "nifti"]


def test_processes_give_what_one_process_gives(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_INLINE", 0)
    monkeypatch.setattr(module, "_CHUNK", 5)
    told: list[tuple[int, int]] = []
    assert repr(discover(tree, workers=2, progress=lambda n, of: told.append((n, of)))) == repr(
        discover(tree, workers=0)
    )
    # The .img files travel with their .hdr.
    assert [n for n, _ in told] == [5, 10, 15, 17]


def test_no_link_is_followed_out(tree: Path, tmp_path: Path) -> None:
    before = discover(tree, workers=0)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret.dcm").write_bytes(next((tree / "ct").iterdir()).read_bytes())
    os.symlink(tmp_path / "outside", tree / "folder")
    os.symlink(tmp_path / "outside/secret.dcm", tree / "file.dcm")
    os.symlink(tree / "ct", tree / "inside")
    os.symlink(tree, tree / "loop")
    os.symlink(tmp_path / "nowhere", tree / "broken")
    candidates, skipped = discover(tree, workers=0)
    assert repr(candidates) == repr(before[0])
    assert {one.item: one.reason for one in set(skipped) - set(before[1])} == {
        "folder": "UNREADABLE",
        "file.dcm": "UNREADABLE",
        "broken": "UNREADABLE",
        "inside": "DUPLICATE",
        "loop": "DUPLICATE",
    }


def test_a_link_to_the_folder_itself_is_fine(tree: Path, tmp_path: Path) -> None:
    os.symlink(tree, tmp_path / "alias")
    assert repr(discover(tmp_path / "alias", workers=0)) == repr(discover(tree, workers=0))


def test_names_that_are_no_text_and_files_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.dcm")).write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe")
    folder = tmp_path / os.fsdecode(b"\xe9t\xe9")
    folder.mkdir()
    (folder / "a").touch()
    (folder / "b").touch()
    candidates, skipped = discover(tmp_path, workers=0)
    assert candidates == []
    assert sorted((one.item, one.reason) for one in skipped) == [
        ("\\xe9t\\xe9/a", "UNREADABLE"),
        ("\\xe9t\\xe9/b", "UNREADABLE"),
        ("caf\\xe9.dcm", "UNREADABLE"),
    ]


@pytest.mark.parametrize("zipped", ["hdr", "img", "both"])
def test_pairs_of_which_either_is_zipped(tmp_path: Path, stored: NDArray[np.int16], zipped: str) -> None:
    nib.save(nib.Nifti1Pair(stored, np.eye(4)), tmp_path / "a.hdr")
    for ending in ("hdr", "img"):
        if zipped in (ending, "both"):
            path = tmp_path / f"a.{ending}"
            (tmp_path / f"a.{ending}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    (candidate,), skipped = discover(tmp_path, workers=0)
    assert skipped == []
    assert candidate.series_uid == "a"
    assert READERS["nifti"](tmp_path, candidate).array.sum() == stored.sum()


def crash(root: Path, ones: Any, others: Any) -> bool:
    """A comparison whose decoder does not survive."""
    os.abort()


def test_a_decoder_that_crashes_does_not_end_the_scan(
    tmp_path: Path, write_series: Write, stored: NDArray[np.int16], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_series(tmp_path, stored)[0]
    (tmp_path / "again").write_bytes(path.read_bytes())
    assert len(discover(tmp_path, workers=0)[0]) == 1
    monkeypatch.setattr(module.dicom, "same_pixels", crash)
    candidates, skipped = discover(tmp_path, workers=0)
    assert candidates == []
    assert {one.reason for one in skipped} == {"DUPLICATE"}


def test_long_names_and_links_in_circles(tmp_path: Path) -> None:
    """Names as long as a file system has them, below a path of more than 300 characters."""
    deep = tmp_path / ("n" * 255) / ("m" * 200)
    deep.mkdir(parents=True)
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(deep / f"{'i' * 251}.png")
    (deep / "up").symlink_to(tmp_path)
    (tmp_path / "round").symlink_to(tmp_path / "back")
    (tmp_path / "back").symlink_to(tmp_path / "round")
    candidates, skipped = discover(tmp_path)
    assert [len(c.paths[0]) for c in candidates] == [255 + 1 + 200 + 1 + 255]
    assert {one.item.split("/")[-1]: one.reason for one in skipped} == {
        "up": "DUPLICATE",
        "round": "UNREADABLE",
        "back": "UNREADABLE",
    }


def test_files_that_vanish_and_folders_that_stay_shut(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walk, scandir = module._walk, os.scandir

    def walked(root: Path) -> Any:
        found = walk(root)
        (root / "odd/notes.txt").unlink()
        next(iter((root / "ct").iterdir())).unlink()
        return found

    def shut(path: Any) -> Any:
        if str(path).endswith("nii"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(module, "_walk", walked)
    monkeypatch.setattr(os, "scandir", shut)
    candidates, skipped = discover(tree, workers=0)
    assert "npz" in {c.reader for c in candidates} <= {"npz", "dicom"}
    why = {one.item: one.reason for one in skipped}
    assert why["nii"] == why["odd/notes.txt"] == "UNREADABLE"
    assert [reason for item, reason in why.items() if item.startswith("ct/")].count("UNREADABLE") == 1


def test_a_folder_that_is_none_is_an_error(tmp_path: Path) -> None:
    assert discover(tmp_path, workers=0) == ([], [])
    with pytest.raises(UsageError, match="no such folder"):
        discover(tmp_path / "none")
