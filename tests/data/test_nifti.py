import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from medclr.data import nifti
from medclr.data.volume import Volume
from medclr.errors import Unreadable

VALUES = np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5)
AFFINE = np.array([[0, 0, 2.0, 1], [-3, 0, 0, 2], [0, 4.0, 0, 3], [0, 0, 0, 1]])


def write(path: Path, values: NDArray[Any] = VALUES, affine: NDArray[Any] | None = AFFINE, **header: Any) -> Path:
    image = nib.Nifti1Image(values, affine, dtype=values.dtype)
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def load(path: Path) -> Volume:
    (candidate,) = nifti.header(path, path.name)
    volume = nifti.read(path.parent, candidate)
    assert volume.array.shape[1:] == candidate.shape
    np.testing.assert_allclose(volume.spacing_mm, candidate.spacing_mm)
    return volume


def reason(path: Path) -> str:
    with pytest.raises(Unreadable) as raised:
        load(path)
    return raised.value.reason


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, ">i2", np.float64])
def test_agrees_with_nibabel(tmp_path: Path, name: str, dtype: str) -> None:
    path = write(tmp_path / name, VALUES.astype(dtype))
    expected = nib.as_closest_canonical(nib.load(path))
    volume = load(path)
    np.testing.assert_array_equal(volume.array[0], expected.get_fdata())
    np.testing.assert_allclose(volume.affine, expected.affine)
    (candidate,) = nifti.header(path, "x/a.nii.gz")
    assert (candidate.orientation, candidate.series_uid) == ("PSR", "x/a")


def test_nifti2_and_pairs(tmp_path: Path) -> None:
    nib.save(nib.Nifti2Image(VALUES, AFFINE), tmp_path / "two.nii")
    np.testing.assert_array_equal(np.sort(load(tmp_path / "two.nii").array, axis=None), np.arange(60))
    nib.save(nib.Nifti1Pair(VALUES, AFFINE), tmp_path / "pair.hdr")
    (candidate,) = nifti.header(tmp_path / "pair.hdr", "pair.hdr", tmp_path / "pair.img", "pair.img")
    assert candidate.paths == ("pair.hdr", "pair.img")
    np.testing.assert_array_equal(nifti.read(tmp_path, candidate).array.sum(), VALUES.sum())
    assert reason(tmp_path / "pair.hdr") == "TRUNCATED"


@pytest.mark.parametrize(
    ("sform", "code", "expected"),
    [
        (np.diag([-2.0, 3.0, 4.0, 1.0]), 1, "about left and right"),
        (np.diag([2.0, 3.0, 8.0, 1.0]), 2, "about the spacing"),
        (np.diag([2.0, 3.0, 8.0, 1.0]), 4, "of an atlas"),
        (nib.affines.from_matvec(np.diag([2.0, 3.0, 4.0]), [9, 9, 9]), 1, "the sform was taken"),
        (np.diag([2.0, 3.0, 4.0, 1.0]), 1, ""),
    ],
)
def test_sform_and_qform_that_disagree(tmp_path: Path, sform: Any, code: int, expected: str) -> None:
    image = nib.Nifti1Image(VALUES, None)
    image.header.set_qform(np.diag([2.0, 3.0, 4.0, 1.0]), 1)
    image.header.set_sform(sform, code)
    nib.save(image, tmp_path / "a.nii")
    if expected.startswith("about"):
        with pytest.raises(Unreadable, match=expected) as raised:
            load(tmp_path / "a.nii")
        assert raised.value.reason == "NO_GEOMETRY"
    else:
        assert expected in " ".join(load(tmp_path / "a.nii").notes)
        assert bool(expected) == bool(load(tmp_path / "a.nii").notes)


