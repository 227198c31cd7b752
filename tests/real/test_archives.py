"""Real files of many vendors and kinds: each is accounted for, and what is read is right."""

from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medclr.data import dicom
from medclr.data.dicom.elements import quick_elements
from medclr.data.discover import discover
from medclr.data.identity import Pseudonymiser
from medclr.data.labels import SPLITS, name_patients, read_labels
from medclr.data.manifest import build_manifest
from medclr.data.prepare import READERS, prepare
from medclr.data.spec import choose_spec, load_spec
from medclr.data.store import Store
from medclr.errors import Unreadable


@pytest.mark.parametrize("name", ["dicom_series_multivendor", "nifti_mixed"])
def test_every_file_is_used_or_skipped_and_every_volume_reads(real_data, name):
    candidates, skipped = discover(real_data / name, workers=0)
    used = {path for candidate in candidates for path in candidate.paths}
    lost = [item.item for item in skipped]
    on_disk = {str(p.relative_to(real_data / name)) for p in (real_data / name).rglob("*") if p.is_file()}
    assert len(lost) == len(set(lost))
    assert used | set(lost) == on_disk
    assert not used & set(lost)
    assert len(candidates) > 30
    for candidate in candidates:
        try:
            volume = READERS[candidate.reader](real_data / name, candidate)
        except Unreadable:
            continue
        assert volume.array.shape[1:] == candidate.shape
        assert np.isfinite(volume.array).all()
        assert volume.spacing_mm == pytest.approx(candidate.spacing_mm, abs=1e-3, nan_ok=True)


def test_the_quick_way_to_a_header_tells_the_same_as_pydicom(real_data, monkeypatch):
    def told(path):
        try:
            return repr(dicom.headers(path, path.name))
        except Unreadable as error:
            return f"{error.reason}: {error}"

    paths = sorted(p for p in (real_data / "dicom_series_multivendor").rglob("*") if p.is_file())[::4]
    quick = [told(path) for path in paths]
    taken = sum(quick_elements(path.read_bytes()[:65536]) is not None for path in paths)
    monkeypatch.setattr(dicom.header, "quick_elements", lambda head: None)
    assert quick == [told(path) for path in paths]
    assert taken > 0.7 * len(paths)


def test_ct_is_in_hounsfield_units(real_data):
    folder = real_data / "dicom_series_multivendor" / "dcm_qa_ct"
    candidates, _ = discover(folder, workers=0)
    scans = [c for c in candidates if c.reader == "dicom" and c.modality == "CT"]
    assert len(scans) == 4
    for scan in scans:
        array = READERS["dicom"](folder, scan).array
        assert array.min() < -900  # air
        assert -1100 < np.median(array) < 500


def test_a_tilted_gantry_is_skipped_when_asked(real_data):
    folder = real_data / "dicom_series_multivendor" / "dcm_qa_ct"
    candidates, skipped = discover(folder, workers=0, tilt="skip")
    assert len([c for c in candidates if c.reader == "dicom"]) == 1
    assert Counter(item.reason for item in skipped)["GANTRY_TILT"] == 28 + 54


