import logging
import os
import struct
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from medclr.data import dicom
from medclr.data.candidate import Candidate, Skipped
from medclr.data.dicom import header
from medclr.data.discover import discover
from medclr.data.volume import Volume
from medclr.errors import Unreadable

Write = Callable[..., Any]
DX = {"Modality": "DX", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1"}


def look(
    root: Path, burned_in: bool = False, tilt: dicom.Tilt = "correct", uneven: dicom.Uneven = "skip"
) -> tuple[list[Candidate], list[Skipped]]:
    paths = sorted(p for p in root.rglob("*") if p.is_file())
    headers = [h for p in paths for h in dicom.headers(p, p.relative_to(root).as_posix(), burned_in)]
    return dicom.group(headers, same_pixels=partial(dicom.same_pixels, root))


def only(root: Path) -> Volume:
    candidates, skipped = look(root)
    assert (len(candidates), skipped) == (1, [])
    volume = dicom.read(root, candidates[0])
    assert volume.array.shape[1:] == candidates[0].shape
    np.testing.assert_allclose(volume.spacing_mm, candidates[0].spacing_mm)
    return volume


def reasons(root: Path) -> set[str]:
    candidates, skipped = look(root)
    assert candidates == []
    assert len(skipped) == sum(p.is_file() for p in root.rglob("*"))
    return {one.reason for one in skipped}


def test_axial_slices_are_ordered_by_position_and_turned_to_ras(
    tmp_path: Path, write_series: Write, stored: NDArray[np.int16]
) -> None:
    write_series(tmp_path, stored, PixelSpacing=[0.5, 0.75], RescaleSlope=2, RescaleIntercept=-1000)
    volume = only(tmp_path)
    # Columns run to the left and rows to the back, so both are turned round.
    expected = 2.0 * stored.transpose(2, 1, 0)[::-1, ::-1] - 1000
    np.testing.assert_array_equal(volume.array[0], expected)
    assert volume.spacing_mm == (0.75, 0.5, 2.0)
    # Voxel (column 5, row 4, slice 0), at LPS (-5 + 5·0.75, -7 + 4·0.5, 0), is now the first.
    np.testing.assert_allclose(volume.affine[:3, 3], [1.25, 5.0, 0.0])


@pytest.mark.parametrize(
    ("rows", "columns"),
    [([1, 0, 0], [0, 1, 0]), ([0, 1, 0], [0, 0, -1]), ([1, 0, 0], [0, 0, -1]), ([-1, 0, 0], [0, -1, 0])],
)
def test_every_voxel_lies_where_the_standard_puts_it(
    tmp_path: Path, write_series: Write, stored: NDArray[np.int16], rows: list[int], columns: list[int]
) -> None:
    normal = np.cross(rows, columns)
    angle = np.radians(7)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    directions = np.concatenate([turn @ rows, turn @ columns])
    paths = write_series(
        tmp_path, stored, ImageOrientationPatient=[round(x, 8) for x in directions], PixelSpacing=[2, 3]
    )
    corners = [np.array([10.0, 20.0, 30.0]) + 4 * k * (turn @ normal) for k in range(len(paths))]
    for path, corner in zip(paths, corners, strict=True):
        ds = pydicom.dcmread(path)
        ds.ImagePositionPatient = [round(x, 6) for x in corner]
        ds.save_as(path)
    volume = only(tmp_path)
    for k, r, c in [(0, 0, 0), (3, 4, 5), (1, 2, 3), (2, 0, 5)]:
        lps = corners[k] + 3 * c * directions[:3] + 2 * r * directions[3:]  # PS3.3 C.7.6.2.1.1
        index = np.linalg.solve(volume.affine, [-lps[0], -lps[1], lps[2], 1])[:3]
        assert volume.array[0][tuple(np.rint(index).astype(int))] == stored[k, r, c]
        np.testing.assert_allclose(index, np.rint(index), atol=1e-5)
    assert np.diag(volume.affine)[:3].min() > 0


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, RLELossless, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
def test_transfer_syntaxes_give_the_same_values(
    tmp_path: Path, write_series: Write, stored: NDArray[np.int16], syntax: str
) -> None:
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    write_series(tmp_path, (stored - 60).astype(f"{order}i2"), syntax=syntax)
    assert np.array_equal(np.sort(only(tmp_path).array, axis=None), np.arange(120) - 60)


def test_a_deflated_file_that_inflates_without_end_is_too_large(tmp_path: Path, write_dicom: Write) -> None:
    pixels = np.zeros((8000, 8000), np.uint16)
    path = write_dicom(tmp_path / "bomb.dcm", pixels, syntax=DeflatedExplicitVRLittleEndian)
    assert path.stat().st_size < 200_000
    tracemalloc.start()
    with pytest.raises(Unreadable) as raised:
        dicom.headers(path, path.name)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert raised.value.reason == "TOO_LARGE"
    assert peak < pixels.nbytes


def test_a_deflated_syntax_named_elsewhere_deflates_nothing(
    tmp_path: Path, write_series: Write, stored: NDArray[np.int16]
) -> None:
    write_series(tmp_path, stored, InstanceCreatorUID=DeflatedExplicitVRLittleEndian)
    assert only(tmp_path).array.max() == 119


def test_a_truncated_deflated_file_is_told(tmp_path: Path, write_dicom: Write) -> None:
    noise = np.random.default_rng(0).integers(0, 4096, (64, 64)).astype(np.uint16)
    path = write_dicom(tmp_path / "a.dcm", noise, syntax=DeflatedExplicitVRLittleEndian)
    path.write_bytes(path.read_bytes()[:-3000])
    (header,) = dicom.headers(path, path.name)
    assert header.fault is not None
    assert header.fault[0] == "TRUNCATED"


def test_a_file_without_preamble_is_read(tmp_path: Path, write_series: Write, stored: NDArray[np.int16]) -> None:
    for path in write_series(tmp_path, stored):
        ds = pydicom.dcmread(path)
        del ds.file_meta
        ds.preamble = None
        ds.save_as(path, enforce_file_format=False, implicit_vr=True, little_endian=True)
    assert only(tmp_path).array.max() == 119


@pytest.mark.parametrize("signed", [False, True])
def test_bits_above_those_stored_are_dropped_and_the_sign_extended(
    tmp_path: Path, write_series: Write, signed: bool
) -> None:
    wanted = np.arange(-60, 60) if signed else np.arange(120)
    pixels = (wanted & 0x0FFF).astype(np.uint16) | 0xA000  # an overlay in the high bits
    write_series(
        tmp_path,
        pixels.reshape(4, 5, 6),
        BitsStored=12,
        HighBit=11,
        PixelRepresentation=int(signed),
        RescaleIntercept=0,
    )
    assert np.array_equal(np.sort(only(tmp_path).array, axis=None), wanted)


def test_pixels_in_the_high_bits_are_moved_down(tmp_path: Path, write_series: Write) -> None:
    pixels = (np.arange(120, dtype=np.uint16) << 4 | 5).reshape(4, 5, 6)
    write_series(tmp_path, pixels, BitsStored=12, HighBit=15)
    assert np.array_equal(np.sort(only(tmp_path).array, axis=None), np.arange(120))


def test_what_pydicom_finds_odd_is_not_told(
    tmp_path: Path, write_series: Write, stored: NDArray[np.int16], caplog: pytest.LogCaptureFixture
) -> None:
    for path in write_series(tmp_path, stored):
        content = path.read_bytes()
        assert content.count(b"1.2.840.10008.1.2.1\0") == 1
        path.write_bytes(content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0"))
    with caplog.at_level(logging.DEBUG):
        assert only(tmp_path).array.max() == 119
        assert caplog.records == []
        with pytest.warns(UserWarning, match="found explicit"):
            pydicom.dcmread(path)
    assert caplog.records  # pydicom does tell, and is not left silent


def test_a_uid_that_is_none_is_not_told(tmp_path: Path, write_dicom: Write, stored: NDArray[np.int16]) -> None:
    """Warnings are errors here."""
    path = write_dicom(tmp_path / "a", stored[0], Rows=None, SOPClassUID="1.2.840.10008.5.1.4.1.1.104.1")
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.5.1.4.1.1.104.1", b"1.2.840.CANAR.5.1.4.1.1.104.1"))
    with pytest.raises(Unreadable) as raised:
        dicom.headers(path, "a")
    assert raised.value.reason == "NOT_AN_IMAGE"


def test_the_rescale_of_each_slice_is_its_own(tmp_path: Path, write_dicom: Write) -> None:
    for k in range(3):
        pixels = np.full((4, 4), 10, np.uint16)
        write_dicom(
            tmp_path / f"{k}.dcm",
            pixels,
            Modality="PT",
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            ImagePositionPatient=[0, 0, k],
            RescaleSlope=k + 1,
            RescaleIntercept=0,
        )
    assert only(tmp_path).array[0, 0, 0].tolist() == [10.0, 20.0, 30.0]


def test_a_ct_slice_without_the_rescale_of_the_others_is_refused(
    tmp_path: Path, write_series: Write, stored: NDArray[np.int16]
) -> None:
    path = write_series(tmp_path, stored, RescaleSlope=1, RescaleIntercept=-1024)[2]
    ds = pydicom.dcmread(path)
    del ds.RescaleSlope, ds.RescaleIntercept
    ds.save_as(path)
    (candidate,) = look(tmp_path)[0]
    with pytest.raises(Unreadable, match="on some slices, and none on others"):
        dicom.read(tmp_path, candidate)


@pytest.mark.parametrize("slope", ["0,5", "1e10", "abc", "0.5mm"])
def test_a_slope_that_is_no_number_is_refused(
    tmp_path: Path, write_series: Write, stored: NDArray[np.int16], slope: str
) -> None:
    for path in write_series(tmp_path, stored, Modality="PT", RescaleSlope="1"):
        ds = pydicom.dcmread(path)
        ds[0x00281053]._value = slope
        ds.add_new(0x00281053, "LO", slope)
        ds.save_as(path)
    (candidate,) = look(tmp_path)[0]
    with pytest.raises(Unreadable, match="no number"):
        dicom.read(tmp_path, candidate)


@pytest.mark.parametrize("vr_value", [-2000, 63536])
def test_ct_padding_becomes_air_whatever_its_sign(
    tmp_path: Path, write_series: Write, stored: NDArray[np.int16], vr_value: int
) -> None:
    stored[0, 0, 0] = -2000
    write_series(tmp_path, stored, syntax=ImplicitVRLittleEndian)
    for path in tmp_path.iterdir():
        ds = pydicom.dcmread(path)
        ds.add_new("PixelPaddingValue", "US" if vr_value > 0 else "SS", vr_value)
        ds.save_as(path)
    assert only(tmp_path).array.min() == -1024


def test_padding_that_could_be_tissue_is_ignored_and_noted(
    tmp_path: Path, write_series: Write, stored: NDArray[np.int16]
) -> None:
    write_series(tmp_path, stored, PixelPaddingValue=0)
    volume = only(tmp_path)
    assert volume.array.min() == 0
    assert any("padding" in note for note in volume.notes)


@pytest.mark.parametrize(("photometric", "expected"), [("MONOCHROME1", 4095 - 7), ("MONOCHROME2", 7)])
def test_monochrome1_is_inverted_once(tmp_path: Path, write_dicom: Write, photometric: str, expected: int) -> None:
    pixels = np.full((3, 4), 7, np.uint16)
    pixels[0, 0] = 100
    write_dicom(tmp_path / "a.dcm", pixels, PhotometricInterpretation=photometric, BitsStored=12, HighBit=11, **DX)
    volume = only(tmp_path)
    assert volume.array.shape == (1, 4, 3)
    assert volume.array[0, 0, 0] == expected


@pytest.mark.parametrize(
    ("photometric", "expected"), [("MONOCHROME1", {65535 - 700, 65535 - 900}), ("MONOCHROME2", {700, 900})]
)
def test_monochrome1_is_inverted_after_the_modality_lut(
    tmp_path: Path, write_dicom: Write, photometric: str, expected: set[int]
) -> None:
    table = pydicom.Dataset()
    table.LUTDescriptor = [4, 0, 16]
    table.ModalityLUTType = "US"
    table.add_new(0x00283006, "US", [10, 700, 800, 900])
    pixels = np.ones((3, 4), np.uint16)
    pixels[1:] = 3
    write_dicom(tmp_path / "a.dcm", pixels, PhotometricInterpretation=photometric, ModalityLUTSequence=[table], **DX)
    assert set(only(tmp_path).array.flat) == expected


def test_slices_of_their_own_slopes_are_inverted_about_one_value(tmp_path: Path, write_series: Write) -> None:
    """The same signal in every slice, each written with the slope of its own."""
    signal = np.arange(0, 600, 20, dtype=np.float64).reshape(5, 6)
    slopes = [0.5, 1.0, 2.0, 4.0]
    volume = np.stack([signal / slope for slope in slopes]).astype(np.uint16)
    tags = {"Modality": "MR", "PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "HighBit": 11}
    for path in write_series(tmp_path, volume, **tags):
        ds = pydicom.dcmread(path)
        ds.RescaleSlope, ds.RescaleIntercept = slopes[int(ds.ImagePositionPatient[2]) // 2], 0
        ds.PixelData = (signal / float(ds.RescaleSlope)).astype(np.uint16).tobytes()
        ds.save_as(path)
    array = only(tmp_path).array[0].transpose(2, 1, 0)[:, ::-1, ::-1]
    np.testing.assert_array_equal(array, np.broadcast_to(4 * 4095 - signal, array.shape))


def test_ct_in_monochrome1_keeps_its_hu(tmp_path: Path, write_series: Write, stored: NDArray[np.int16]) -> None:
    write_series(tmp_path, stored, PhotometricInterpretation="MONOCHROME1")
    assert only(tmp_path).array.min() == 0


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (["L", "F"], lambda p: p.T[::-1, ::-1]),
        (["R", "F"], lambda p: p.T[:, ::-1]),
        (["A", "F"], lambda p: p.T[:, ::-1]),
        (["P", "FL"], lambda p: p.T[::-1, ::-1]),
        (["F", "L"], lambda p: p[::-1, ::-1]),
        (["H", "A"], lambda p: p),
        (["L", "L"], lambda p: p.T[::-1, ::-1]),
        (None, lambda p: p.T[::-1, ::-1]),
    ],
)
def test_a_radiograph_is_turned_by_its_patient_orientation(
    tmp_path: Path, write_dicom: Write, orientation: list[str] | None, turned: Callable[[Any], Any]
) -> None:
    pixels = np.arange(12, dtype=np.uint16).reshape(3, 4)
    given_ = {"PatientOrientation": orientation} if orientation else {}
    write_dicom(tmp_path / "a.dcm", pixels, PixelSpacing=[0.2, 0.3], **given_, **DX)
    volume = only(tmp_path)
    np.testing.assert_array_equal(volume.array[0], turned(pixels))
    transposed = orientation is not None and orientation[0] in "FH"
    assert volume.spacing_mm == ((0.2, 0.3) if transposed else (0.3, 0.2))
    assert any("orientation" in note for note in volume.notes) == (orientation in (None, ["L", "L"]))


def test_the_radiographs_of_one_series_are_volumes_each(tmp_path: Path, write_dicom: Write) -> None:
    for k in range(2):
        write_dicom(tmp_path / f"{k}.dcm", np.arange(9, dtype=np.uint8).reshape(3, 3), PixelSpacing=None, **DX)
    candidates, skipped = look(tmp_path)
    assert [c.paths for c in candidates] == [("0.dcm",), ("1.dcm",)]
    assert skipped == []
    assert np.isnan(dicom.read(tmp_path, candidates[0]).spacing_mm).all()


def test_a_missing_slice_is_nonuniform(tmp_path: Path, write_series: Write, stored: NDArray[np.int16]) -> None:
    write_series(tmp_path, np.concatenate([stored, stored]))[3].unlink()
    candidates, skipped = look(tmp_path)
    assert candidates == []
    assert {one.reason for one in skipped} == {"NONUNIFORM"}
    assert "gap 2–4 mm" in skipped[0].message


@pytest.mark.parametrize(("jitter", "accepted"), [(0.04, True), (0.2, False)])
def test_positions_may_be_rounded_but_not_uneven(
    tmp_path: Path, write_dicom: Write, jitter: float, accepted: bool
) -> None:
    for k in range(5):
        write_dicom(
            tmp_path / f"{k}.dcm",
            np.arange(9, dtype=np.int16).reshape(3, 3),
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            ImagePositionPatient=[0, 0, k * 0.625 + jitter * (k == 2)],
        )
    candidates, _ = look(tmp_path)
    assert bool(candidates) == accepted


@pytest.mark.parametrize("step", [0.35, 0.45, 0.625, 0.75, 1.25, 3.75])
@pytest.mark.parametrize("offset", [0.0, 0.03, 0.05, 0.08])
def test_positions_of_one_decimal_are_even(
    tmp_path: Path, write_dicom: Write, stored: NDArray[np.int16], step: float, offset: float
) -> None:
    def write(left_out: int | None) -> None:
        for k in range(12):
            if k != left_out:
                z = round(offset + k * step, 1)
                write_dicom(
                    tmp_path / f"{left_out}/{k}", stored[k % 4], ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
                    ImagePositionPatient=[0, 0, z], RescaleSlope=1, RescaleIntercept=0,
                )  # fmt: skip

    write(None)
    assert only(tmp_path / "None").spacing_mm[2] == pytest.approx(step, abs=0.1 / 11)
    write(6)
    assert reasons(tmp_path / "6") == {"NONUNIFORM"}


def test_series_of_other_patients_or_studies_stay_apart(
    tmp_path: Path, write_series: Write, stored: NDArray[np.int16]
) -> None:
    write_series(tmp_path / "a", stored)
    write_series(tmp_path / "b", stored, PatientID="P2")
    write_series(tmp_path / "c", stored, StudyInstanceUID="1.2.9")
    candidates, skipped = look(tmp_path)
    assert [c.paths[0][0] for c in candidates] == ["a", "b", "c"]
    assert skipped == []


def test_without_a_series_uid_the_folder_is_the_series(
    tmp_path: Path, write_series: Write, stored: NDArray[np.int16]
) -> None:
    write_series(tmp_path / "a", stored, SeriesInstanceUID=None, PatientID="")
    write_series(tmp_path / "b", stored, SeriesInstanceUID=None, PatientID="")
    candidates, _ = look(tmp_path)
    assert [len(c.paths) for c in candidates] == [4, 4]
    assert not any(c.patient_known for c in candidates)


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "NONUNIFORM"),
        ({"PixelSpacing": [1.0, 1.5]}, "NONUNIFORM"),
        ({"ImagePositionPatient": None}, "NO_GEOMETRY"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "NO_GEOMETRY"),
    ],
)
def test_one_odd_slice_spoils_the_series(
    tmp_path: Path, write_series: Write, stored: NDArray[np.int16], odd: dict[str, Any], reason: str
) -> None:
    path = write_series(tmp_path, stored)[1]
    ds = pydicom.dcmread(path)
    for name, value in odd.items():
        if value is None:
            delattr(ds, name)
        else:
            setattr(ds, name, value)
    ds.save_as(path)
    assert reasons(tmp_path) == {reason}