@pytest.mark.parametrize("kind", [nib.AnalyzeImage, nib.Spm2AnalyzeImage])
@pytest.mark.parametrize("order", ["<", ">"])
def test_analyze_pairs_lie_as_nibabel_has_them(tmp_path: Path, kind: Any, order: str) -> None:
    header = kind.header_class(endianness=order)
    header.set_data_dtype(np.int16)
    image = kind(VALUES.astype(np.int16), None, header)
    image.header.set_zooms((2.0, 3.0, 4.0))
    nib.save(image, tmp_path / "a.img")
    if kind is nib.Spm2AnalyzeImage:
        content = bytearray((tmp_path / "a.hdr").read_bytes())
        content[112:116] = np.array(0.5, order + "f4").tobytes()  # where SPM keeps its scale
        (tmp_path / "a.hdr").write_bytes(content)
    expected = nib.as_closest_canonical(kind.from_filename(tmp_path / "a.img"))
    (candidate,) = nifti.header(tmp_path / "a.hdr", "a.hdr", tmp_path / "a.img", "a.img")
    volume = nifti.read(tmp_path, candidate)
    np.testing.assert_array_equal(volume.array[0], expected.get_fdata())
    assert volume.spacing_mm == candidate.spacing_mm == (2.0, 3.0, 4.0)
    assert any("exchanged" in note for note in volume.notes)
    content = bytearray((tmp_path / "a.hdr").read_bytes())
    content[252] = 2  # sagittal
    (tmp_path / "a.hdr").write_bytes(content)
    with pytest.raises(Unreadable, match="not transverse"):
        nifti.header(tmp_path / "a.hdr", "a.hdr", tmp_path / "a.img", "a.img")


def test_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VALUES, np.eye(4))
    image.header.set_slope_inter(0.5, -10)
    with (tmp_path / "a.nii").open("wb") as file:
        image.header.set_data_offset(352)
        image.header.write_to(file)
        file.write(VALUES.tobytes(order="F"))
    np.testing.assert_allclose(load(tmp_path / "a.nii").array[0], VALUES * 0.5 - 10)


def test_the_sform_wins_then_the_qform_then_a_note(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VALUES, None)
    image.header.set_sform(np.diag([2.0, 2, 2, 1]), 4)
    image.header.set_qform(np.diag([3.0, 3, 3, 1]), 1)
    found = []
    for sform, qform in [(4, 1), (0, 1), (0, 0)]:
        image.header["sform_code"], image.header["qform_code"] = sform, qform
        with (tmp_path / "a.nii").open("wb") as file:
            image.header.set_data_offset(352)
            image.header.write_to(file)
            file.write(VALUES.tobytes(order="F"))
        volume = load(tmp_path / "a.nii")
        found.append((volume.spacing_mm[0], len(volume.notes)))
    assert found == [(2.0, 1), (3.0, 0), (3.0, 1)]


