import contextlib
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

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


# PNG and JPEG


GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20


def seen(path: Path) -> NDArray[np.float32]:
    candidate = image2d.picture(path, path.name)
    volume = image2d.read_picture(path.parent, candidate)
    assert volume.array.shape[1:] == candidate.shape
    assert volume.array.dtype == np.float32
    assert np.isnan(volume.spacing_mm).all()
    rows: NDArray[np.float32] = volume.array[0, ::-1, ::-1].T
    return rows


def test_a_png_is_its_grey_values_turned(tmp_path: Path) -> None:
    for mode, pixels in {
        "L": GREY,
        "I;16": GREY.astype(np.uint16) * 200,
        "RGB": np.stack([GREY] * 3, axis=2),
        "RGBA": np.stack([GREY] * 3 + [np.full_like(GREY, 9)], axis=2),
        "LA": np.stack([GREY, np.full_like(GREY, 9)], axis=2),
    }.items():
        image = Image.fromarray(pixels)
        assert image.mode == mode
        image.save(tmp_path / "a.png")
        np.testing.assert_array_equal(seen(tmp_path / "a.png"), pixels if pixels.ndim == 2 else pixels[..., 0])


def test_a_grey_palette_is_grey(tmp_path: Path) -> None:
    Image.fromarray(GREY).convert("P").save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
    np.testing.assert_array_equal(seen(tmp_path / "a.png"), GREY)


def test_a_jpeg_is_turned_by_its_exif_tag(tmp_path: Path) -> None:
    pixels = np.zeros((16, 24), np.uint8)
    pixels[:, 12:] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned to the right by a quarter
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    shown = seen(tmp_path / "a.jpg")
    assert shown.shape == (24, 16)
    np.testing.assert_allclose(shown, np.rot90(pixels, -1), atol=8)


def test_what_is_no_grey_picture_is_refused(tmp_path: Path) -> None:
    colours = np.stack([GREY, GREY, GREY[::-1]], axis=2)
    Image.fromarray(colours).save(tmp_path / "colour.png")
    Image.fromarray(np.full((5, 5), 7, np.uint8)).save(tmp_path / "flat.png")
    Image.fromarray(GREY[:2]).save(tmp_path / "thin.png")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    for name in ("cut.png", "cut.jpg"):
        Image.fromarray(noise).save(tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:1500])
    Image.fromarray(noise).save(tmp_path / "ended.jpg", quality=50)
    (tmp_path / "ended.jpg").write_bytes((tmp_path / "ended.jpg").read_bytes()[:1500] + b"\xff\xd9")
    (tmp_path / "junk.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"junk" * 20)
    Image.fromarray(GREY).convert("CMYK").save(tmp_path / "print.jpg")
    found = {}
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(Unreadable) as raised:
            seen(path)
        found[path.name] = raised.value.reason
    assert found == {
        "colour.png": "COLOUR",
        "cut.jpg": "TRUNCATED",
        "cut.png": "TRUNCATED",
        "ended.jpg": "TRUNCATED",
        "flat.png": "NOT_FINITE",
        "junk.png": "DECODE",
        "print.jpg": "COLOUR",
        "thin.png": "UNSUPPORTED",
    }


def test_a_picture_of_too_many_pixels_is_refused_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.fromarray(GREY).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">2I", 30_000, 30_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    with pytest.raises(Unreadable) as raised:
        image2d.picture(path, path.name)
    assert raised.value.reason == "TOO_LARGE"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), ending=st.sampled_from(["png", "jpg"]))
def test_a_mutated_picture_is_a_volume_or_a_reason(tmp_path: Path, data: st.DataObject, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20), dtype=np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(8, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(9, len(content)))])
    with contextlib.suppress(Unreadable):
        assert np.isfinite(seen(path)).all()
