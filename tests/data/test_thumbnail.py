import os

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from medclr.data.discover import discover
from medclr.data.identity import Pseudonymiser
from medclr.data.manifest import build_manifest
from medclr.data.prepare import READERS
from medclr.data.thumbnail import SIDE, WINDOW_HU, fair_sample, thumbnail, thumbnails
from medclr.data.volume import Volume
from medclr.errors import Unreadable


def volume(array, spacing=(1.0, 1.0, 1.0)) -> Volume:
    affine = np.diag([*spacing, *[1.0] * (4 - len(spacing))])
    return Volume(np.asarray(array, dtype=np.float32)[None], affine)


def grey(values, low, high):
    """A transcription of windowing."""
    return np.array([[round(255 * min(1.0, max(0.0, (float(v) - low) / (high - low)))) for v in row] for row in values])


def test_it_is_the_middle_axial_slice_with_right_on_the_left_and_front_above():
    array = np.random.default_rng(0).uniform(-1200, 600, (6, 7, 9))
    expected = [[array[x, y, 4] for x in range(5, -1, -1)] for y in range(6, -1, -1)]
    assert np.array_equal(thumbnail(volume(array), "CT"), grey(expected, *WINDOW_HU))


def test_a_radiograph_is_its_plane_with_the_head_above():
    array = np.random.default_rng(0).uniform(0, 4000, (6, 7))
    expected = [[array[x, y] for x in range(5, -1, -1)] for y in range(6, -1, -1)]
    low, high = np.percentile(array.astype(np.float32).astype(float), (0.5, 99.5))
    assert np.array_equal(thumbnail(volume(array, (np.nan, np.nan)), "DX"), grey(expected, low, high))


@pytest.mark.parametrize(
    ("shape", "plane"), [((4, 60, 50), lambda a: a[2].T[::-1, ::-1]), ((60, 4, 50), lambda a: a[:, 2].T[::-1, ::-1])]
)
def test_few_upright_slices_are_shown_as_they_were_taken(shape, plane):
    array = np.random.default_rng(0).uniform(-1000, 400, shape)
    assert np.array_equal(thumbnail(volume(array), "CT"), grey(plane(array), *WINDOW_HU))


