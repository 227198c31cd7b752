"""Every series of a folder, read by medclr and by its peers, and held against its own slices.

python benchmarks/beside_peers.py FOLDER [READER ...]      # prints a Markdown table; peers are in the bench extra

The judge is none of the readers: each plane's pixels (pydicom's; of Siemens' mosaics nibabel's)
must be found in a volume at the place where the plane's own header puts them. A reader is right where all planes are,
wrong where it gave volumes without a word in which some are not, and otherwise it refused.
"""

import logging
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pydicom
from nibabel.nicom import dicomwrappers
from pydicom.dataset import Dataset
from scipy import ndimage

from medclr.data import dicom
from medclr.data.discover import discover

TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
Found = list[tuple[np.ndarray, np.ndarray]]  # three axes, and the affine to RAS in mm


class Plane(NamedTuple):
    """Values (columns, rows), the affine from (column, row, 0) to RAS, and what is air, or padding."""

    values: np.ndarray
    affine: np.ndarray
    tilted: bool = False
    air: float = -np.inf


def main(root: Path, names: list[str]) -> None:
    """Print one row a series and how often each reader was right."""
    readers: dict[str, Callable[[Path], Found]] = {
        "medclr": by_medclr, "dcm2niix": by_dcm2niix, "dicom2nifti": by_dicom2nifti,
        "SimpleITK": by_simpleitk, "MONAI": by_monai,
    }  # fmt: skip
    readers = {name: readers[name] for name in names or readers}
    count: dict[str, Counter[str]] = {name: Counter() for name in readers}
    print("| series | planes | " + " | ".join(readers) + " |\n|---|---|" + "---|" * len(readers))
    for folder in sorted({path.parent for path in root.rglob("*") if is_image(path)}):
        planes = planes_of(folder)
        row = [verdict(read, folder, planes) for read in readers.values()]
        for name, result in zip(readers, row, strict=True):
            count[name][result] += 1
        print(f"| {folder.relative_to(root)} | {len(planes)} | " + " | ".join(row) + " |", flush=True)
    for result in ("right", "wrong", "refused"):
        print(f"| **{result}** | | " + " | ".join(str(count[name][result]) for name in readers) + " |")


def verdict(read: Callable[[Path], Found], folder: Path, planes: list[Plane]) -> str:
    """Right, wrong or refused."""
    try:
        volumes = read(folder)
    except Exception:
        return "refused"
    if not volumes:
        return "refused"
    return "right" if all(any(shows(*volume, plane) for volume in volumes) for plane in planes) else "wrong"


