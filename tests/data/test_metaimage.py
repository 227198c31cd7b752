"""MetaImage files, with SimpleITK, whose format it is, as the judge."""

import contextlib
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from medclr.data.discover import discover
from medclr.data.prepare import READERS
from medclr.data.volume import Volume
from medclr.errors import Unreadable

VALUES = np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5) - 20
# Columns are where the axes point, in LPS: back, head and, askew, left.
AXES = np.array([[0, 0, 1], [np.cos(0.2), -np.sin(0.2), 0], [np.sin(0.2), np.cos(0.2), 0]])


def write(path: Path, values: NDArray[Any] = VALUES, zipped: bool = False) -> sitk.Image:
    image = sitk.GetImageFromArray(values)  # (k, j, i)
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-5.0, 30.0, -100.5))
    image.SetDirection(AXES.ravel().tolist())
    sitk.WriteImage(image, str(path), zipped)
    return image


def only(root: Path) -> Volume:
    (candidate,), skipped = discover(root, workers=0)
    assert skipped == []
    assert sorted(candidate.paths) == sorted(path.name for path in root.iterdir())
    volume = READERS[candidate.reader](root, candidate)
    assert volume.array.shape[1:] == candidate.shape
    assert volume.spacing_mm == pytest.approx(candidate.spacing_mm)
    return volume


def reasons(root: Path) -> set[str]:
    candidates, skipped = discover(root, workers=0)
    if not candidates:
        assert {one.item for one in skipped} == {path.name for path in root.iterdir()}
        return {one.reason for one in skipped}
    with pytest.raises(Unreadable) as raised:
        READERS[candidates[0].reader](root, candidates[0])
    return {raised.value.reason}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", ["a.mha", "a.mhd"])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint32, np.float32, np.float64, np.int64])
def test_every_voxel_is_where_simpleitk_has_it(tmp_path: Path, name: str, dtype: type, zipped: bool) -> None:
    image = write(tmp_path / name, VALUES.astype(dtype), zipped)
    volume = only(tmp_path)
    assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")
    for i, j, k in [(0, 0, 0), (4, 0, 0), (0, 3, 0), (0, 0, 2), (2, 1, 1)]:
        left, back, head = image.TransformIndexToPhysicalPoint((i, j, k))
        at = np.linalg.solve(volume.affine, [-left, -back, head, 1])[:3]
        np.testing.assert_allclose(at, np.rint(at), atol=1e-9)
        assert volume.array[0][tuple(np.rint(at).astype(int))] == image.GetPixel(i, j, k)


def change(path: Path, **fields: str) -> None:
    """Give header fields other values; a field that is not there goes before all others."""
    content = path.read_bytes()
    for name, value in fields.items():
        line = f"{name} = {value}\n".encode()
        before = next((old for old in content.splitlines(keepends=True) if old.startswith(name.encode())), None)
        content = line + content if before is None else content.replace(before, line, 1)
    path.write_bytes(content)


def test_the_other_byte_order_and_a_header_before_the_voxels(tmp_path: Path) -> None:
    write(tmp_path / "a.mhd")
    expected = only(tmp_path).array
    raw = tmp_path / "a.raw"
    raw.write_bytes(b"a header" + np.frombuffer(raw.read_bytes(), "<i2").astype(">i2").tobytes())
    for size in ("8", "-1"):
        change(tmp_path / "a.mhd", BinaryDataByteOrderMSB="True", HeaderSize=size)
        np.testing.assert_array_equal(only(tmp_path).array, expected)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"DimSize": "5 4"}, "UNSUPPORTED"),
        ({"DimSize": "5 4 2"}, "UNSUPPORTED"),
        ({"DimSize": "5 4 30"}, "TRUNCATED"),
        ({"DimSize": "5 4000000 4000000"}, "TOO_LARGE"),
        ({"DimSize": "5 4 x"}, "DECODE"),
        ({"HeaderSize": "1"}, "TRUNCATED"),
        ({"ElementType": "MET_LONG"}, "UNSUPPORTED"),
        ({"ElementNumberOfChannels": "3"}, "UNSUPPORTED"),
        ({"ObjectType": "Tube"}, "NOT_AN_IMAGE"),
        ({"BinaryData": "False"}, "UNSUPPORTED"),
        ({"ElementSpacing": "1 0 1"}, "NO_GEOMETRY"),
        ({"ElementSpacing": "1 1"}, "NO_GEOMETRY"),
        ({"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, "NO_GEOMETRY"),
        ({"Offset": "nan 0 0"}, "NO_GEOMETRY"),
        ({"ElementDataFile": "../a.raw"}, "UNSUPPORTED"),
        ({"ElementDataFile": "/etc/passwd"}, "UNSUPPORTED"),
        ({"ElementDataFile": "LIST"}, "UNSUPPORTED"),
        ({"CompressedData": "True"}, "DECODE"),
    ],
)
def test_what_is_no_sound_volume_is_refused(tmp_path: Path, fields: dict[str, str], reason: str) -> None:
    write(tmp_path / "a.mhd")
    change(tmp_path / "a.mhd", **fields)
    assert reasons(tmp_path) == {reason}


def test_files_that_lack_a_part(tmp_path: Path) -> None:
    write(tmp_path / "a.mhd", zipped=True)
    packed = tmp_path / "a.zraw"
    packed.write_bytes(packed.read_bytes()[:-30])
    assert reasons(tmp_path) == {"TRUNCATED"}
    packed.unlink()
    assert reasons(tmp_path) == {"UNSUPPORTED"}
    (tmp_path / "a.mhd").write_text("ObjectType = Image\nNDims = 3\n")
    assert reasons(tmp_path) == {"DECODE"}
    write(tmp_path / "a.mhd", np.full((3, 4, 5), 7, np.uint8))
    assert reasons(tmp_path) == {"NOT_FINITE"}


def test_zipped_voxels_are_held_against_their_checksum(tmp_path: Path) -> None:
    write(tmp_path / "a.mhd", zipped=True)
    packed = tmp_path / "a.zraw"
    whole = packed.read_bytes()
    other = zlib.compress(VALUES[::-1].tobytes(order="C"))
    assert zlib.decompress(whole) == VALUES.tobytes()
    packed.write_bytes(other[:-4] + whole[-4:])
    assert reasons(tmp_path) == {"DECODE"}
    packed.write_bytes(whole[:-2])
    assert reasons(tmp_path) == {"TRUNCATED"}


def test_what_is_not_finite_becomes_the_minimum(tmp_path: Path) -> None:
    values = VALUES.astype(np.float32)
    values[1, 1, 1] = np.nan
    write(tmp_path / "a.mha", values)
    volume = only(tmp_path)
    assert np.isfinite(volume.array).all()
    assert volume.notes == ("1 voxels that are not finite set to the minimum",)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from(["a.mha", "a.mhd"]), zipped=st.booleans())
def test_a_mutated_file_is_a_volume_or_a_reason(tmp_path: Path, data: st.DataObject, name: str, zipped: bool) -> None:
    for path in tmp_path.iterdir():
        path.unlink()
    write(tmp_path / name, zipped=zipped)
    content = bytearray((tmp_path / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / name).write_bytes(content[: data.draw(st.integers(1, len(content)))])
    candidates, skipped = discover(tmp_path, workers=0)
    assert {path for one in candidates for path in one.paths} | {one.item for one in skipped} == {
        path.name for path in tmp_path.iterdir()
    }
    for candidate in candidates:
        with contextlib.suppress(Unreadable):
            assert np.isfinite(READERS[candidate.reader](tmp_path, candidate).array).all()
