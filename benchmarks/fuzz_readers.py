"""Mutants of small files of every kind: each becomes a volume or a reason code, and none takes more than 1 GiB.

python benchmarks/fuzz_readers.py [MUTANTS]     # 20,000 unless told otherwise
"""

import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from medclr.data.discover import discover
from medclr.data.prepare import READERS
from medclr.errors import MedclrError

MOST_BYTES = 2**30
AXIAL = [1, 0, 0, 0, 1, 0]


def main(mutants: int) -> None:
    """Print what became of them; a failure of any other kind ends the script."""
    rng = np.random.default_rng(0)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seeds = list(seed_files(folder))
        sound = {path: path.read_bytes() for path in seeds}
        assert not discover(folder, workers=0)[1], "a seed is refused before it is changed"
        for number in range(mutants):
            path = seeds[number % len(seeds)]
            path.write_bytes(mutant(sound[path], rng))
            outcomes[outcome(path.parent)] += 1
            path.write_bytes(sound[path])
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(
        f"{mutants:,} mutants in {time.monotonic() - started:.0f} s; peak memory {peak / 2**20:.0f} MiB above the start"
    )
    for what, count in outcomes.most_common():
        print(f"  {count:>8,}  {what}")
    if peak > MOST_BYTES:
        sys.exit(f"more than {MOST_BYTES / 2**20:.0f} MiB")


def outcome(folder: Path) -> str:
    """The first reason among the files of a folder, or "volume"."""
    candidates, skipped = discover(folder, workers=0)
    if skipped:
        return skipped[0].reason
    try:
        arrays = [READERS[candidate.reader](folder, candidate).array for candidate in candidates]
    except MedclrError as error:
        return getattr(error, "reason", type(error).__name__)
    assert all(np.isfinite(array).all() for array in arrays)
    return "volume"


def mutant(content: bytes, rng: np.random.Generator) -> bytes:
    """One to eight bytes changed, or four set to ones, or some cut out, doubled or missing at the end."""
    data = bytearray(content)
    kind = rng.integers(5)
    at, n = int(rng.integers(len(data))), int(rng.integers(1, 64))
    if kind == 0:
        data[at : at + 4] = b"\xff" * 4
    elif kind == 1:
        del data[at : at + n]
    elif kind == 2:
        data[at:at] = data[at : at + n]
    elif kind == 3:
        del data[at:]
    else:
        for position in rng.integers(len(data), size=int(rng.integers(1, 9))):
            data[position] = int(rng.integers(256))
    return bytes(data)


def seed_files(root: Path) -> Iterator[Path]:
    """One sound file of each kind, each in a folder of its own with whatever it needs beside it."""
    volume = np.random.default_rng(1).integers(0, 1000, (3, 8, 10)).astype(np.int16)
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, DeflatedExplicitVRLittleEndian):
        folder = root / syntax.name.replace(" ", "_")
        folder.mkdir()
        for k, plane in enumerate(volume):
            write_plane(folder / f"{k}.dcm", plane, k, syntax)
        yield folder / "1.dcm"
    for name, tags in {"uptake": uptake(), "radiograph": displayed()}.items():
        folder = root / name
        folder.mkdir()
        for k, plane in enumerate(volume[: 3 if name == "uptake" else 1]):
            write_plane(folder / f"{k}.dcm", plane, k, ExplicitVRLittleEndian, **tags)
        yield folder / "0.dcm"
    folder = root / "enhanced"
    folder.mkdir()
    yield write_enhanced(folder / "a.dcm", volume)
    (root / "analyze").mkdir()
    nib.save(nib.AnalyzeImage(volume, None), root / "analyze" / "a.img")
    yield root / "analyze" / "a.hdr"
    for name in ("a.nii", "a.nii.gz"):
        (root / name).mkdir()
        nib.save(nib.Nifti1Image(volume, np.eye(4)), root / name / name)
        yield root / name / name
    (root / "metaimage").mkdir()
    fields = "ObjectType = Image\nNDims = 3\nDimSize = 10 8 3\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    (root / "metaimage" / "a.mha").write_bytes(fields.encode() + volume.tobytes())
    yield root / "metaimage" / "a.mha"
    for name in ("a.png", "a.jpg"):
        (root / name).mkdir()
        Image.fromarray((volume[0] % 256).astype(np.uint8)).save(root / name / name)
        yield root / name / name


def image(pixels: np.ndarray, modality: str) -> Dataset:
    """What every DICOM image here has."""
    ds = Dataset()
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    ds.SOPInstanceUID = generate_uid()
    ds.PatientID, ds.StudyInstanceUID, ds.Modality = "P", "1.2", modality
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = pixels.shape[-2:]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OW"
    return ds


def write_plane(path: Path, plane: np.ndarray, k: int, syntax: pydicom.uid.UID, **tags: Any) -> None:
    """One slice of a CT series, unless told otherwise."""
    ds = image(plane, "CT")
    ds.PixelSpacing, ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 1], AXIAL, [0, 0, 2 * k]
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    for name, value in tags.items():
        setattr(ds, name, value)
    save(path, ds, syntax)


def uptake() -> dict[str, Any]:
    """What makes PET values SUV."""
    tracer = Dataset()
    tracer.RadionuclideTotalDose, tracer.RadionuclideHalfLife = 370e6, 6600
    tracer.RadiopharmaceuticalStartTime = "090000"
    return {
        "Modality": "PT",
        "Units": "BQML",
        "DecayCorrection": "START",
        "PatientWeight": 74,
        "SeriesDate": "20200301",
        "SeriesTime": "105000",
        "RadiopharmaceuticalInformationSequence": [tracer],
    }


def displayed() -> dict[str, Any]:
    """A radiograph with a VOI LUT and a window."""
    table = Dataset()
    table.LUTDescriptor = [500, 0, 10]
    table.add_new(0x00283006, "US", list(range(500)))
    return {"Modality": "DX", "VOILUTSequence": [table], "WindowCenter": 400, "WindowWidth": 300}


def write_enhanced(path: Path, volume: np.ndarray) -> Path:
    """An enhanced MR image of all slices."""
    ds = image(volume, "MR")
    ds.NumberOfFrames = len(volume)
    frames, shared, measures, orientation = [], Dataset(), Dataset(), Dataset()
    for k in range(len(volume)):
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = [0, 0, 2 * k]
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    measures.PixelSpacing, orientation.ImageOrientationPatient = [1, 1], AXIAL
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    ds.PerFrameFunctionalGroupsSequence, ds.SharedFunctionalGroupsSequence = frames, [shared]
    save(path, ds, ExplicitVRLittleEndian)
    return path


def save(path: Path, ds: Dataset, syntax: pydicom.uid.UID) -> None:
    """Write it in a transfer syntax."""
    ds.SeriesInstanceUID = generate_uid(entropy_srcs=[path.parent.name])
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax == RLELossless else syntax
    if syntax == RLELossless:
        ds.compress(RLELossless, encoding_plugin="pydicom")
    ds.save_as(path, enforce_file_format=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
