"""The phantoms are sound DICOM, and their labels and faults are where they should be."""

import csv
import hashlib
from collections import Counter, defaultdict

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from scipy.ndimage import zoom
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from medclr.data import phantoms
from medclr.data.phantoms import N_SLICES, SCANNERS, write_phantoms
from medclr.metrics import auroc


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, patients=20, seed=3)
    return folder


@pytest.fixture(scope="module")
def labels(folder):
    with (folder / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def series(folder):
    """The data sets of each sound series, by series UID, in the order of their file names."""
    found = defaultdict(list)
    for path in sorted((folder / "dicom").glob("CANARY-*/*/*.dcm")):
        ds = dcmread(path)
        found[ds.SeriesInstanceUID].append(ds)
    return found


def test_every_series_has_one_label_row(labels, series):
    assert Counter(row["series_uid"] for row in labels) == Counter(series.keys())
    for row in labels:
        ds = series[row["series_uid"]][0]
        assert (ds.StudyInstanceUID, ds.PatientID) == (row["study_uid"], row["patient_id"])


def test_splits_and_labels_go_by_patient(labels):
    of_patient = defaultdict(set)
    for row in labels:
        of_patient[row["patient_id"]].add((row["split"], row["lesion"]))
    assert len(of_patient) == 20
    assert all(len(values) == 1 for values in of_patient.values())
    counts = Counter(value for values in of_patient.values() for value in values)
    assert counts == {
        ("train", "0"): 6,
        ("train", "1"): 6,
        ("val", "0"): 1,
        ("val", "1"): 1,
        ("test", "0"): 3,
        ("test", "1"): 3,
    }
    assert len(labels) > len(of_patient), "some patients have two studies"
    assert len({row["study_uid"] for row in labels}) == len(labels)


def test_series_are_whole_and_evenly_spaced_and_their_numbers_are_shuffled(series):
    for slices in series.values():
        spacing = float(slices[0].SpacingBetweenSlices)
        heights = [float(ds.ImagePositionPatient[2]) for ds in slices]
        assert len(slices) == N_SLICES
        np.testing.assert_allclose(np.diff(sorted(heights)), spacing, atol=1e-3)
        assert sorted(ds.InstanceNumber for ds in slices) == list(range(1, N_SLICES + 1))
        by_number = [float(ds.ImagePositionPatient[2]) for ds in sorted(slices, key=lambda ds: ds.InstanceNumber)]
        assert by_number not in (sorted(heights), sorted(heights)[::-1])
        assert heights not in (sorted(heights), sorted(heights)[::-1])
        assert len({ds.SOPInstanceUID for ds in slices}) == N_SLICES
        assert all(len(ds.PixelData) == 2 * ds.Rows * ds.Columns for ds in slices)
        assert slices[0].file_meta.TransferSyntaxUID.is_little_endian


def _hu(slices):
    ordered = sorted(slices, key=lambda ds: float(ds.ImagePositionPatient[2]))
    return np.stack([ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept) for ds in ordered])


def test_the_scanners_differ_as_stated(series):
    seen = {}
    for slices in series.values():
        ds, hu = slices[0], _hu(slices)
        scanner = next(s for s in SCANNERS if s.model == ds.ManufacturerModelName)
        assert (ds.Manufacturer, ds.ConvolutionKernel) == (scanner.manufacturer, scanner.kernel)
        assert ds.PixelRepresentation == int(scanner.signed)
        assert float(ds.RescaleIntercept) == scanner.intercept
        # A corner of the field of view is air, wherever the patient lies.
        corner = hu[:, :3, :3]
        seen.setdefault(scanner.model, []).append((corner.mean(), corner.std(), float(ds.SliceThickness)))
    assert set(seen) == {"CT-1", "VX"}
    acme, borealis = (np.mean(seen[model], axis=0) for model in ("CT-1", "VX"))
    assert -1000 <= acme[0] < -980  # stored from -1024 up, so its noise is cut off below
    assert borealis[0] == pytest.approx(-970, abs=5)
    assert borealis[1] > 3 * acme[1]
    assert (acme[2], borealis[2]) == (12.0, 12.5)


