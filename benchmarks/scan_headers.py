"""Scanning headers, beside pydicom and dicomsdl, on the same files in one process, interleaved.

    python benchmarks/scan_headers.py [FOLDER]     # without one, 5,000 generated CT slices

The limit is to open each file and read its first 64 KiB. Targets on generated files: five times the speed of the loop
over pydicom (`dcmread(path, stop_before_pixels=True)`), and no slower than dicomsdl, which is written in C++; on a real
set 3.5 times pydicom. dicomsdl indexes a file when it opens it; what medclr keeps of a header, it then has to be asked
for. One process, warm cache. A peer that is not installed is said and skipped: `pip install medclr[bench]`.
"""

import sys
import tempfile
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np
import pydicom
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medclr.data import dicom
from medclr.data.dicom.elements import WANTED
from medclr.errors import Unreadable

N_FILES, REPEATS = 5000, 3
KEYWORDS = [keyword_for_tag(tag) for tag in sorted(WANTED)]


def main(folder: Path | None) -> None:
    """Print medians and ratios."""
    real = folder is not None
    with tempfile.TemporaryDirectory() as name:
        folder = folder or write_files(Path(name))
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and is_dicom(path)]
        ways = {"read 64 KiB": by_bytes, "medclr": by_medclr, "pydicom": by_pydicom}
        if find_spec("dicomsdl"):
            ways |= {"dicomsdl, opened": by_opening, "dicomsdl, values": by_dicomsdl}
        else:
            print("  dicomsdl: not installed, skipped")
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(REPEATS):
            for way, run in ways.items():
                started = time.perf_counter()
                for path in paths:
                    run(path)
                seconds[way].append(time.perf_counter() - started)
    print(f"{len(paths):,} files")
    ratios = {}
    for way, times in seconds.items():
        own = sorted(other / one for other, one in zip(times, seconds["medclr"], strict=True))
        ratios[way] = median(own)
        print(
            f"  {way:16} {median(times):7.2f} s  {len(paths) / median(times):8,.0f} files/s  {ratios[way]:5.2f} x"
            f" medclr's time ({own[0]:.2f} to {own[-1]:.2f})"
        )
    targets = {"pydicom": 3.5 if real else 5.0} | ({} if real else {"dicomsdl, values": 1.0, "dicomsdl, opened": 1.0})
    for way, target in targets.items():
        if way in ratios:
            kept = "kept  " if ratios[way] >= target else "MISSED"
            print(f"  {kept}: {ratios[way]:.2f} times as fast as {way} (target: {target})")


def is_dicom(path: Path) -> bool:
    """Whether it has the preamble."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def by_bytes(path: Path) -> None:
    """The limit."""
    with path.open("rb") as file:
        file.read(65536)


def by_medclr(path: Path) -> None:
    """What `medclr scan` does with a file."""
    with suppress(Unreadable):
        dicom.headers(path, path.name)


def by_pydicom(path: Path) -> None:
    """What most scripts do."""
    with suppress(Exception):  # a peer that fails has done its work, too
        pydicom.dcmread(path, stop_before_pixels=True)


def by_opening(path: Path) -> None:
    """dicomsdl alone: no value is looked at."""
    import dicomsdl

    with suppress(Exception):
        dicomsdl.open(str(path))


def by_dicomsdl(path: Path) -> None:
    """What medclr keeps of a header, by dicomsdl."""
    import dicomsdl

    with suppress(Exception):
        ds = dicomsdl.open(str(path))
        for keyword in KEYWORDS:
            getattr(ds, keyword, None)


def write_files(folder: Path) -> Path:
    """CT slices of 64 x 64 with the hundred elements, some in sequences and private, that scanners write."""
    pixels = np.random.default_rng(0).integers(0, 2000, (64, 64)).astype(np.int16).tobytes()
    ds = Dataset()
    ds.SOPClassUID, ds.Modality, ds.Manufacturer = "1.2.840.10008.5.1.4.1.1.2", "CT", "ACME"
    ds.PatientID, ds.PatientName, ds.StudyInstanceUID = "P", "A^B", generate_uid()
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.Rows, ds.Columns = 1, "MONOCHROME2", 64, 64
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.PixelSpacing, ds.ImageOrientationPatient = [0.7, 0.7], [1, 0, 0, 0, 1, 0]
    ds.RescaleSlope, ds.RescaleIntercept, ds.ConvolutionKernel, ds.KVP = 1, -1024, "STANDARD", 120
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "T-D3000", "SRT", "Chest"
    ds.AnatomicRegionSequence, ds.ProcedureCodeSequence = [code], [code]
    for group, text in ((0x0009, "ACME PRIVATE 1"), (0x0019, "ACME PRIVATE 2"), (0x0043, "ACME PRIVATE 3")):
        block = ds.private_block(group, text, create=True)
        for element in range(25):
            block.add_new(element, "DS", "1.25")
    ds.PixelData = pixels
    ds["PixelData"].VR = "OW"
    for k in range(N_FILES):
        ds.SOPInstanceUID, ds.InstanceNumber, ds.ImagePositionPatient = generate_uid(), k, [0, 0, k]
        ds.SeriesInstanceUID = f"1.2.{1 + k // 200}"
        ds.file_meta = FileMetaDataset()
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.save_as(folder / f"{k}.dcm", enforce_file_format=True)
    return folder


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