def shows(array: np.ndarray, affine: np.ndarray, plane: Plane) -> bool:
    """Whether a volume has a plane's values at the plane's place.

    Exactly, but for rounding; within 2% of their spread where a tilted gantry makes the volume interpolated.
    """
    across, down = (
        axis.ravel() for axis in np.mgrid[tuple(slice(2, n - 2, max(1, n // 32)) for n in plane.values.shape)]
    )
    at = plane.affine @ np.stack([across, down, np.zeros_like(across), np.ones_like(across)])
    try:
        index = (np.linalg.inv(affine) @ at)[:3]
    except np.linalg.LinAlgError:
        return False
    if not plane.tilted:
        whole = np.rint(index)
        if abs(index - whole).max() > 0.02:
            return False
        index = whole
    seen = ndimage.map_coordinates(array, index.round(4), order=1, mode="constant", cval=np.nan)
    values = plane.values[across, down].clip(plane.air)
    off = np.sqrt(np.mean((seen.clip(plane.air) - values) ** 2))
    return bool(off <= (0.02 if plane.tilted else 0.002) * values.std() + 0.5)


# -- the judge ---------------------------------------------------------------------------------------------------------


def is_image(path: Path) -> bool:
    """A DICOM file with pixels."""
    return path.is_file() and pydicom.misc.is_dicom(path) and "Rows" in pydicom.dcmread(path, stop_before_pixels=True)


def planes_of(folder: Path) -> list[Plane]:
    """All planes of a folder, each with its own place."""
    found: list[Plane] = []
    for path in sorted(path for path in folder.iterdir() if is_image(path)):
        ds = pydicom.dcmread(path)
        if "MOSAIC" in ds.ImageType:
            wrapper = dicomwrappers.wrapper_from_data(ds)
            array, affine = np.asarray(wrapper.get_data(), dtype=float), TO_RAS @ wrapper.affine
            for k in range(array.shape[2]):  # nibabel has (row, column, slice)
                place = affine @ np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, k], [0, 0, 0, 1]], dtype=float)
                found.append(Plane(array[:, :, k].T, place))
        elif "PerFrameFunctionalGroupsSequence" in ds:
            shared = (ds.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
            for frame, pixels in zip(ds.PerFrameFunctionalGroupsSequence, ds.pixel_array, strict=True):
                macros = [
                    (frame if name in frame else shared)[name].value[0]
                    for name in ("PlaneOrientationSequence", "PlanePositionSequence", "PixelMeasuresSequence",
                                 "PixelValueTransformationSequence")
                ]  # fmt: skip
                found.append(plane_of(pixels, *macros))
        else:
            tilted = abs(float(ds.get("GantryDetectorTilt") or 0)) > 0.5
            plane = plane_of(ds.pixel_array, ds, ds, ds, ds)
            found.append(plane._replace(tilted=tilted, air=-1024.0 if ds.Modality == "CT" else -np.inf))
    return found


def plane_of(pixels: np.ndarray, orientation: Dataset, position: Dataset, measures: Dataset, scale: Dataset) -> Plane:
    """Rows and columns, and the four elements that say where they lie and what they mean (PS3.3 C.7.6.2)."""
    row, column = np.array(orientation.ImageOrientationPatient, dtype=float).reshape(2, 3)
    between_rows, between_columns = map(float, measures.PixelSpacing)
    affine = np.eye(4)
    affine[:3] = np.stack([row * between_columns, column * between_rows, np.cross(row, column),
                           np.array(position.ImagePositionPatient, dtype=float)], axis=1)  # fmt: skip
    values = pixels * float(scale.get("RescaleSlope", 1)) + float(scale.get("RescaleIntercept", 0))
    return Plane(values.T, TO_RAS @ affine)


# -- the readers -------------------------------------------------------------------------------------------------------


def by_medclr(folder: Path) -> Found:
    """Refused where any image was skipped for another reason than being a copy."""
    candidates, skipped = discover(folder, workers=0)
    if any(one.reason not in ("NOT_AN_IMAGE", "DUPLICATE") for one in skipped):
        return []
    volumes = [dicom.read(folder, candidate) for candidate in candidates if candidate.reader == "dicom"]
    return [(volume.array[0], volume.affine) for volume in volumes]


def by_dcm2niix(folder: Path) -> Found:
    """With Philips' values as the standard's rescale has them, not as its private elements do."""
    import dcm2niix

    precise = "n" if "philips" in str(folder).lower() else "y"
    with tempfile.TemporaryDirectory() as out:
        command = [dcm2niix.bin, "-b", "n", "-z", "n", "-p", precise, "-f", "%s_%t", "-o", out, str(folder)]
        subprocess.run(command, check=True, capture_output=True)
        return [part for path in sorted(Path(out).glob("*.nii")) for part in from_nifti(path)]


def by_dicom2nifti(folder: Path) -> Found:
    """In its default settings, which check geometry."""
    import dicom2nifti

    with tempfile.TemporaryDirectory() as out:
        dicom2nifti.dicom_series_to_nifti(folder, Path(out) / "a.nii", reorient_nifti=False)
        return from_nifti(Path(out) / "a.nii")


def by_simpleitk(folder: Path) -> Found:
    """GDCM's series reader; a file alone is read as such."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    found: Found = []
    for series in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)):
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series)
        image = sitk.ReadImage(names if len(names) > 1 else names[0])
        affine = np.eye(4)
        n = image.GetDimension()
        affine[:n, :n] = np.array(image.GetDirection()).reshape(n, n) * np.array(image.GetSpacing())
        affine[:n, 3] = image.GetOrigin()
        array = sitk.GetArrayFromImage(image).astype(float).T
        found += [(array[..., t] if n == 4 else array, TO_RAS @ affine) for t in range(array.shape[3] if n == 4 else 1)]
    return found


def by_monai(folder: Path) -> Found:
    """Its own reader of DICOM folders."""
    from monai.data import PydicomReader

    reader = PydicomReader()
    array, meta = reader.get_data(reader.read(str(folder)))
    array = np.asarray(array, dtype=float)
    affine = np.asarray(meta["affine"], dtype=float)
    return [(array, affine)] if array.ndim == 3 else [(array[..., t], affine) for t in range(array.shape[-1])]


def from_nifti(path: Path) -> Found:
    """A file's volumes."""
    image = nib.load(path)
    array = image.get_fdata()
    array = array.reshape(*array.shape[:3], -1)
    return [(array[..., t], image.affine) for t in range(array.shape[3])]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable()
    main(Path(sys.argv[1]), sys.argv[2:])