@pytest.mark.parametrize(("unit", "factor"), [("mm", 1), ("micron", 0.001), ("meter", 1)])
def test_units_are_converted_where_that_is_plausible(tmp_path: Path, unit: str, factor: float) -> None:
    image = nib.Nifti1Image(VALUES, np.diag([600.0, 600, 600, 1]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii")
    assert load(tmp_path / "a.nii").spacing_mm[0] == pytest.approx(600 * factor)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_each_time_of_a_4d_file_is_a_volume_of_one_patient(tmp_path: Path, name: str) -> None:
    values = np.random.default_rng(0).integers(0, 99, (3, 4, 5, 2, 3)).astype(np.int16)
    candidates = nifti.header(write(tmp_path / name, values), name)
    assert [c.member for c in candidates] == list(range(6))
    assert {c.patient_id for c in candidates} == {"a"}
    image = nib.Nifti1Image(values.reshape(3, 4, 5, 6, order="F"), AFFINE)
    for candidate, expected in zip(candidates, nib.four_to_three(image), strict=True):
        volume = nifti.read(tmp_path, candidate)
        np.testing.assert_array_equal(volume.array[0], nib.as_closest_canonical(expected).get_fdata())
        assert volume.array.shape[1:] == candidate.shape


def test_a_4d_file_that_ends_early_is_truncated(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", np.stack([VALUES] * 3, axis=3))
    path.write_bytes(path.read_bytes()[:-1])
    assert reason(path) == "TRUNCATED"


def test_a_small_file_that_claims_a_million_volumes_is_too_large(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii.gz", np.zeros((3, 3, 3, 30_000), np.uint8))
    assert path.stat().st_size < 20_000
    assert reason(path) == "TOO_LARGE"


@pytest.mark.parametrize("intent", [1004, 1005, 1006, 1007, 1008, 1010, 2003, 2004])
def test_vectors_and_matrices_are_no_volumes(tmp_path: Path, intent: int) -> None:
    assert reason(write(tmp_path / "a.nii", np.stack([VALUES] * 3, axis=3), intent_code=intent)) == "UNSUPPORTED"


def test_trailing_axes_of_one_are_dropped(tmp_path: Path) -> None:
    assert load(write(tmp_path / "a.nii", VALUES[..., None, None])).array.shape == (1, 5, 3, 4)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.zeros((4, 4), np.int16), "UNSUPPORTED"),
        (np.zeros((4, 4, 1), np.int16), "UNSUPPORTED"),
        (np.zeros((4, 4, 4), np.complex64), "UNSUPPORTED"),
        (np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "COLOUR"),
        (np.zeros((4, 4, 4), np.int16), "NOT_FINITE"),
        (np.full((4, 4, 4), np.nan, np.float32), "NOT_FINITE"),
    ],
)
def test_what_is_no_grey_volume_is_refused(tmp_path: Path, values: NDArray[Any], expected: str) -> None:
    assert reason(write(tmp_path / "a.nii", values)) == expected


def test_values_that_are_not_finite_become_the_minimum(tmp_path: Path) -> None:
    values = VALUES.astype(np.float32)
    values[0, 0, 0], values[1, 1, 1] = np.nan, np.inf
    volume = load(write(tmp_path / "a.nii", values, np.eye(4)))
    assert volume.array[0, 0, 0, 0] == volume.array[0, 1, 1, 1] == 1
    assert volume.notes == ("2 voxels that are not finite set to the minimum",)


def test_truncation_is_told_from_the_header_or_the_stream(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Unreadable) as raised:
        nifti.header(path, "a.nii")
    assert raised.value.reason == "TRUNCATED"
    rng = np.random.default_rng(0)
    zipped = write(tmp_path / "b.nii.gz", rng.integers(0, 9999, (20, 20, 20), np.int16))
    zipped.write_bytes(zipped.read_bytes()[:-2000])
    nifti.header(zipped, "b.nii.gz")
    assert reason(zipped) == "TRUNCATED"


def test_what_nibabel_finds_odd_is_not_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.nii")
    content = bytearray(path.read_bytes())
    content[0:4] = b"\x07\0\0\0"  # the size of the header, which nibabel logs that it mends
    path.write_bytes(content)
    load(path)
    assert caplog.records == []
    nib.load(path)
    assert caplog.records  # nibabel does tell, and is not left silent


def test_a_wrong_checksum_of_a_4d_file_is_told(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 9999, (20, 20, 20, 3), np.int16)
    path = write(tmp_path / "a.nii.gz", values)
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)
    with pytest.raises(Unreadable) as raised:
        nifti.read(tmp_path, nifti.header(path, "a.nii.gz")[1])
    assert raised.value.reason == "DECODE"


def test_voxels_within_the_header_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii")
    content = bytearray(path.read_bytes())
    content[108:112] = np.float32(0).tobytes()
    path.write_bytes(content)
    assert reason(path) == "DECODE"


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_absurd_spacing_is_no_geometry(tmp_path: Path, scale: float) -> None:
    assert reason(write(tmp_path / "a.nii", affine=np.diag([scale, scale, scale, 1]))) == "NO_GEOMETRY"


def test_a_wrong_checksum_is_told(tmp_path: Path) -> None:
    # Larger than gzip's buffer, so that the last voxel is read before the end of the stream.
    values = np.random.default_rng(0).integers(0, 9999, (40, 40, 40), np.int16)
    path = write(tmp_path / "a.nii.gz", values)
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)
    assert reason(path) == "DECODE"


@pytest.mark.parametrize(("side", "expected"), [(300, "TRUNCATED"), (30000, "TOO_LARGE")])
def test_claims_beyond_the_file_are_refused_unread(tmp_path: Path, side: int, expected: str) -> None:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header["dim"] = [3, side, side, side, 1, 1, 1, 1]
    header["magic"], header["vox_offset"] = b"n+1", 352
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(header.binaryblock + b"\0" * 99))
    with pytest.raises(Unreadable) as raised:
        nifti.header(tmp_path / "a.nii.gz", "a.nii.gz")
    assert raised.value.reason == expected


def test_a_singular_affine_is_no_geometry(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", sform_code=1, qform_code=0)
    content = bytearray(path.read_bytes())
    content[280:328] = b"\0" * 48
    path.write_bytes(content)
    assert reason(path) == "NO_GEOMETRY"


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), zipped=st.booleans())
def test_a_mutated_file_is_a_volume_or_a_reason(tmp_path: Path, data: st.DataObject, zipped: bool) -> None:
    path = write(tmp_path / ("a.nii.gz" if zipped else "a.nii"))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, min(len(content), 400) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        volume = load(path)
    except Unreadable:
        return
    assert np.isfinite(volume.array).all()
    assert np.isfinite(volume.affine).all()
