"""How the planes of a series become volumes: split, ordered, sheared, or refused."""

import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medclr.data import dicom
from medclr.data.candidate import Candidate, Skipped
from medclr.data.volume import Volume
from medclr.errors import Unreadable

Write = Callable[..., Any]
AXIAL = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]


def look(
    root: Path, tilt: dicom.Tilt = "correct", uneven: dicom.Uneven = "skip"
) -> tuple[list[Candidate], list[Skipped]]:
    paths = sorted(p for p in root.rglob("*") if p.is_file())
    headers = [header for p in paths for header in dicom.headers(p, p.relative_to(root).as_posix())]
    candidates, skipped = dicom.group(headers, tilt, uneven, partial(dicom.same_pixels, root))
    assert {path for c in candidates for path in c.paths} | {s.item for s in skipped} == {h.path for h in headers}
    return candidates, skipped


def volumes(root: Path) -> list[Volume]:
    candidates, skipped = look(root)
    assert skipped == []
    found = [dicom.read(root, candidate) for candidate in candidates]
    assert [v.array.shape[1:] for v in found] == [c.shape for c in candidates]
    for volume, candidate in zip(found, candidates, strict=True):
        np.testing.assert_allclose(volume.spacing_mm, candidate.spacing_mm)
    return found


def whole(volume: Volume) -> set[int]:
    return {int(value) for value in volume.array.flat}


def plane(value: int) -> NDArray[np.int16]:
    """One value but for a corner, which is one more, so that no plane is constant."""
    pixels = np.full((3, 4), value, np.int16)
    pixels[0, 0] += 1
    return pixels


@pytest.fixture
def write_planes(tmp_path: Path, write_dicom: Write) -> Callable[..., list[Path]]:
    """MR planes; each row of `rows` is (z, value, further tags). Names say nothing of their order."""

    def write(rows: list[tuple[float, int, dict[str, Any]]]) -> list[Path]:
        names = np.random.default_rng(1).permutation(len(rows))
        return [
            write_dicom(
                tmp_path / f"{name:03d}.dcm",
                plane(value),
                Modality="MR",
                **{"ImageOrientationPatient": AXIAL, "ImagePositionPatient": [0, 0, z], **tags},
            )
            for name, (z, value, tags) in zip(names, rows, strict=True)
        ]

    return write


@pytest.mark.parametrize(
    "told_apart_by",
    [
        lambda k: {"EchoTime": 10 * (k + 1)},
        lambda k: {"ImageType": ["ORIGINAL", "PRIMARY", "MPI"[k]]},
        lambda k: {"AcquisitionNumber": k},
        lambda k: {"TemporalPositionIdentifier": k + 1},
        lambda k: {"TriggerTime": 40.0 * k},
        lambda k: {"DiffusionBValue": 1000.0 * k},
        lambda k: {"DiffusionBValue": 1000.0, "DiffusionGradientOrientation": np.eye(3)[k].tolist()},
    ],
)
def test_images_at_one_place_are_told_apart(
    tmp_path: Path, write_planes: Write, told_apart_by: Callable[[int], dict[str, Any]]
) -> None:
    write_planes([(2 * z, 100 * k, told_apart_by(k)) for z in range(4) for k in range(3)])
    assert sorted(map(sorted, map(whole, volumes(tmp_path)))) == [[0, 1], [100, 101], [200, 201]]


def test_traits_that_only_together_tell_images_apart_are_both_used(tmp_path: Path, write_planes: Write) -> None:
    both = [{"EchoTime": e, "AcquisitionNumber": a} for e in (10, 20) for a in (1, 2, 3)]
    write_planes([(2 * z, 10 * k, tags) for z in range(3) for k, tags in enumerate(both)])
    assert sorted(min(whole(v)) for v in volumes(tmp_path)) == [0, 10, 20, 30, 40, 50]


