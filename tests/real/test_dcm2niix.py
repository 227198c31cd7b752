"""medclr against dcm2niix on real series of five vendors, and against the slices themselves where the two differ."""

import subprocess
from pathlib import Path

import dcm2niix
import nibabel as nib
import numpy as np
import pydicom
import pytest
from scipy import ndimage

from medclr.data import dicom
from medclr.data.discover import discover

FOLDERS = {  # volumes in it
    "dcm_qa_ct/In/Philips/S21570/S2010": 1,
    "dcm_qa_nih/In/20180918GE/mr_0004": 10,  # time points that only the instance number tells apart
    "dcm_qa_nih/In/20180918GE/mr_0005": 10,
    "dcm_qa_nih/In/20180918GE/mr_0006": 10,
    "dcm_qa_nih/In/20180918GE/mr_0007": 10,
    "dcm_qa_nih/In/20180918Si/mr_0003": 2,  # mosaics, as all of Siemens' here
    "dcm_qa_nih/In/20180918Si/mr_0004": 2,
    "dcm_qa_nih/In/20180918Si/mr_0005": 2,
    "dcm_qa_nih/In/20180918Si/mr_0006": 2,
    "dcm_qa_orientation/In/ax/axasc35": 2,
    "dcm_qa_orientation/In/ax/axasc36": 2,
    "dcm_qa_orientation/In/ax/axasc36b": 2,
    "dcm_qa_orientation/In/ax/axdesc35": 2,
    "dcm_qa_orientation/In/ax/axdesc36": 2,
    "dcm_qa_orientation/In/ax/axint35": 2,
    "dcm_qa_orientation/In/ax/axint36": 2,
    "dcm_qa_orientation/In/axmb/AxAsc36mb2a": 2,
    "dcm_qa_orientation/In/axmb/AxInt36mb": 2,
    "dcm_qa_orientation/In/cor/corasc35": 2,
    "dcm_qa_orientation/In/cor/corasc36": 2,
    "dcm_qa_orientation/In/cor/cordesc35": 2,
    "dcm_qa_orientation/In/cor/cordesc36": 2,
    "dcm_qa_orientation/In/cor/corint35": 2,
    "dcm_qa_orientation/In/cor/corint36": 2,
    "dcm_qa_orientation/In/sag/sagasc35": 2,
    "dcm_qa_orientation/In/sag/sagasc36": 2,
    "dcm_qa_orientation/In/sag/sagdesc35": 2,
    "dcm_qa_orientation/In/sag/sagdesc36": 2,
    "dcm_qa_orientation/In/sag/sagint35": 2,
    "dcm_qa_orientation/In/sag/sagint36": 2,
    "dicom2nifti/anatomical/001": 1,
    "dicom2nifti/ge/anatomical/001": 1,
    "dicom2nifti/ge/anatomical/001_implicit": 1,
    "dicom2nifti/ge/dti/001": 2,
    "dicom2nifti/ge/dti/001_implicit": 2,
    "dicom2nifti/ge/dti/002": 4,
    "dicom2nifti/generic/anatomical/001": 1,
    "dicom2nifti/generic/anatomical/001_implicit": 1,
    "dicom2nifti/generic/anatomical/002_non_isotropic": 1,
    "dicom2nifti/hitachi/anatomical/001": 1,
    "dicom2nifti/hitachi/anatomical/001_implicit": 1,
    "dicom2nifti/hyperfine/anatomical/001": 1,  # enhanced
    "dicom2nifti/philips/anatomical/001": 1,
    "dicom2nifti/philips/anatomical/002": 2,  # magnitude and phase
    "dicom2nifti/philips_enhanced/anatomical/001": 1,
    "dicom2nifti/philips_enhanced/anatomical/001_implicit": 1,
    "dicom2nifti/siemens/anatomical/001": 1,
    "dicom2nifti/siemens/anatomical/001_implicit": 1,
    "dicom2nifti/siemens/dti_classic/001": 2,
    "dicom2nifti/siemens_multiframe/anatomical/001": 1,  # enhanced
}


@pytest.mark.parametrize("name", FOLDERS)
def test_the_voxels_and_the_affine_are_those_of_dcm2niix(real_data, tmp_path, name):
    folder = real_data / "dicom_series_multivendor" / name
    theirs = convert(folder, tmp_path)
    candidates = [c for c in discover(folder, workers=0)[0] if c.reader == "dicom"]
    assert len(candidates) == len(theirs) == FOLDERS[name]
    for candidate in candidates:
        volume = dicom.read(folder, candidate)
        same = [
            image
            for image in theirs
            if image.shape == candidate.shape and abs(image.get_fdata() - volume.array[0]).max() <= 1
        ]
        assert same
        np.testing.assert_allclose(same[0].affine, volume.affine, atol=0.01)


@pytest.mark.parametrize(("name", "n_volumes"), [("GE", 2), ("Philips/S21610/S2010", 1)])
def test_a_sheared_ct_shows_each_slice_where_its_header_puts_it(real_data, name, n_volumes):
    """No oracle but the slices: dcm2niix makes one volume of the two spacings in GE's by interpolating between them."""
    folder = real_data / "dicom_series_multivendor/dcm_qa_ct/In" / name
    candidates, skipped = discover(folder, workers=0)
    assert len(candidates) == n_volumes
    assert all(item.reason == "NOT_AN_IMAGE" for item in skipped)
    for candidate in candidates:
        volume = dicom.read(folder, candidate)
        for path in candidate.paths[2::6]:
            ds = pydicom.dcmread(folder / path)
            hu = np.maximum(ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept), -1024)
            r, c = np.mgrid[100:400:3, 100:400:3]
            across, down = np.array(ds.ImageOrientationPatient, dtype=float).reshape(2, 3) * np.array(
                [[ds.PixelSpacing[1]], [ds.PixelSpacing[0]]], dtype=float
            )
            lps = np.array(ds.ImagePositionPatient, dtype=float) + c[..., None] * across + r[..., None] * down
            ras = lps * [-1, -1, 1]
            index = (ras - volume.affine[:3, 3]) @ np.linalg.inv(volume.affine[:3, :3]).T
            seen = ndimage.map_coordinates(volume.array[0], np.moveaxis(index, -1, 0), order=1)
            assert np.sqrt(np.mean((seen - hu[r, c]) ** 2)) < 12  # twice interpolated; displaced by 2 cm it is hundreds


def convert(folder: Path, out: Path) -> list[nib.Nifti1Image]:
    """What dcm2niix makes of a folder, 4D taken apart, turned to RAS."""
    # Philips' values as displayed, which are those of the standard's rescale, not as its private elements have them.
    precise = "n" if "philips" in str(folder) else "y"
    command = [dcm2niix.bin, "-b", "n", "-z", "n", "-p", precise, "-f", "%s_%t", "-o", str(out), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    images = [nib.as_closest_canonical(nib.load(path)) for path in sorted(out.glob("*.nii"))]
    return [part for image in images for part in (nib.four_to_three(image) if len(image.shape) == 4 else [image])]