def test_hippocampus_scales_are_brought_together(real_data, tmp_path):
    """Maxima differ by four orders of magnitude between files; after normalisation the tissue does not."""
    folder = real_data / "msd_hippocampus" / "images"
    candidates, _ = discover(folder, workers=0)
    some = candidates[:: len(candidates) // 40]
    manifest, _ = build_manifest(some, Pseudonymiser(b"k"))
    spec = choose_spec(manifest).filled(manifest)
    assert spec.name == "mr"
    table, unreadable = prepare(manifest, folder, spec, Store(tmp_path))
    assert not unreadable
    assert table["high"].max() / table["high"].min() > 100
    low, high = table["mean"] - 3 * table["std"], table["mean"] + 3 * table["std"]
    middles = ((table["low"] + table["high"]) / 2 - low) / (high - low)
    assert middles.between(0, 1).all()


def test_a_nifti_is_what_nibabel_reads(real_data):
    folder = real_data / "msd_hippocampus" / "images"
    candidates, _ = discover(folder, workers=0)
    volume = READERS["nifti"](folder, candidates[0])
    image = nib.as_closest_canonical(nib.load(folder / candidates[0].paths[0]))
    np.testing.assert_allclose(volume.array[0], image.get_fdata(dtype=np.float32))
    np.testing.assert_allclose(volume.affine, image.affine)


def test_radiographs_as_png_whose_patients_the_table_names(real_data, tmp_path):
    folder = real_data / "nih_cxr_1000"
    candidates, skipped = discover(folder, workers=0)
    assert len(candidates) == 1000
    assert sorted(item.item for item in skipped) == ["SOURCE.txt", "labels.csv"]
    table = pd.read_csv(folder / "labels.csv", dtype=str).rename(columns={"file": "path"})
    table[["path", "patient_id", "label_pneumonia"]].to_csv(tmp_path / "labels.csv", index=False)
    names = Pseudonymiser(b"k")
    manifest, _ = build_manifest(candidates, names)
    named = name_patients(tmp_path / "labels.csv", manifest, names)
    assert named["patient_known"].all()
    assert named["patient_key"].nunique() == 682
    labels = read_labels(tmp_path / "labels.csv", named, names)
    assert len(labels.rows) == 1000
    assert (labels.rows.groupby("patient_key")["split"].nunique() == 1).all()
    with Image.open(folder / candidates[7].paths[0]) as image:
        expected = np.asarray(image).T[::-1, ::-1]
    np.testing.assert_array_equal(READERS["picture"](folder, candidates[7]).array[0], expected)


def test_the_table_of_a_set_that_ships_with_a_spec(real_data):
    folder = real_data / "nih_cxr_1000"
    names = Pseudonymiser(b"k")
    manifest, _ = build_manifest(discover(folder / "images", workers=0)[0], names)
    spec = load_spec(Path("nih_chestxray14"))
    assert spec.accepts(manifest).all()
    # Its column `file` begins above --data; the spec's pattern finds the name in both.
    named = name_patients(folder / "labels.csv", manifest, names, spec.table)
    assert named["patient_key"].nunique() == 682
    labels = read_labels(folder / "labels.csv", named, names, ["label_pneumonia"], spec.table)
    expected = pd.read_csv(folder / "labels.csv").set_index("file")["label_pneumonia"]
    assert len(labels.rows) == 1000
    assert labels.y[:, 0].tolist() == [expected[f"images/{source[0]}"] for source in labels.rows["source"]]


def test_masks_beside_the_images_are_left_out(real_data):
    manifest, _ = build_manifest(discover(real_data / "msd_hippocampus", workers=0)[0], Pseudonymiser(b"k"))
    used = manifest[load_spec(Path("msd_hippocampus")).accepts(manifest)]
    assert len(used) == 261
    assert used["source"].map(lambda source: source[0].startswith("images/")).all()


@pytest.mark.parametrize(
    ("name", "label", "positive"),
    [("pneumoniamnist", "pneumonia", (3494, 389, 390)), ("breastmnist", "normal, benign", (399, 57, 114))],
)
def test_the_labels_in_a_medmnist_archive(real_data, name, label, positive):
    folder = real_data / name
    names = Pseudonymiser(b"k")
    manifest, _ = build_manifest(discover(folder, workers=0)[0], names)
    spec = load_spec(Path(name))
    assert spec.accepts(manifest).all()
    labels = read_labels(folder / f"{name}.npz", manifest, names, [], spec.table)
    assert labels.task.name == label
    assert tuple(int(labels.y[labels.of(split)].sum()) for split in SPLITS) == positive


def test_medmnist_is_the_archive_turned(real_data, tmp_path):
    folder = real_data / "pneumoniamnist"
    candidates, skipped = discover(folder, workers=0)
    archive = np.load(folder / "pneumoniamnist.npz")
    assert len(candidates) == sum(len(archive[f"{split}_images"]) for split in ("train", "val", "test"))
    assert [Path(item.item).name for item in skipped] == ["SOURCE.txt"]
    volume = READERS["npz"](folder, candidates[7])
    # Rows run to the feet and columns to the patient's left; a volume's axes run right and up.
    np.testing.assert_array_equal(volume.array[0], archive["train_images"][7].T[::-1, ::-1])
    assert load_spec(Path("cxr")).accepts(build_manifest(candidates[:5], Pseudonymiser(b"k"))[0]).all()