def test_a_trait_that_changes_along_a_sound_volume_does_not_split_it(tmp_path: Path, write_planes: Write) -> None:
    """A CT scanner numbers its acquisitions as the table moves on."""
    write_planes([(2 * z, z, {"AcquisitionNumber": z // 2, "ImageType": ["X", "Y", "AB"[z > 3]]}) for z in range(8)])
    (volume,) = volumes(tmp_path)
    np.testing.assert_array_equal(volume.array[0, 0, 0], range(8))


def test_halves_of_another_image_type_are_not_mistaken_for_time_points(tmp_path: Path, write_planes: Write) -> None:
    """Two values of a trait, two images a place; but the trait changes from the lower half to the upper."""
    rows = [(2 * z, 10 * t, {"ImageType": ["X", "Y", "AB"[z > 2]], "InstanceNumber": 1 + 6 * t + z})
            for t in range(2) for z in range(6)]  # fmt: skip
    write_planes(rows)
    assert [v.array.shape[3] for v in volumes(tmp_path)] == [6, 6]


def test_two_spacings_in_one_series_that_its_image_type_tells_apart(tmp_path: Path, write_planes: Write) -> None:
    """A head CT: thin slices at the base of the skull, thick ones above."""
    below = [(2.0 * z, 1, {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "ADD"]}) for z in range(4)]
    above = [(8.0 + 5.0 * z, 2, {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]}) for z in range(3)]
    write_planes(below + above)
    assert sorted(v.spacing_mm[2] for v in volumes(tmp_path)) == [2, 5]


@pytest.mark.parametrize("number", [lambda t, z: 1 + 4 * t + z, lambda t, z: 1 + 3 * z + t])
def test_time_points_are_told_apart_by_runs_of_instance_numbers(
    tmp_path: Path, write_planes: Write, number: Callable[[int, int], int]
) -> None:
    """One whole volume after the other, or all images of one place after those of the other."""
    write_planes([(3 * z, 10 * t, {"InstanceNumber": number(t, z)}) for t in range(3) for z in range(4)])
    assert sorted(min(whole(v)) for v in volumes(tmp_path)) == [0, 10, 20]


def test_a_number_that_every_image_has_for_itself_is_no_trait(tmp_path: Path, write_planes: Write) -> None:
    numbers = [(t, z, 1 + 4 * t + z) for t in range(3) for z in range(4)]
    write_planes([(3 * z, 10 * t, {"InstanceNumber": n, "AcquisitionNumber": n}) for t, z, n in numbers])
    assert sorted(min(whole(v)) for v in volumes(tmp_path)) == [0, 10, 20]


@pytest.mark.parametrize("numbers", [[1, 3, 4, 2, 5, 6], [1, 1, 1, 1, 1, 1], [None] * 6])
def test_numbers_that_leave_doubt_tell_nothing(tmp_path: Path, write_planes: Write, numbers: list[int | None]) -> None:
    rows = zip([(t, z) for t in range(2) for z in range(3)], numbers, strict=True)
    write_planes([(3 * z, 10 * t, {"InstanceNumber": n} if n else {}) for (t, z), n in rows])
    candidates, skipped = look(tmp_path)
    assert candidates == []
    assert {s.reason for s in skipped} == {"DUPLICATE"}
    assert "6 slices at 3 positions" in skipped[0].message


def test_a_time_point_that_lacks_a_slice_is_refused_alone(tmp_path: Path, write_planes: Write) -> None:
    rows = [(3 * z, 10 * t, {"AcquisitionNumber": t}) for t in range(3) for z in range(5) if (t, z) != (1, 2)]
    paths = write_planes(rows)
    candidates, skipped = look(tmp_path)
    assert len(candidates) == 2
    lacking = {path.name for path, row in zip(paths, rows, strict=True) if row[1] == 10}
    assert {(s.item, s.reason) for s in skipped} == {(name, "NONUNIFORM") for name in lacking}


@pytest.mark.parametrize("tags", [{}, {"SOPInstanceUID": "1.9"}])
def test_copies_are_left_out(
    tmp_path: Path, write_series: Write, stored: NDArray[np.int16], tags: dict[str, str]
) -> None:
    """The same file twice, and one sent again under a new UID."""
    paths = write_series(tmp_path, stored)
    copy = pydicom.dcmread(paths[1])
    for name, value in tags.items():
        setattr(copy, name, value)
    copy.save_as(tmp_path / "zz.dcm")
    candidates, skipped = look(tmp_path)
    assert [len(c.paths) for c in candidates] == [4]
    assert [(s.item, s.reason) for s in skipped] == [("zz.dcm", "DUPLICATE")]


def test_copies_of_a_radiograph_are_left_out(tmp_path: Path, write_dicom: Write) -> None:
    path = write_dicom(tmp_path / "a.dcm", plane(3), Modality="DX", InstanceNumber=1)
    (tmp_path / "b.dcm").write_bytes(path.read_bytes())
    write_dicom(tmp_path / "c.dcm", plane(4), Modality="DX", InstanceNumber=1)
    candidates, skipped = look(tmp_path)
    assert [c.paths for c in candidates] == [("a.dcm",), ("c.dcm",)]
    assert [(s.item, s.reason) for s in skipped] == [("b.dcm", "DUPLICATE")]


def test_images_that_two_patients_claim_are_nobodys(
    tmp_path: Path, write_series: Write, stored: NDArray[np.int16]
) -> None:
    """The same images re-identified; and a third patient's, of the same series UID but with their own instance UIDs."""
    first = write_series(tmp_path / "a", stored)
    for path in first:
        ds = pydicom.dcmread(path)
        ds.PatientID = "P2"
        (tmp_path / "b").mkdir(exist_ok=True)
        ds.save_as(tmp_path / "b" / path.name)
    write_series(tmp_path / "c", stored, PatientID="P3")
    candidates, skipped = look(tmp_path)
    assert [c.patient_id for c in candidates] == ["P3"]
    assert {(s.item[0], s.reason) for s in skipped} == {("a", "UID_COLLISION"), ("b", "UID_COLLISION")}
    assert len(skipped) == 2 * len(first)


BORN = {"PatientName": "Lee^Kim", "PatientBirthDate": "19500101"}


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ({"PatientName": "Lee^Jo"}, False),
        ({"PatientBirthDate": "19500102"}, False),
        ({}, True),
        ({"PatientName": "LEE^KIM^^", "PatientBirthDate": ""}, True),
        ({"PatientName": "", "PatientBirthDate": ""}, True),
    ],
)
@pytest.mark.parametrize("series_uid", ["1.2.3.4", "1.2.3.5"])
def test_without_a_patient_id_name_and_birth_date_tell_people_of_one_study_apart(
    tmp_path: Path, write_series: Write, stored: NDArray[np.int16], other: Any, same: bool, series_uid: str
) -> None:
    """Where the other has the series UID, too, its slices lie between those of the first."""
    write_series(tmp_path / "a", stored, step_mm=4.0, PatientID="", **BORN)
    for path in write_series(
        tmp_path / "b", stored, step_mm=4.0, PatientID="", **(BORN | other), SeriesInstanceUID=series_uid
    ):
        ds = pydicom.dcmread(path)
        ds.ImagePositionPatient[2] += 2.0
        ds.save_as(path)
    candidates, skipped = look(tmp_path)
    assert skipped == []
    assert [len(c.paths) for c in candidates] == ([8] if same and series_uid == "1.2.3.4" else [4, 4])
    assert len({c.patient_id for c in candidates}) == (1 if same else 2)
    assert not any(c.patient_known for c in candidates)
    assert not any(word in repr(candidates).casefold() for word in ("lee", "kim", "1950"))


