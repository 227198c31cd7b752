"""A series of DICOM files to one volume, beside the readers that others use, on the same files, interleaved.

    python benchmarks/read_series.py [REPEATS [PEER ...]]     # 5, and all, unless told otherwise

medclr reads all headers, groups them and decodes to its canonical volume (float32, RAS). dcm2niix is started as a
process and writes an uncompressed NIfTI file, without a sidecar; the others give an array in memory, in whatever order
they have. The limit is to read the files' bytes. Times are wall time on however many cores are there, warm cache;
beside them stands the time of all cores together, which other work on the machine disturbs less. Memory is by how much
the peak of a process of its own grows when it reads the series once, after its imports; of dcm2niix all of it. (Linux
only: it is taken from /proc.)

Peers that are not installed are said and skipped: `pip install medclr[bench]`.
"""

import importlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless, generate_uid
from scipy import ndimage

SIDE = 512
SERIES = {
    "200 uncompressed": (200, ExplicitVRLittleEndian, {"dcm2niix": 3.0, "MONAI": 7.0}),
    "40 RLE": (40, RLELossless, {"dcm2niix": 1.5}),
    "40 JPEG 2000": (40, JPEG2000Lossless, {"best of SimpleITK, GDCM, pydicom": 1.7}),
}
MOST_MEMORY = 1.5  # times the bytes of the volume


def main(repeats: int, peers: list[str]) -> None:
    """Print a table a series."""
    with tempfile.TemporaryDirectory() as name:
        for title, (n, syntax, targets) in SERIES.items():
            folder = Path(name) / title.replace(" ", "_")
            write_series(folder, n, syntax)
            print(f"{title}, {SIDE} x {SIDE}, int16")
            compare(folder, n * SIDE * SIDE * 4, targets, repeats, peers)


def compare(folder: Path, volume_bytes: int, targets: dict[str, float], repeats: int, peers: list[str]) -> None:
    """One table: time, ratio to medclr and peak memory of each reader."""
    peaks = {}
    for reader, (module, _) in READERS.items():
        if peers and reader not in ("medclr", *peers):
            continue
        if not available(module):
            print(f"  {reader}: not installed, skipped")
            continue
        peaks[reader] = float(subprocess.check_output([sys.executable, __file__, "--peak", reader, str(folder)]))
    seconds: dict[str, list[float]] = {reader: [] for reader in peaks}
    cores: dict[str, list[float]] = {reader: [] for reader in peaks}
    for repeat in range(repeats + 1):  # the first warms up
        for reader in peaks:
            started, busy = time.perf_counter(), sum(os.times()[:4])
            READERS[reader][1](folder)
            if repeat:
                seconds[reader].append(time.perf_counter() - started)
                cores[reader].append(sum(os.times()[:4]) - busy)
    for reader, times in seconds.items():
        ratios = sorted(other / own for other, own in zip(times, seconds["medclr"], strict=True))
        print(
            f"  {reader:12} {median(times):6.2f} s  {median(ratios):5.2f} x medclr's time ({ratios[0]:.2f} to"
            f" {ratios[-1]:.2f})  cores {median(cores[reader]):6.2f} s  peak"
            f" {peaks[reader] / volume_bytes:5.2f} x the volume"
        )
    usual = [reader for reader in ("SimpleITK", "GDCM", "pydicom") if reader in seconds]
    if usual:
        for times in (seconds, cores):
            times["best of SimpleITK, GDCM, pydicom"] = [
                min(each) for each in zip(*(times[reader] for reader in usual), strict=True)
            ]
    for peer, target in targets.items():
        if peer in seconds:
            ratio, of_cores = (
                median(other / own for other, own in zip(times[peer], times["medclr"], strict=True))
                for times in (seconds, cores)
            )
            print(
                f"  {verdict(ratio >= target)}: {ratio:.2f} times as fast as {peer}, {of_cores:.2f} by the time of all"
                f" cores (target: {target})"
            )
    memory = peaks["medclr"] / volume_bytes
    if not available("imagecodecs"):
        print("  without imagecodecs: pip install medclr[codecs]")
    print(f"  {verdict(memory <= MOST_MEMORY)}: peak memory {memory:.2f} times the volume (target: {MOST_MEMORY})")


def verdict(kept: bool) -> str:
    return "kept  " if kept else "MISSED"


def available(module: str) -> bool:
    """Whether a peer is installed."""
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def by_bytes(folder: Path) -> None:
    """The limit."""
    for path in sorted(folder.iterdir()):
        path.read_bytes()


def by_medclr(folder: Path) -> Any:
    from medclr.data import dicom

    headers = [h for path in sorted(folder.iterdir()) for h in dicom.headers(path, path.name)]
    ((candidate,), skipped) = dicom.group(headers)
    assert not skipped
    return dicom.read(folder, candidate).array


def by_dcm2niix(folder: Path) -> None:
    import dcm2niix

    with tempfile.TemporaryDirectory() as out:
        command = [dcm2niix.bin, "-b", "n", "-z", "n", "-f", "a", "-o", out, str(folder)]
        subprocess.run(command, check=True, capture_output=True)


