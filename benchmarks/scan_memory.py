"""How much memory the headers of a large archive take: 100,000 CT slices in 500 series, one file each.

    python benchmarks/scan_memory.py [FILES]

A scan sorts headers into their series on disk; in memory are one series at a time, and of each volume the paths of its
files. What is printed is the memory of the process above its start while headers are read, and when all are volumes.
The files differ in their instance, series, study and patient identifiers, position and number. There is no peer: the
others either read one series or keep whole data sets.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pydicom
import scan_headers

from medclr.data import dicom

STEP, PER_SERIES = 10_000, 200


def main(n: int) -> None:
    """Print resident memory above the start after every 10,000 files, and after grouping."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        paths = write_files(root, n)
        dicom.headers(root / paths[0], paths[0])
        start = resident()

        def headers() -> Iterator[dicom.Header]:
            for number, path in enumerate(paths, 1):
                yield from dicom.headers(root / path, path)
                if number % STEP == 0 or number == n:
                    print(f"  {number:>8,} files  {(resident() - start) / 2**20:6.1f} MiB")

        candidates, skipped = dicom.group(headers())
        assert not skipped
        grown = resident() - start
        print(f"  grouped into {len(candidates)} volumes: {grown / 2**20:.1f} MiB, {grown / n:.0f} bytes a file")


def resident() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def write_files(root: Path, n: int) -> list[str]:
    """Paths, relative to the root, of copies of one slice with other texts of the same lengths in their places."""
    scan_headers.N_FILES = 1
    path = scan_headers.write_files(root) / "0.dcm"
    ds = pydicom.dcmread(path)
    ds.Rows = ds.Columns = 8
    ds.PixelData = ds.PixelData[:128]
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.826.0.1.3680043.8.498.1111111111111111111"
    ds.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.2222222222222222222"
    ds.StudyInstanceUID = "1.2.826.0.1.3680043.8.498.3333333333333333333"
    ds.PatientID, ds.InstanceNumber, ds.ImagePositionPatient = "PATIENT444444444", 55555555, [-180, -180, 66666666]
    ds.save_as(path)
    template = path.read_bytes()
    path.unlink()
    paths = []
    for k in range(n):
        series, place = divmod(k, PER_SERIES)
        content = template
        for digit, length, value in (
            ("1", 19, k), ("2", 19, series), ("3", 19, series), ("4", 9, series), ("5", 8, place), ("6", 8, place),
        ):  # fmt: skip
            first = "1" if digit in "123" else "0"  # no part of a UID begins with a nought
            content = content.replace(digit.encode() * length, f"{first}{value:0{length - 1}}".encode())
        relative = f"{series:04d}/{place:04d}.dcm"
        if place == 0:
            (root / relative).parent.mkdir()
        (root / relative).write_bytes(content)
        paths.append(relative)
    return paths


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