def test_images_that_two_nameless_patients_claim_are_nobodys(
    tmp_path: Path, write_series: Write, stored: NDArray[np.int16]
) -> None:
    for path in write_series(tmp_path / "a", stored, PatientID="", **BORN):
        ds = pydicom.dcmread(path)
        ds.PatientName = "Lee^Jo"
        ds.save_as(path.with_suffix(".copy"))
    candidates, skipped = look(tmp_path)
    assert candidates == []
    assert {s.reason for s in skipped} == {"UID_COLLISION"}


def test_one_name_with_other_pixels_is_no_copy(tmp_path: Path, write_series: Write, stored: NDArray[np.int16]) -> None:
    paths = write_series(tmp_path, stored)
    other = pydicom.dcmread(paths[1])
    other.PixelData = other.PixelData[::-1]
    other.save_as(tmp_path / "zz.dcm")
    candidates, skipped = look(tmp_path)
    assert candidates == []
    assert {s.reason for s in skipped} == {"DUPLICATE"}


def test_a_localizer_in_the_series_is_set_apart(tmp_path: Path, write_series: Write, write_dicom: Write) -> None:
    write_series(tmp_path, np.arange(80, dtype=np.int16).reshape(4, 4, 5))
    write_dicom(
        tmp_path / "scout.dcm",
        np.arange(20, dtype=np.int16).reshape(4, 5),
        ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
        ImagePositionPatient=[0, 0, 0],
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
    )
    candidates, skipped = look(tmp_path)
    assert [len(c.paths) for c in candidates] == [4]
    assert [(s.item, s.reason) for s in skipped] == [("scout.dcm", "NONUNIFORM")]


@pytest.mark.parametrize(
    "tags",
    [
        lambda k: {"ImageType": ["ORIGINAL", "PRIMARY", "M"] if k % 2 else ["DERIVED", "SECONDARY", "MIP"]},
        lambda k: {"TemporalPositionIdentifier": 1 + k % 2},
        lambda k: {"ConvolutionKernel": "B30" if k % 2 else "B70"},
    ],
    ids=["type", "time", "kernel"],
)
def test_two_kinds_between_each_others_slices_are_two_volumes(tmp_path: Path, write_planes: Write, tags: Any) -> None:
    write_planes([(2.0 * k, 10 * (k % 2), tags(k)) for k in range(8)])
    assert sorted(map(sorted, map(whole, volumes(tmp_path)))) == [[0, 1], [10, 11]]