@pytest.mark.parametrize(
    ("shape", "spacing", "expected"),
    [
        ((30, 20, 9), (1.0, 2.0, 5.0), (40, 30)),
        ((512, 512, 9), (0.7, 0.7, 5.0), (SIDE, SIDE)),
        ((512, 256, 9), (0.5, 0.5, 5.0), (SIDE // 2, SIDE)),
        ((400, 300), (np.nan, np.nan), (SIDE * 3 // 4, SIDE)),
        ((28, 28), (0.1, 0.1), (28, 28)),
        ((3, 3, 3), (1e-3, 1e-3, 500.0), (3, 3)),
    ],
)
def test_proportions_are_those_of_the_body(shape, spacing, expected):
    picture = thumbnail(volume(np.random.default_rng(0).random(shape), spacing), "MR")
    assert picture.shape == expected
    assert picture.dtype == np.uint8


def test_pixels_are_averaged_where_they_shrink():
    board = np.where(np.indices((480, 480)).sum(axis=0) % 2, 400.0, -1000.0)
    inside = thumbnail(volume(board, (1.0, 1.0)), "CT")[2:-2, 2:-2].astype(int)
    assert abs(inside - 127.5).max() < 2


def test_almost_and_wholly_flat_slices():
    array = np.zeros((40, 40, 3))
    array[3, 5, 1] = 0.2
    assert np.unique(thumbnail(volume(array), "MR")).tolist() == [0, 255]
    array[3, 5] = 0.0
    array[0, 0, 0] = 9.0  # elsewhere than in the middle
    assert not thumbnail(volume(array), "MR").any()


def table(rows) -> pd.DataFrame:
    """Rows of manufacturer, patient and number of columns."""
    frame = pd.DataFrame(rows, columns=["manufacturer", "patient_key", "side"])
    blank = dict.fromkeys(("site", "model", "kernel"), "")
    shapes = [[side, side, 4] for side in frame["side"]]
    ids = [f"{n * 7919 % 1009:04d}" for n in range(len(frame))]
    return frame.assign(modality="CT", shape=shapes, volume_id=ids, **blank)


def test_kinds_take_turns_and_a_patient_comes_once_before_any_comes_again():
    rows = [("A", "p0", 64)] * 90 + [("A", f"p{n}", 64) for n in range(1, 3)] + [("B", "q", 64)] * 5 + [("C", "r", 64)]
    sample = fair_sample(table(rows), 5)
    assert set(sample["patient_key"]) == {"p0", "p1", "p2", "q", "r"}
    assert sample.index.is_monotonic_increasing
    for most, expected in ((3, {"A": 1, "B": 1, "C": 1}), (7, {"A": 4, "B": 2, "C": 1}), (9, {"A": 5, "B": 3, "C": 1})):
        assert fair_sample(table(rows), most)["manufacturer"].value_counts().to_dict() == expected


def test_a_patient_has_a_volume_of_each_kind_before_a_second_of_one():
    rows = [("A", "p", 64)] * 20 + [("A", "p", 32), ("B", "p", 64)]
    sample = fair_sample(table(rows), 3)
    assert sorted(zip(sample["manufacturer"], sample["side"], strict=True)) == [("A", 32), ("A", 64), ("B", 64)]


def test_a_sample_is_the_same_however_the_manifest_is_sorted():
    rng = np.random.default_rng(0)
    rows = [(rng.choice(["A", "B"]), f"p{rng.integers(50)}", int(rng.integers(3, 6))) for _ in range(300)]
    manifest = table(rows)
    shuffled = manifest.sample(frac=1, random_state=1)
    assert set(fair_sample(manifest, 20)["volume_id"]) == set(fair_sample(shuffled, 20)["volume_id"])


def test_a_sample_larger_than_the_manifest_is_all_of_it():
    assert len(fair_sample(table([("A", "p", 64)] * 3), 60)) == 3


def test_many_kinds_are_sampled_in_no_time():
    sample = fair_sample(
        table([("A", "p", side) for side in range(3, 5_003)] + [("B", f"q{n}", 3) for n in range(5_000)]), 60
    )
    assert sample["manufacturer"].value_counts().to_dict() == {"A": 30, "B": 30}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_volume_that_cannot_be_decoded_says_why_in_its_place(tmp_path, workers):
    rng = np.random.default_rng(0)
    for name in "abc":
        nib.save(nib.Nifti1Image(rng.random((12, 11, 10), dtype=np.float32), np.eye(4)), tmp_path / f"{name}.nii.gz")
    whole = (tmp_path / "b.nii.gz").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(whole[: len(whole) // 2])
    candidates, _ = discover(tmp_path, workers=0)
    manifest, _ = build_manifest(candidates, Pseudonymiser(b"k" * 32))
    seen = []
    first, second, third = thumbnails(manifest, tmp_path, workers, lambda *n: seen.append(n))
    assert isinstance(second, Unreadable)
    assert second.reason == "TRUNCATED"
    for picture, name in ((first, "a"), (third, "c")):
        array = nib.load(tmp_path / f"{name}.nii.gz").get_fdata(dtype=np.float32)
        assert np.array_equal(picture, thumbnail(Volume(array[None], np.eye(4)), ""))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def crash(root, candidate):
    """A reader whose decoder does not survive."""
    os.abort()


def test_a_decoder_that_crashes_costs_its_picture(tmp_path, monkeypatch):
    nib.save(nib.Nifti1Image(np.arange(1000, dtype=np.float32).reshape(10, 10, 10), np.eye(4)), tmp_path / "a.nii")
    manifest, _ = build_manifest(discover(tmp_path, workers=0)[0], Pseudonymiser(b"k" * 32))
    monkeypatch.setitem(READERS, "nifti", crash)
    (picture,) = thumbnails(manifest, tmp_path)
    assert isinstance(picture, Unreadable)
    assert (picture.reason, str(picture)) == ("DECODE", "the decoder crashed (SIGABRT)")