def test_two_slices_are_no_volume(tmp_path: Path, write_series: Write, stored: NDArray[np.int16]) -> None:
    write_series(tmp_path, stored[:2])
    assert reasons(tmp_path) == {"NONUNIFORM"}


def test_a_truncated_slice_takes_its_series_with_it(
    tmp_path: Path, write_series: Write, stored: NDArray[np.int16]
) -> None:
    paths = write_series(tmp_path / "a", stored)
    paths[2].write_bytes(paths[2].read_bytes()[:-10])
    write_series(tmp_path / "b", stored, SeriesInstanceUID="1.2.3.5")
    candidates, skipped = look(tmp_path)
    assert [c.paths[0][0] for c in candidates] == ["b"]
    assert {one.reason for one in skipped} == {"TRUNCATED"}
    own = next(one for one in skipped if one.item.endswith(paths[2].name))
    assert own.message == "50 of 60 bytes of pixels"


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"NumberOfFrames": 2}, "UNSUPPORTED"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "NO_GEOMETRY"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "COLOUR"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "Rows": 1}, "COLOUR"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "BURNED_IN"),
        ({"BurnedInAnnotation": "YES"}, "BURNED_IN"),
    ],
)
def test_what_never_becomes_a_volume_is_refused(
    tmp_path: Path, write_dicom: Write, tags: dict[str, Any], reason: str
) -> None:
    path = write_dicom(tmp_path / "a.dcm", np.arange(9, dtype=np.int16).reshape(3, 3), **tags)
    with pytest.raises(Unreadable) as raised:
        dicom.headers(path, "a.dcm")
    assert raised.value.reason == reason
    if reason == "BURNED_IN":
        dicom.headers(path, "a.dcm", burned_in=True)