def test_a_localizer_at_the_next_place_is_no_slice(tmp_path: Path, write_planes: Write) -> None:
    kinds = ["M"] * 6 + ["LOCALIZER"]
    write_planes([(2.0 * k, k, {"ImageType": ["ORIGINAL", "PRIMARY", kind]}) for k, kind in enumerate(kinds)])
    candidates, skipped = look(tmp_path)
    assert [len(c.paths) for c in candidates] == [6]
    assert [s.reason for s in skipped] == ["NONUNIFORM"]


def test_a_volume_of_two_times_one_above_the_other_says_so(tmp_path: Path, write_planes: Write) -> None:
    write_planes([(2.0 * k, k, {"TemporalPositionIdentifier": 1 + k // 4}) for k in range(8)])
    (volume,) = volumes(tmp_path)
    assert volume.notes == ("images of several times",)


def test_every_other_slice_is_no_volume(tmp_path: Path, write_planes: Write) -> None:
    """Slices that were excited together share a trigger time; the time points are told apart by number instead."""
    rows = [
        (2 * z, 10 * t, {"TriggerTime": 1000.0 * t + 100 * (z % 3), "InstanceNumber": 9 * t + z + 1})
        for t in range(2)
        for z in range(9)
    ]
    write_planes(rows)
    assert [(v.array.shape[3], v.spacing_mm[2]) for v in volumes(tmp_path)] == [(9, 2.0), (9, 2.0)]


def test_echoes_between_each_others_slices_are_volumes_each(tmp_path: Path, write_planes: Write) -> None:
    write_planes([(2.0 * z, 100 * (z % 2), {"EchoTime": 10 + 900 * (z % 2)}) for z in range(8)])
    assert sorted((min(whole(v)), v.spacing_mm[2]) for v in volumes(tmp_path)) == [(0, 4.0), (100, 4.0)]


def test_echoes_that_lack_slices_are_not_mixed_by_number(tmp_path: Path, write_planes: Write) -> None:
    lacking = {(0, 2), (1, 1), (2, 0)}
    write_planes(
        [
            (2 * z, 100 * e, {"EchoTime": 10 * (e + 1), "InstanceNumber": 3 * z + e + 1})
            for z in range(3)
            for e in range(3)
            if (e, z) not in lacking
        ]
    )
    candidates, skipped = look(tmp_path)
    assert candidates == []
    assert len(skipped) == 6


def test_blank_slices_of_another_echo_are_no_copies(tmp_path: Path, write_dicom: Write) -> None:
    """Numbers that start again with each echo, and slices beyond the head that are zero in both."""
    for echo in range(2):
        for z in range(5):
            pixels = np.zeros((3, 4), np.int16) if z in (0, 4) else plane(10 * echo + z)
            write_dicom(
                tmp_path / f"{echo}{z}.dcm",
                pixels,
                Modality="MR",
                ImageOrientationPatient=AXIAL,
                ImagePositionPatient=[0, 0, 2 * z],
                InstanceNumber=z + 1,
                EchoTime=10 * (echo + 1),
            )
    assert [v.array.shape[3] for v in volumes(tmp_path)] == [5, 5]


@pytest.mark.parametrize("spacing", [["1e-200", "1e-200"], ["1e-310", "1e-310"], ["1e7", "1e7"], ["0", "0"]])
def test_absurd_spacing_costs_its_series_alone(
    tmp_path: Path, write_series: Write, stored: NDArray[np.int16], spacing: list[str]
) -> None:
    write_series(tmp_path / "a", stored, PixelSpacing=spacing)
    write_series(tmp_path / "b", stored, SeriesInstanceUID="1.2.3.5")
    candidates, skipped = look(tmp_path)
    assert [c.paths[0][0] for c in candidates] == ["b"]
    assert {s.reason for s in skipped} == {"NO_GEOMETRY"}


def test_direction_cosines_written_short_tilt_nothing(tmp_path: Path, write_planes: Write) -> None:
    write_planes([(2 * z, z, {"ImageOrientationPatient": [0.71, 0.71, 0, -0.71, 0.71, 0]}) for z in range(4)])
    (volume,) = volumes(tmp_path)
    assert volume.notes == ()
    np.testing.assert_allclose(volume.spacing_mm, [1, 1, 2])


def test_the_slices_of_another_frame_of_reference_are_another_volume(tmp_path: Path, write_planes: Write) -> None:
    write_planes([(2 * z, z, {"FrameOfReferenceUID": f"1.{z // 3}"}) for z in range(6)])
    assert [v.array.shape[3] for v in volumes(tmp_path)] == [3, 3]


# -- tilt ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tilted(tmp_path: Path, write_dicom: Write) -> Callable[[list[float], list[float]], None]:
    """A CT whose grey value is x + 2 y + z + 100 (LPS, in mm), so that every voxel tells where it came from."""

    def write(directions: list[float], step: list[float]) -> None:
        row, column = np.array(directions[:3]), np.array(directions[3:])
        r, c = np.mgrid[:20, :6]
        for k in range(5):
            corner = np.array([3.0, -7.0, 2.0]) + k * np.array(step)
            lps = corner + c[..., None] * 1.5 * row + r[..., None] * 0.5 * column
            write_dicom(
                tmp_path / f"{k}.dcm",
                np.rint((lps @ [1, 2, 1] + 100) * 100).astype(np.int32).astype(np.uint16),
                PixelSpacing=[0.5, 1.5],
                ImageOrientationPatient=[round(float(x), 9) for x in directions],
                ImagePositionPatient=[round(float(x), 9) for x in corner],
                RescaleSlope=0.01,
                RescaleIntercept=0,
            )

    return write


ANGLE = np.radians(18.5)


@pytest.mark.parametrize(
    ("directions", "step"),
    [
        ([1, 0, 0, 0, np.cos(ANGLE), np.sin(ANGLE)], [0.0, 0.0, 4.0]),
        ([1, 0, 0, 0, np.cos(ANGLE), -np.sin(ANGLE)], [0.0, 0.0, 4.0]),
        (AXIAL, [0.0, 1.0, 3.0]),
        (AXIAL, [0.9, -1.0, 3.0]),
        (AXIAL, [-0.9, 1.0, 3.0]),
    ],
)
def test_a_tilted_volume_is_sheared_upright(
    tmp_path: Path, tilted: Write, directions: list[float], step: list[float]
) -> None:
    tilted(directions, step)
    (volume,) = volumes(tmp_path)
    assert any("tilted by" in note for note in volume.notes)
    axes = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    index = np.stack(np.meshgrid(*map(np.arange, volume.array.shape[1:]), indexing="ij"), -1)
    ras = index @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    expected = ras @ [-1, -2, 1] + 100
    # Outside the tilted slices there is air; voxels at their rim are half of it.
    right = abs(volume.array[0] - expected) < 0.02
    air = volume.array[0] == -1024
    assert (right | air | (volume.array[0] < expected)).all()
    assert right.sum() >= 5 * 18 * 5  # all but a rim of one voxel
    assert air.any()


def test_rounding_across_the_tilt_does_not_widen_the_volume(tmp_path: Path, tilted: Write) -> None:
    tilted(AXIAL, [0.004, 1.0, 3.0])
    (volume,) = volumes(tmp_path)
    assert volume.array.shape == (1, 6, 28, 5)


def test_upright_volumes_are_not_interpolated(tmp_path: Path, write_series: Write, stored: NDArray[np.int16]) -> None:
    write_series(tmp_path, stored)
    (volume,) = volumes(tmp_path)
    assert volume.notes == ()
    np.testing.assert_array_equal(np.sort(volume.array, axis=None), np.arange(120))


def test_slices_side_by_side_are_no_tilted_stack(tmp_path: Path, write_dicom: Write) -> None:
    for k in range(3):
        write_dicom(
            tmp_path / f"{k}.dcm", plane(k), ImageOrientationPatient=AXIAL, ImagePositionPatient=[3000 * k, 0, 5 * k]
        )
    candidates, skipped = look(tmp_path)
    assert candidates == []
    assert {s.reason for s in skipped} == {"NONUNIFORM"}


def test_a_tilted_volume_is_skipped_when_asked(tmp_path: Path, tilted: Write) -> None:
    tilted(AXIAL, [0.0, 1.0, 3.0])
    candidates, skipped = look(tmp_path, tilt="skip")
    assert candidates == []
    assert {s.reason for s in skipped} == {"GANTRY_TILT"}
    assert "18.4 degrees" in skipped[0].message


# -- uneven slices -----------------------------------------------------------------------------------------------------


def test_uneven_slices_are_interpolated_when_asked(tmp_path: Path, write_dicom: Write) -> None:
    """Values that rise by 10 a millimetre do so at every place between."""
    places = [0.0, 2.0, 4.0, 8.0, 10.0, 14.5]
    for k, z in enumerate(places):
        write_dicom(
            tmp_path / f"{k}.dcm", plane(int(10 * z)), ImageOrientationPatient=AXIAL, ImagePositionPatient=[0, 0, z],
            RescaleSlope=1, RescaleIntercept=0,
        )  # fmt: skip
    assert {s.reason for s in look(tmp_path)[1]} == {"NONUNIFORM"}
    (candidate,), skipped = look(tmp_path, uneven="resample")
    assert skipped == []
    volume = dicom.read(tmp_path, candidate)
    assert volume.array.shape[1:] == candidate.shape == (4, 3, 8)  # 14.5 mm in steps near the median, 2
    assert volume.spacing_mm == candidate.spacing_mm == pytest.approx((1, 1, 14.5 / 7))
    np.testing.assert_allclose(volume.array[0, 0, 0], np.linspace(0, 145, 8), atol=1e-4)
    assert volume.notes == ("6 slices at uneven steps interpolated to 8",)


@pytest.mark.parametrize("shift", [(0.0, 9.0), (0.8, 3.0)])  # a gap of nine after one of two; uneven and tilted
def test_slices_too_uneven_or_also_tilted_are_refused(
    tmp_path: Path, write_dicom: Write, shift: tuple[float, float]
) -> None:
    for k, z in enumerate([0.0, 2.0, 4.0, 4.0 + shift[1]]):
        write_dicom(
            tmp_path / f"{k}.dcm", plane(k), ImageOrientationPatient=AXIAL, ImagePositionPatient=[0, shift[0] * z, z]
        )
    candidates, skipped = look(tmp_path, uneven="resample")
    assert candidates == []
    assert {s.reason for s in skipped} == {"NONUNIFORM"}


# -- several planes in one file --------------------------------------------------------------------------------------


def sequence(**tags: Any) -> list[Dataset]:
    item = Dataset()
    for name, value in tags.items():
        setattr(item, name, value)
    return [item]


@pytest.fixture
def write_enhanced(tmp_path: Path, write_dicom: Write) -> Callable[..., Path]:
    """An enhanced MR image; each frame is (z, value, slope, temporal position)."""

    def write(frames: list[tuple[float, int, float, int]], **tags: Any) -> Path:
        items = []
        for z, _, slope, time in frames:
            item = Dataset()
            item.PlanePositionSequence = sequence(ImagePositionPatient=[0, 0, z])
            item.FrameContentSequence = sequence(TemporalPositionIndex=time)
            item.PixelValueTransformationSequence = sequence(RescaleSlope=slope, RescaleIntercept=0)
            items.append(item)
        shared = Dataset()
        shared.PixelMeasuresSequence = sequence(PixelSpacing=[0.5, 0.75])
        shared.PlaneOrientationSequence = sequence(ImageOrientationPatient=AXIAL)
        given = {
            "Modality": "MR",
            "NumberOfFrames": len(frames),
            "PixelSpacing": None,
            "PerFrameFunctionalGroupsSequence": items,
            "SharedFunctionalGroupsSequence": [shared],
        }
        return write_dicom(tmp_path / "enhanced.dcm", np.stack([plane(f[1]) for f in frames]), **(given | tags))

    return write


def test_frames_are_ordered_by_their_own_positions_and_scaled_by_their_own_slopes(
    tmp_path: Path, write_enhanced: Write
) -> None:
    write_enhanced([(4.0, 30, 1.0, 1), (0.0, 10, 2.0, 1), (2.0, 20, 3.0, 1)])
    (volume,) = volumes(tmp_path)
    assert volume.spacing_mm == (0.75, 0.5, 2.0)
    assert volume.array[0, 0, 0].tolist() == [20, 60, 30]


def test_a_frame_without_the_slope_that_others_have_is_refused(tmp_path: Path, write_enhanced: Write) -> None:
    path = write_enhanced([(2.0 * z, z + 1, 2.0, 1) for z in range(3)])
    ds = pydicom.dcmread(path)
    del ds.PerFrameFunctionalGroupsSequence[1].PixelValueTransformationSequence
    ds.save_as(path)
    (candidate,) = look(tmp_path)[0]
    with pytest.raises(Unreadable, match="on some slices, and none on others"):
        dicom.read(tmp_path, candidate)


def test_the_frames_of_several_times_are_volumes_of_their_own(tmp_path: Path, write_enhanced: Write) -> None:
    write_enhanced([(2.0 * z, 10 * t, 1.0, t) for z in range(3) for t in range(1, 4)])
    candidates, _ = look(tmp_path)
    assert [c.paths for c in candidates] == [("enhanced.dcm",)] * 3
    assert len({c.member for c in candidates}) == 3
    assert [min(whole(v)) for v in volumes(tmp_path)] == [10, 20, 30]


def test_files_of_several_frames_are_not_mixed(tmp_path: Path, write_enhanced: Write) -> None:
    """Two files of one series, of which the second goes on where the first ends."""
    write_enhanced([(2.0 * z, 1, 1.0, 1) for z in range(3)]).rename(tmp_path / "lower.dcm")
    write_enhanced([(2.0 * z, 5, 1.0, 1) for z in range(3, 6)])
    assert sorted(map(sorted, map(whole, volumes(tmp_path)))) == [[1, 2], [5, 6]]


def test_a_file_of_several_frames_under_two_names_is_one(tmp_path: Path, write_enhanced: Write) -> None:
    frames = [(2.0 * z, z, 1.0, 1) for z in range(3)]
    path = write_enhanced(frames)
    (tmp_path / "again.dcm").write_bytes(path.read_bytes())
    candidates, skipped = look(tmp_path)
    assert len(candidates) == 1
    assert [(s.item, s.reason, s.part) for s in skipped] == [("enhanced.dcm", "DUPLICATE", None)]
    ds = pydicom.dcmread(path)
    ds.PixelData = ds.PixelData[:-2] + b"\x09\0"
    ds.save_as(path)  # the last frame now differs
    assert len(look(tmp_path)[0]) == 2


def test_files_of_one_frame_each_are_a_series(tmp_path: Path, write_enhanced: Write) -> None:
    for z in range(4):
        path = write_enhanced([(2.0 * z, z, 1.0 + z, 1)], SOPInstanceUID=f"1.2.{z}", InstanceNumber=4 - z)
        path.rename(tmp_path / f"{'dbca'[z]}.dcm")
    (volume,) = volumes(tmp_path)
    assert volume.array[0, 0, 0].tolist() == [0, 2, 6, 12]
    assert volume.spacing_mm == (0.75, 0.5, 2.0)


def test_the_parts_of_a_concatenation_are_no_volumes(tmp_path: Path, write_enhanced: Write) -> None:
    frames = [(2.0 * z, z, 1.0, 1) for z in range(3)]
    path = write_enhanced(frames, ConcatenationUID="1.2.8", InConcatenationNumber=1, InConcatenationTotalNumber=2)
    with pytest.raises(Unreadable, match="concatenation"):
        dicom.headers(path, path.name)
    write_enhanced(frames, ConcatenationUID="1.2.8", InConcatenationNumber=1, InConcatenationTotalNumber=1)
    assert len(volumes(tmp_path)) == 1


def test_frames_that_make_no_volume_are_skipped_as_a_part_of_their_file(tmp_path: Path, write_enhanced: Write) -> None:
    write_enhanced([(2.0 * z, 10 * t, 1.0, t) for t in (1, 2) for z in range(4) if (t, z) != (2, 1)])
    candidates, skipped = look(tmp_path)
    (candidate,) = candidates
    assert candidate.frames == (0, 1, 2, 3)
    assert [(s.item, s.reason, s.part) for s in skipped] == [("enhanced.dcm", "NONUNIFORM", 4)]


@pytest.mark.parametrize("announced", [2, 40_000])
def test_frames_that_are_announced_but_not_described_are_refused(
    tmp_path: Path, write_enhanced: Write, announced: int
) -> None:
    path = write_enhanced([(2.0 * z, z, 1.0, 1) for z in range(3)], NumberOfFrames=announced)
    with pytest.raises(Unreadable, match=f"{announced} frames announced, 3 described"):
        dicom.headers(path, path.name)


def test_frames_without_orientation_have_no_geometry(tmp_path: Path, write_enhanced: Write) -> None:
    write_enhanced([(2.0 * z, z, 1.0, 1) for z in range(3)], SharedFunctionalGroupsSequence=[])
    candidates, skipped = look(tmp_path)
    assert candidates == []
    assert [s.reason for s in skipped] == ["NO_GEOMETRY"]


def csa_header(**tags: tuple[str, list[str]]) -> bytes:
    """Siemens' private header in its second form, as nibabel's documentation of it describes."""

    def parts() -> Iterator[bytes]:
        yield b"SV10\x04\x03\x02\x01" + struct.pack("<2I", len(tags), 77)
        for name, (vr, values) in tags.items():
            yield struct.pack("<64si4s3i", name.encode(), len(values), vr.encode(), 0, len(values), 77)
            for value in values:
                text = value.encode() + b"\0"
                yield struct.pack("<4i", len(text), len(text), 77, len(text)) + text + b"\0" * (-len(text) % 4)

    return b"".join(parts())


@pytest.mark.parametrize(
    ("n", "reason"), [("0", "NO_GEOMETRY"), ("-4", "DECODE"), ("40000", "DECODE"), ("7", "DECODE")]
)
def test_a_mosaic_that_cannot_be_is_refused_at_once(tmp_path: Path, write_dicom: Write, n: str, reason: str) -> None:
    path = write_dicom(
        tmp_path / "mosaic.dcm",
        np.ones((200, 200), np.int16),
        Modality="MR",
        ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"],
        SpacingBetweenSlices=4.0,
        ImageOrientationPatient=AXIAL,
        ImagePositionPatient=[0, 0, 0],
    )
    ds = pydicom.dcmread(path)
    block = ds.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    normal = ("FD", ["0", "0", "1"])
    block.add_new(0x10, "OB", csa_header(NumberOfImagesInMosaic=("US", [n]), SliceNormalVector=normal))
    ds.save_as(path)
    with pytest.raises(Unreadable) as raised:
        dicom.headers(path, path.name)
    assert raised.value.reason == reason


@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_the_tiles_of_a_mosaic_are_stacked_along_its_private_normal(
    tmp_path: Path, write_dicom: Write, direction: float
) -> None:
    tiles = np.arange(9)[:, None, None] * 100 + np.arange(12).reshape(3, 4)
    mosaic = tiles.reshape(3, 3, 3, 4).transpose(0, 2, 1, 3).reshape(9, 12).astype(np.int16)
    path = write_dicom(
        tmp_path / "mosaic.dcm",
        mosaic,
        Modality="MR",
        ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"],
        PixelSpacing=[2.0, 3.0],
        SpacingBetweenSlices=4.0,
        ImageOrientationPatient=AXIAL,
        ImagePositionPatient=[-10.0, -20.0, 30.0],
    )
    ds = pydicom.dcmread(path)
    block = ds.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    normal = ["0.0", "0.0", str(direction)]
    block.add_new(0x10, "OB", csa_header(NumberOfImagesInMosaic=("US", ["7"]), SliceNormalVector=("FD", normal)))
    ds.save_as(path)
    (volume,) = volumes(tmp_path)
    expected = tiles[:7].transpose(2, 1, 0)[::-1, ::-1]
    np.testing.assert_array_equal(volume.array[0], expected if direction > 0 else expected[..., ::-1])
    assert volume.spacing_mm == (3.0, 2.0, 4.0)
    # The first tile's first pixel: half of what the mosaic is larger than a tile, right and down of its corner.
    lps = np.array([-10 + 3.0 * (12 - 4) / 2, -20 + 2.0 * (9 - 3) / 2, 30.0])
    index = np.linalg.solve(volume.affine, [-lps[0], -lps[1], lps[2], 1])[:3]
    assert volume.array[0][tuple(np.rint(index).astype(int))] == 0
    np.testing.assert_allclose(index, np.rint(index), atol=1e-6)


def test_a_slice_that_is_not_to_be_read_leaves_a_hole(tmp_path: Path, write_planes: Callable[..., list[Path]]) -> None:
    write_planes([(float(k), k, {"BurnedInAnnotation": "YES"} if k % 2 else {}) for k in range(8)])
    candidates, skipped = look(tmp_path)
    assert candidates == []
    assert [one.reason for one in skipped] == ["BURNED_IN"] * 8


def test_an_image_without_a_position_leaves_none(tmp_path: Path, write_planes: Callable[..., list[Path]]) -> None:
    paths = write_planes([(float(k), k, {}) for k in range(5)])
    ds = pydicom.dcmread(paths[4])
    del ds.ImagePositionPatient
    ds.BurnedInAnnotation = "YES"
    ds.save_as(paths[4])
    with pytest.raises(Unreadable) as raised:
        dicom.headers(paths[4], "a")
    assert raised.value.reason == "BURNED_IN"


@pytest.mark.parametrize("tag", ["FrameOfReferenceUID", "ConvolutionKernel"])
def test_what_is_blank_on_some_slices_splits_nothing(
    tmp_path: Path, write_planes: Callable[..., list[Path]], tag: str
) -> None:
    write_planes([(float(k), k, {tag: "" if k % 2 else "1.2.3"}) for k in range(8)])
    (volume,) = volumes(tmp_path)
    assert volume.spacing_mm[2] == 1
    assert volume.array.shape[3] == 8


@pytest.mark.parametrize(("numbers", "noted"), [("12121212", True), ("11112222", False), ("12345678", False)])
def test_interleaved_acquisitions_are_noted(
    tmp_path: Path, write_planes: Callable[..., list[Path]], numbers: str, noted: bool
) -> None:
    write_planes([(float(k), k, {"AcquisitionNumber": int(number)}) for k, number in enumerate(numbers)])
    (candidate,), _ = look(tmp_path)
    assert ("slices of several acquisitions, interleaved" in candidate.notes) == noted