def test_the_label_is_the_lesion():
    """The same patient with and without a lesion differs by a ball of soft tissue in a lung, and nowhere else."""
    chest = phantoms._draw_chest(np.random.default_rng(5), lesion=True)
    axis = np.arange(-170, 171, 10.0)
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    places = np.stack([x, y, z], axis=-1)
    with_lesion = phantoms._draw_tissue(chest, places, edge_mm=10.0)
    without = phantoms._draw_tissue(phantoms._Chest(**{**vars(chest), "lesion": None}), places, edge_mm=10.0)
    distance = np.linalg.norm(places - chest.lesion, axis=-1)
    changed = with_lesion != without
    assert changed.any()
    assert distance[changed].max() <= chest.lesion_radius + 5.0
    np.testing.assert_allclose(with_lesion[distance < chest.lesion_radius - 5.0], phantoms.LESION_HU)


def test_the_canary_is_wherever_a_name_could_be(series):
    ds = next(iter(series.values()))[0]
    for tag in ("PatientName", "PatientID", "InstitutionName", "StudyDescription", "AccessionNumber", "OperatorsName"):
        assert "CANARY" in str(ds[tag].value)
    assert {s.institution for s in SCANNERS} == {"CANARY GENERAL", "CANARY CLINIC"}


def test_the_broken_files_are_broken(folder, labels):
    broken = folder / "dicom" / "broken"
    assert Counter(path.parent.name for path in broken.rglob("*.dcm")) == {
        "truncated": N_SLICES,
        "missing": N_SLICES - 1,
        "unplaced": N_SLICES,
        "broken": 3,
    }
    with pytest.raises(InvalidDicomError):
        dcmread(broken / "letter.dcm")
    assert dcmread(broken / "capture.dcm").BurnedInAnnotation == "YES"
    assert "PixelData" not in dcmread(broken / "report.dcm")

    def load(name):
        return [dcmread(path) for path in (broken / name).iterdir()]

    assert all("ImagePositionPatient" not in ds for ds in load("unplaced"))
    gaps = np.diff(sorted(float(ds.ImagePositionPatient[2]) for ds in load("missing")))
    assert sorted(gaps / gaps.min()) == pytest.approx([1.0] * (N_SLICES - 3) + [2.0])
    sizes = sorted(path.stat().st_size for path in (broken / "truncated").iterdir())
    assert sizes[0] < sizes[1] - 500
    labelled = {row["patient_id"] for row in labels}
    assert not labelled & {ds.PatientID for name in ("truncated", "missing", "unplaced") for ds in load(name)}


def _digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(str(path.relative_to(folder)), hashlib.sha256(path.read_bytes()).digest()) for path in files]


def test_a_seed_decides_every_byte(tmp_path):
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        write_phantoms(tmp_path / name, patients=2, seed=seed)
    one, same, other = (_digest(tmp_path / name) for name in ("one", "same", "other"))
    assert one == same
    assert len({path for path, _ in one} & {path for path, _ in other}) < len(one) / 2


def test_pixels_alone_are_a_weak_but_real_baseline():
    """PCA + logistic regression on 96 patients: better than chance, far from perfect, as the demo needs."""

    def draw(n, seed):
        rng = np.random.default_rng(seed)
        volumes = []
        for i in range(n):
            chest = phantoms._draw_chest(rng, lesion=bool(i % 2))
            hu, _ = phantoms._scan(chest, SCANNERS[rng.integers(2)], rng)
            size = zoom(hu, [24 / side for side in hu.shape], order=1)
            volumes.append(((size + 1000) / 1400).clip(0, 1).ravel())
        return np.array(volumes), np.arange(n) % 2

    test, y_test = draw(80, seed=99)
    train, y = draw(96, seed=1)
    model = make_pipeline(PCA(30, random_state=0), LogisticRegression(max_iter=2000)).fit(train, y)
    assert 0.6 < auroc(y_test, model.decision_function(test)) < 0.85