def test_header_claims_are_checked_before_anything_is_allocated(tmp_path: Path, write_dicom: Write) -> None:
    write_dicom(tmp_path / "a.dcm", np.arange(9, dtype=np.int16).reshape(3, 3), Rows=60000, Columns=60000)
    assert reasons(tmp_path) == {"TOO_LARGE"}


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"])
@pytest.mark.parametrize("length", [0xFFFFFFF0, 0x7FFFFFFE, 7])
@pytest.mark.parametrize("tag", [0x7FE00010, 0x00280030, 0x0020000E])
def test_a_length_that_is_wrong_costs_its_file_and_no_memory(
    tmp_path: Path, write_series: Write, stored: NDArray[np.int16], syntax: str, length: int, tag: int
) -> None:
    """Of the pixels, of the spacing before them, of the series UID; the other slices are a volume or lack one."""
    paths = write_series(tmp_path, stored, syntax=syntax)
    content = bytearray(paths[1].read_bytes())
    at = content.index(struct.pack("<HH", tag >> 16, tag & 0xFFFF)) + 4
    if syntax.endswith(".2.1"):
        if tag == 0x7FE00010:
            content[at + 4 : at + 8] = struct.pack("<I", length)
        else:
            content[at + 2 : at + 4] = struct.pack("<H", length & 0xFFFF)
    else:
        content[at : at + 4] = struct.pack("<I", length)
    paths[1].write_bytes(content)
    tracemalloc.start()
    try:
        candidates, skipped = discover(tmp_path, workers=0)
        for candidate in candidates:
            dicom.read(tmp_path, candidate)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20e6
    assert paths[1].name in {one.item for one in skipped}
    assert not {one.reason for one in skipped} - {"TRUNCATED", "NOT_DICOM", "DECODE", "NO_GEOMETRY", "NONUNIFORM"}


