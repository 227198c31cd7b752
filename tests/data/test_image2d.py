import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medclr.data import image2d
from medclr.errors import Unreadable


def write(path: Path, n: tuple[int, int, int] = (3, 1, 2), side: tuple[int, ...] = (4, 5)) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    arrays = {
        f"{split}_images": rng.integers(0, 255, (count, *side), np.uint8)
        for split, count in zip(image2d.SPLITS, n, strict=True)
    }
    np.savez_compressed(path, **arrays)
    return arrays


def reason(path: Path) -> str:
    with pytest.raises(Unreadable) as raised:
        image2d.header(path, path.name)
    return raised.value.reason


def test_every_image_is_a_candidate_in_the_order_of_the_splits(tmp_path: Path) -> None:
    arrays = write(tmp_path / "pneumoniamnist.npz")
    found = image2d.header(tmp_path / "pneumoniamnist.npz", "x/pneumoniamnist.npz")
    names = ["train/0", "train/1", "train/2", "val/0", "test/0", "test/1"]
    assert [c.series_uid for c in found] == [f"x/pneumoniamnist.npz#{name}" for name in names]
    assert [c.member for c in found] == list(range(6))
    assert {c.modality for c in found} == {"DX"}
    assert not any(c.patient_known for c in found)
    everything = np.concatenate([arrays[f"{split}_images"] for split in image2d.SPLITS])
    (tmp_path / "x").mkdir()
    (tmp_path / "pneumoniamnist.npz").rename(tmp_path / "x/pneumoniamnist.npz")
    for candidate, image in zip(found, everything, strict=True):
        volume = image2d.read(tmp_path, candidate)
        assert volume.array.shape == (1, *candidate.shape) == (1, 5, 4)
        assert volume.array.dtype == np.float32
        # The first row is the head and the first column the patient's right.
        assert volume.array[0, -1, -1] == image[0, 0]
        assert volume.array[0, 0, -1] == image[0, -1]
        assert all(map(math.isnan, volume.spacing_mm + candidate.spacing_mm))


def test_volumes_keep_their_axes(tmp_path: Path) -> None:
    arrays = write(tmp_path / "adrenalmnist3d.npz", side=(4, 5, 6))
    candidate = image2d.header(tmp_path / "adrenalmnist3d.npz", "adrenalmnist3d.npz")[3]
    volume = image2d.read(tmp_path, candidate)
    np.testing.assert_array_equal(volume.array[0], arrays["val_images"][0])
    assert volume.array.shape[1:] == candidate.shape
    assert candidate.modality == ""


def test_a_changed_archive_is_read_anew(tmp_path: Path) -> None:
    write(tmp_path / "a.npz")
    candidates = image2d.header(tmp_path / "a.npz", "a.npz")
    image2d.read(tmp_path, candidates[0])
    changed = np.arange(20, dtype=np.uint8).reshape(1, 4, 5)
    np.savez(tmp_path / "a.npz", train_images=changed)
    assert image2d.read(tmp_path, candidates[0]).array.max() == 19
    with pytest.raises(Unreadable):
        image2d.read(tmp_path, candidates[5])


def test_what_is_no_archive_of_grey_images_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "colour.npz", side=(4, 4, 3))
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    np.savez(tmp_path / "pickle.npz", train_images=np.array([{}, []], dtype=object))
    (tmp_path / "junk.npz").write_bytes(b"PK\x03\x04 junk")
    found = [reason(tmp_path / f"{name}.npz") for name in ("colour", "other", "pickle", "junk")]
    assert found == ["COLOUR", "NOT_AN_IMAGE", "UNSUPPORTED", "NOT_AN_IMAGE"]


def test_damaged_pixels_are_a_decode_error(tmp_path: Path) -> None:
    write(tmp_path / "a.npz", n=(50, 1, 1))
    candidate = image2d.header(tmp_path / "a.npz", "a.npz")[0]
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[400:500] = bytes(100)
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(Unreadable) as raised:
        image2d.read(tmp_path, candidate)
    assert raised.value.reason == "DECODE"
