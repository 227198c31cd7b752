"""Tiny DICOM files, written by pydicom."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid

CT = "1.2.840.10008.5.1.4.1.1.2"
DX = "1.2.840.10008.5.1.4.1.1.1.1"

WriteDicom = Callable[..., Path]
WriteSeries = Callable[..., list[Path]]


def _write(path: Path, pixels: NDArray[Any], syntax: str = ExplicitVRLittleEndian, **tags: Any) -> Path:
    """One DICOM file; a tag given as None is left out."""
    ds = Dataset()
    ds.SOPClassUID = CT
    ds.SOPInstanceUID = generate_uid(entropy_srcs=[str(path)])
    ds.PatientID, ds.PatientName = "P1", "CANARY^NAME"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    ds.Modality = "CT"
    ds.Manufacturer = "ACME"
    ds.PixelSpacing = [1.0, 1.0]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = pixels.shape[-2:]
    ds.BitsAllocated = pixels.dtype.itemsize * 8
    ds.BitsStored, ds.HighBit = ds.BitsAllocated, ds.BitsAllocated - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in tags.items():
        if value is None:
            delattr(ds, name)
        else:
            setattr(ds, name, value)
    ds.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    ds["PixelData"].VR = "OW"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax == RLELossless else syntax
    if syntax == RLELossless:
        ds.compress(RLELossless, encoding_plugin="pydicom")
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def _series(folder: Path, volume: NDArray[Any], step_mm: float = 2.0, **tags: Any) -> list[Path]:
    """Axial slices (slice, row, column), whose names and instance numbers say nothing of their order."""
    numbers = np.random.default_rng(0).permutation(len(volume))
    return [
        _write(
            folder / f"{number:03d}.dcm",
            plane,
            **{
                "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
                "ImagePositionPatient": [-5.0, -7.0, step_mm * k],
                "InstanceNumber": int(number),
                "RescaleSlope": 1,
                "RescaleIntercept": 0,
                **tags,
            },
        )
        for k, (plane, number) in enumerate(zip(volume, numbers, strict=True))
    ]


@pytest.fixture
def write_dicom() -> WriteDicom:
    return _write


@pytest.fixture
def write_series() -> WriteSeries:
    return _series


@pytest.fixture
def stored() -> NDArray[np.int16]:
    """(slice, row, column), all values different."""
    return np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