@pytest.mark.parametrize(("most", "reason"), [(10_000, None), (2_000, "TOO_LARGE")])
@pytest.mark.parametrize("tag", ["ReferencedImageSequence", "PerFrameFunctionalGroupsSequence"])
@pytest.mark.parametrize("undefined", [False, True])
def test_items_without_end_are_not_parsed(
    tmp_path: Path,
    write_dicom: Write,
    stored: NDArray[np.int16],
    monkeypatch: pytest.MonkeyPatch,
    most: int,
    reason: str | None,
    tag: str,
    undefined: bool,
) -> None:
    items = [pydicom.Dataset() for _ in range(600)]
    path = write_dicom(tmp_path / "a.dcm", stored[0], NumberOfFrames=len(items), **{tag: items})
    ds = pydicom.dcmread(path)
    ds[tag].is_undefined_length = undefined
    ds.save_as(path)
    monkeypatch.setattr(header, "HEAD", 4096)
    monkeypatch.setattr(header, "_MOST_READS", most)
    monkeypatch.setattr(header._Metered, "left", most)
    if tag == "ReferencedImageSequence" and not undefined:
        reason = None  # nobody looks into it
    try:
        dicom.headers(path, path.name)
        found = None
    except Unreadable as error:
        found = error.reason
    assert found == (reason or ("UNSUPPORTED" if tag == "ReferencedImageSequence" else None))


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"])
def test_a_tail_of_zeros_is_not_walked(
    tmp_path: Path, write_dicom: Write, stored: NDArray[np.int16], syntax: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an interrupted copy leaves it, in a sparse file."""
    path = write_dicom(tmp_path / "a", stored[0], syntax=syntax)
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"\xe0\x7f\x10\0")])
    os.truncate(path, 2**30)
    steps = []
    read = dicom.header.read_partial

    def counted(file: Any, stop: Any, **options: Any) -> Any:
        return read(file, lambda *element: steps.append(element) or stop(*element), **options)

    monkeypatch.setattr(dicom.header, "read_partial", counted)
    with pytest.raises(Unreadable):
        dicom.headers(path, "a")
    assert 10 < len(steps) < 1000


def test_a_long_private_value_is_passed_over(tmp_path: Path, write_series: Write, stored: NDArray[np.int16]) -> None:
    paths = write_series(tmp_path, stored)
    content = paths[0].read_bytes()
    at = content.index(b"\x10\0\x20\0LO")  # the patient's id
    value = struct.pack("<HH2sHI", 9, 0x1001, b"OB", 0, 2**27)
    with paths[0].open("wb") as file:
        file.write(content[:at] + value)
        file.seek(2**27, os.SEEK_CUR)
        file.write(content[at:])
    tracemalloc.start()
    try:
        (header,) = dicom.headers(paths[0], "a")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert header.patient == "P1"
    assert peak < 2**26


@pytest.mark.parametrize(("kind", "read"), [("HU", True), ("US", True), ("MGML", False), ("Z_EFF", False)])
def test_ct_of_other_values_than_hounsfield_units_is_refused(
    tmp_path: Path, write_series: Write, stored: NDArray[np.int16], kind: str, read: bool
) -> None:
    write_series(tmp_path, stored, RescaleType=kind)
    if read:
        only(tmp_path)
    else:
        assert reasons(tmp_path) == {"UNSUPPORTED"}


def test_one_inverted_slice_among_others_is_refused(
    tmp_path: Path, write_series: Write, stored: NDArray[np.int16]
) -> None:
    paths = write_series(tmp_path, stored, Modality="MR")
    ds = pydicom.dcmread(paths[1])
    ds.PhotometricInterpretation = "MONOCHROME1"
    ds.save_as(paths[1])
    (candidate,) = look(tmp_path)[0]
    with pytest.raises(Unreadable, match="MONOCHROME1 on some slices"):
        dicom.read(tmp_path, candidate)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_of_a_radiograph_is_its_darkest_value(tmp_path: Path, write_dicom: Write, photometric: str) -> None:
    pixels = np.arange(100, 130, dtype=np.uint16).reshape(5, 6)
    pixels[0] = 0
    write_dicom(
        tmp_path / "a", pixels, PhotometricInterpretation=photometric, PixelPaddingValue=0, BitsStored=12, HighBit=11,
        **DX,
    )  # fmt: skip
    values = only(tmp_path).array[0, ::-1, ::-1].T
    assert set(values[0]) == {values[1:].min()}


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 192", "Ζεύς 山田 محمد שלום ไทย 😀"),
        ("ISO_IR 100", "Müller"),
        ("ISO_IR 144", "Люкceмбypг"),
        ("ISO_IR 126", "Διονυσιος"),
        ("ISO_IR 127", "قباني"),
        ("ISO_IR 138", "שרון"),
        ("ISO_IR 166", "นามสกุล"),
        ("GB18030", "王小东"),
        ("\\ISO 2022 IR 87", "山田太郎"),
        ("\\ISO 2022 IR 149", "김희중"),
    ],
)
def test_patients_are_told_apart_in_every_script(
    tmp_path: Path, write_series: Write, stored: NDArray[np.int16], charset: str, name: str
) -> None:
    for folder, patient in (("a", name), ("b", name[:-1])):
        write_series(
            tmp_path / folder, stored, SpecificCharacterSet=charset.split("\\"), PatientName=patient, PatientID=patient
        )
    candidates, skipped = look(tmp_path)
    assert skipped == []
    assert [candidate.patient_id for candidate in candidates] == [name, name[:-1].strip()]


def test_one_value_everywhere_is_not_finite(tmp_path: Path, write_series: Write) -> None:
    write_series(tmp_path, np.zeros((3, 4, 4), np.int16))
    candidates, _ = look(tmp_path)
    with pytest.raises(Unreadable) as raised:
        dicom.read(tmp_path, candidates[0])
    assert raised.value.reason == "NOT_FINITE"


def test_a_damaged_codestream_is_a_decode_error_without_tag_values(
    tmp_path: Path, write_series: Write, stored: NDArray[np.int16], caplog: pytest.LogCaptureFixture
) -> None:
    path = write_series(tmp_path, stored, syntax=RLELossless, ImageComments="CANARY")[0]
    content = bytearray(path.read_bytes())
    start = content.index(b"\xfe\xff\x00\xe0", content.index(b"\xfe\xff\x00\xe0") + 4) + 8
    content[start : start + 64] = b"\xff" * 64
    path.write_bytes(content)
    candidates, _ = look(tmp_path)
    with caplog.at_level(logging.DEBUG), pytest.raises(Unreadable) as raised:
        dicom.read(tmp_path, candidates[0])
    assert raised.value.reason == "DECODE"
    assert "CANARY" not in str(raised.value) + caplog.text
    assert path.name not in str(raised.value)


def test_a_decoder_that_panics_costs_its_file(
    tmp_path: Path, write_series: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pylibjpeg-rle is written in Rust, and its panics are no Exceptions."""
    panic = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})

    def panicking(*args: Any, **kwargs: Any) -> Any:
        raise panic("index out of bounds")

    write_series(tmp_path, np.arange(120, dtype=np.int16).reshape(4, 5, 6), syntax=RLELossless)
    candidates, _ = look(tmp_path)
    monkeypatch.setattr(dicom.pixels, "decode", panicking)
    with pytest.raises(Unreadable, match="PanicException"):
        dicom.read(tmp_path, candidates[0])
    monkeypatch.setattr(dicom.pixels, "decode", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        dicom.read(tmp_path, candidates[0])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutated_file_is_a_volume_or_a_reason(
    tmp_path: Path, write_series: Write, stored: NDArray[np.int16], data: st.DataObject
) -> None:
    path = write_series(tmp_path, stored)[1]
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(128, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    headers = []
    for one in sorted(tmp_path.iterdir()):
        try:
            headers += dicom.headers(one, one.name)
        except Unreadable:
            assert one == path
    candidates, skipped = dicom.group(headers)
    assert sum(len(c.paths) for c in candidates) + len(skipped) == len(headers)
    for candidate in candidates:
        try:
            volume = dicom.read(tmp_path, candidate)
        except Unreadable:
            continue
        assert np.isfinite(volume.array).all()
