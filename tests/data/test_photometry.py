"""SUV by its definition; radiographs as their window or table has them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import apply_voi, apply_windowing

from medclr.data import dicom
from medclr.data.volume import Volume
from medclr.errors import Unreadable

Write = Callable[..., Any]
PT = "1.2.840.10008.5.1.4.1.1.128"
DX = {"Modality": "DX", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1"}


def only(root: Path) -> Volume:
    headers = [h for p in sorted(root.iterdir()) for h in dicom.headers(p, p.name)]
    (candidate,), skipped = dicom.group(headers)
    assert skipped == []
    return dicom.read(root, candidate)


def pet(tracer: dict[str, Any] | None = None, **tags: Any) -> dict[str, Any]:
    """Fluorine-18, 370 MBq into 74 kg, scanned one half-life later; so SUV is activity · 0.4 / 1000."""
    item = Dataset()
    given = {
        "RadionuclideTotalDose": 370e6,
        "RadionuclideHalfLife": 6600,
        "RadiopharmaceuticalStartTime": "090000.00",
        **(tracer or {}),
    }
    for name, value in given.items():
        if value is not None:
            setattr(item, name, value)
    return {
        "SOPClassUID": PT,
        "Modality": "PT",
        "Units": "BQML",
        "DecayCorrection": "START",
        "PatientWeight": 74,
        "SeriesDate": "20200301",
        "SeriesTime": "105000",
        "AcquisitionDate": "20200301",
        "AcquisitionTime": "105000.000",
        "RadiopharmaceuticalInformationSequence": [item],
        "RescaleSlope": 2,
        "RescaleIntercept": 0,
        **tags,
    }


FACTOR = 74_000 / 185e6  # g / Bq, after one half-life


@pytest.mark.parametrize(
    ("tracer", "tags", "factor"),
    [
        ({}, {}, FACTOR),
        ({}, {"DecayCorrection": "ADMIN"}, FACTOR / 2),  # the dose at injection
        ({"RadiopharmaceuticalStartDateTime": "20200229234000.0", "RadiopharmaceuticalStartTime": None},
         {"SeriesDate": "20200301", "SeriesTime": "013000", "AcquisitionTime": "013000"}, FACTOR),
        ({"RadiopharmaceuticalStartTime": "234000"}, {"SeriesTime": "013000", "AcquisitionTime": "013001"}, FACTOR),
        ({"RadionuclideTotalDose": 2.4e9}, {}, FACTOR * 370e6 / 2.4e9),
        ({"RadiopharmaceuticalStartDateTime": "20200301090000+0100"}, {"TimezoneOffsetFromUTC": "+0100"}, FACTOR),
        ({}, {"Units": "GML"}, 1.0),
    ],
)  # fmt: skip
def test_pet_is_standardised_where_its_elements_allow(
    tmp_path: Path, write_series: Write, stored: NDArray[np.int16], tracer: Any, tags: Any, factor: float
) -> None:
    write_series(tmp_path, stored, **pet(tracer, **tags))
    volume = only(tmp_path)
    np.testing.assert_allclose(volume.array[0], 2 * factor * stored.transpose(2, 1, 0)[::-1, ::-1], rtol=1e-5)
    assert "SUV in g/ml" in volume.notes


@pytest.mark.parametrize(
    ("tracer", "tags"),
    [
        ({}, {"PatientWeight": None}),
        ({}, {"PatientWeight": 0}),
        ({"RadionuclideTotalDose": 370}, {}),  # MBq, in an element that is in Bq
        ({"RadionuclideTotalDose": 370_000}, {}),  # kBq
        ({"RadiopharmaceuticalStartDateTime": "20200301090000+0000"}, {"TimezoneOffsetFromUTC": "+0100"}),
        ({"RadiopharmaceuticalStartDateTime": "20200301090000+0000"}, {}),
        ({"RadionuclideHalfLife": None}, {}),
        ({"RadiopharmaceuticalStartTime": None}, {}),
        ({}, {"DecayCorrection": "NONE"}),
        ({}, {"Units": "CNTS"}),
        ({}, {"Units": "GML", "SUVType": "BSA"}),
        ({}, {"SeriesTime": "130000"}),  # after the acquisition: no scan was then
        ({}, {"RadiopharmaceuticalInformationSequence": []}),
    ],
)
def test_pet_keeps_its_units_where_something_is_missing(
    tmp_path: Path, write_series: Write, stored: NDArray[np.int16], tracer: Any, tags: Any
) -> None:
    write_series(tmp_path, stored, **{name: value for name, value in pet(tracer, **tags).items() if value is not None})
    volume = only(tmp_path)
    np.testing.assert_array_equal(volume.array[0], 2.0 * stored.transpose(2, 1, 0)[::-1, ::-1])
    assert "SUV in g/ml" not in volume.notes
    assert any("SUV" in note or "uptake" in note for note in volume.notes)


def test_counts_become_suv_by_philips_own_factor(
    tmp_path: Path, write_series: Write, stored: NDArray[np.int16]
) -> None:
    for path in write_series(tmp_path, stored, **pet(Units="CNTS")):
        ds = pydicom.dcmread(path)
        block = ds.private_block(0x7053, "Philips PET Private Group", create=True)
        block.add_new(0x00, "DS", "0.25")
        ds.save_as(path)
    np.testing.assert_allclose(only(tmp_path).array[0], 0.5 * stored.transpose(2, 1, 0)[::-1, ::-1])


def test_suv_on_some_slices_only_is_refused(tmp_path: Path, write_series: Write, stored: NDArray[np.int16]) -> None:
    paths = write_series(tmp_path, stored, **pet())
    ds = pydicom.dcmread(paths[2])
    del ds.PatientWeight
    ds.save_as(paths[2])
    with pytest.raises(Unreadable, match="SUV"):
        only(tmp_path)


# -- radiographs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def ramp() -> NDArray[np.uint16]:
    return np.arange(0, 4096, 16, dtype=np.uint16).reshape(8, 32)


def as_written(volume: Volume) -> NDArray[np.float32]:
    """Rows and columns again, as the pixels of a radiograph without PatientOrientation."""
    return volume.array[0, ::-1, ::-1].T


def dataset(**tags: Any) -> Dataset:
    ds = Dataset()
    ds.PhotometricInterpretation, ds.BitsStored, ds.PixelRepresentation = "MONOCHROME2", 12, 0
    for name, value in tags.items():
        setattr(ds, name, value)
    return ds


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_radiograph_has_the_shades_of_its_window(
    tmp_path: Path, write_dicom: Write, ramp: NDArray[np.uint16], function: str | None, photometric: str
) -> None:
    window = {"WindowCenter": [1500, 9], "WindowWidth": [800, 9]}
    window |= {"VOILUTFunction": function} if function else {}
    write_dicom(tmp_path / "a", ramp, BitsStored=12, HighBit=11, PhotometricInterpretation=photometric, **DX, **window)
    ours = as_written(only(tmp_path))
    peers = apply_windowing(ramp, dataset(**window)) / 4095  # 0 to 1
    if photometric == "MONOCHROME1":
        peers = 1 - peers
    ours = (ours - ours.min()) / (ours.max() - ours.min())
    peers = (peers - peers.min()) / (peers.max() - peers.min())
    np.testing.assert_allclose(ours, peers, atol=1e-5)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_table_goes_before_the_window(
    tmp_path: Path, write_dicom: Write, ramp: NDArray[np.uint16], photometric: str
) -> None:
    table = Dataset()
    table.LUTDescriptor = [3000, 500, 10]
    table.add_new(0x00283006, "US", [int(1023 * (k / 2999) ** 2) for k in range(3000)])
    tags = {"VOILUTSequence": [table], "WindowCenter": 9, "WindowWidth": 9}
    write_dicom(tmp_path / "a", ramp, BitsStored=12, HighBit=11, PhotometricInterpretation=photometric, **DX, **tags)
    expected = apply_voi(ramp, dataset(**tags)).astype(float)
    if photometric == "MONOCHROME1":
        expected = 1023 - expected
    np.testing.assert_array_equal(as_written(only(tmp_path)), expected)


def test_a_table_may_begin_below_nought(tmp_path: Path, write_dicom: Write, ramp: NDArray[np.uint16]) -> None:
    table = Dataset()
    table.LUTDescriptor = [2001, 2**16 - 1000, 16]
    table.add_new(0x00283006, "US", [7 * k for k in range(2001)])
    write_dicom(
        tmp_path / "a", ramp, BitsStored=12, HighBit=11, RescaleIntercept=-2048, RescaleSlope=1,
        VOILUTSequence=[table], **DX,
    )  # fmt: skip
    expected = 7 * (ramp.astype(int) - 2048).clip(-1000, 1000) + 7000
    np.testing.assert_array_equal(as_written(only(tmp_path)), expected)


@pytest.mark.parametrize("window", [(9000, 100), (100, 0), (-500, 10)])
def test_a_window_that_leaves_nothing_is_passed_over(
    tmp_path: Path, write_dicom: Write, ramp: NDArray[np.uint16], window: tuple[int, int]
) -> None:
    write_dicom(tmp_path / "a", ramp, BitsStored=12, HighBit=11, WindowCenter=window[0], WindowWidth=window[1], **DX)
    np.testing.assert_array_equal(as_written(only(tmp_path)), ramp)


def test_the_window_of_a_slice_is_no_part_of_its_values(
    tmp_path: Path, write_series: Write, stored: NDArray[np.int16]
) -> None:
    write_series(tmp_path, stored, WindowCenter=40, WindowWidth=10)
    assert len(np.unique(only(tmp_path).array)) == stored.size