def by_dicom2nifti(folder: Path) -> Any:
    from dicom2nifti import convert_dicom

    return convert_dicom.dicom_series_to_nifti(str(folder), None, reorient_nifti=False)["NII"].get_fdata(
        dtype=np.float32
    )


def by_simpleitk(folder: Path) -> Any:
    import SimpleITK

    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    return SimpleITK.GetArrayViewFromImage(reader.Execute()).astype(np.float32)


def by_gdcm(folder: Path) -> Any:
    import gdcm

    sorter = gdcm.IPPSorter()
    sorter.Sort([str(path) for path in sorted(folder.iterdir())])
    planes = []
    for path in sorter.GetFilenames():
        reader = gdcm.ImageReader()
        reader.SetFileName(path)
        assert reader.Read()
        image = reader.GetImage()
        values = np.frombuffer(image.GetBuffer().encode("utf-8", "surrogateescape"), np.int16).astype(np.float32)
        planes.append(values * np.float32(image.GetSlope()) + np.float32(image.GetIntercept()))
    return np.stack(planes)


def by_pydicom(folder: Path) -> Any:
    import pydicom

    files = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    files.sort(key=lambda ds: ds.ImagePositionPatient[2])
    return np.stack(
        [
            ds.pixel_array.astype(np.float32) * np.float32(ds.RescaleSlope) + np.float32(ds.RescaleIntercept)
            for ds in files
        ]
    )


def by_monai(folder: Path) -> Any:
    from monai.data import PydicomReader

    reader = PydicomReader()
    return reader.get_data(reader.read(folder))[0]


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "medclr": ("medclr", by_medclr),
    "the bytes": ("pathlib", by_bytes),
    "dcm2niix": ("dcm2niix", by_dcm2niix),
    "SimpleITK": ("SimpleITK", by_simpleitk),
    "GDCM": ("gdcm", by_gdcm),
    "pydicom": ("pydicom", by_pydicom),
    "dicom2nifti": ("dicom2nifti", by_dicom2nifti),
    "MONAI": ("monai", by_monai),
}


def peak(reader: str, folder: Path) -> int:
    """Bytes by which the peak of this process grows when it reads a folder; all of another process."""
    module, read = READERS[reader]
    if reader == "dcm2niix":
        return peak_of_dcm2niix(folder)
    importlib.import_module(module)
    warm_up = folder.parent / "warm_up"  # whatever is imported on the first call
    if not warm_up.exists():
        write_series(warm_up, 5, ExplicitVRLittleEndian, side=32)
    read(warm_up)
    before = high_water("self")
    kept = read(folder)
    del kept
    return high_water("self") - before


def peak_of_dcm2niix(folder: Path) -> int:
    import dcm2niix

    most = 0
    with tempfile.TemporaryDirectory() as out:
        command = [dcm2niix.bin, "-b", "n", "-z", "n", "-f", "a", "-o", out, str(folder)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            time.sleep(0.02)  # until it is no longer a fork of this process
            while process.poll() is None:
                with suppress(OSError, StopIteration):
                    most = max(most, high_water(str(process.pid)))
                time.sleep(0.001)
    return most


def high_water(process: str) -> int:
    """The most memory a process has had, in bytes; not getrusage's, which begins with what its parent had."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def write_series(folder: Path, n: int, syntax: str, side: int = SIDE) -> None:
    """A body in air with organs and quantum noise, as compressible as CT is; names say nothing of the order."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    down, across = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    body = (down / 0.7) ** 2 + (across / 0.9) ** 2 < 1
    organs = ndimage.gaussian_filter(rng.normal(0, 1, (side, side)), side / 40)
    organs *= 60 / organs.std()
    names = rng.permutation(n)
    for k in range(n):
        noise = ndimage.gaussian_filter(rng.normal(0, 40, (side, side)), 0.7)
        plane = np.where(body, 1040 + organs + noise, 24 + noise / 4).clip(0, 4095).astype(np.int16)
        ds = Dataset()
        ds.SOPClassUID, ds.Modality, ds.Manufacturer = "1.2.840.10008.5.1.4.1.1.2", "CT", "ACME"
        ds.SOPInstanceUID = generate_uid()
        ds.PatientID, ds.PatientName, ds.StudyInstanceUID, ds.SeriesInstanceUID = "P", "A^B", "1.2", "1.2.3"
        ds.StudyDate, ds.SeriesNumber, ds.InstanceNumber = "20200101", 1, k + 1
        ds.ImageType, ds.FrameOfReferenceUID = ["ORIGINAL", "PRIMARY", "AXIAL"], "1.2.4"
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.Rows, ds.Columns = 1, "MONOCHROME2", side, side
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        ds.PixelSpacing, ds.SliceThickness = [0.7, 0.7], 1.5
        ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-180, -180, 1.5 * k]
        ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
        ds.PixelData = plane.tobytes()
        ds["PixelData"].VR = "OW"
        ds.file_meta = FileMetaDataset()
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        if syntax != ExplicitVRLittleEndian:
            ds.compress(syntax, encoding_plugin="pylibjpeg", generate_instance_uid=False)
        ds.save_as(folder / f"{names[k]:04d}.dcm", enforce_file_format=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        print(peak(sys.argv[2], Path(sys.argv[3])))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 5, sys.argv[2:])
