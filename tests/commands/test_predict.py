"""`medclr predict` and `medclr embed` through the command line, on small radiographs."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pydicom
import pytest
import torch
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

import medclr
from medclr.cli import main
from medclr.commands import apply, embed, predict
from medclr.commands.prepare import stocked
from medclr.data.identity import load_key
from medclr.data.labels import Task
from medclr.data.store import Store
from medclr.errors import Interrupted
from medclr.models import Architecture, build_encoder, build_projector, save_bundle
from medclr.reporting.run import Run
from medclr.training.encode import embed_rows

SPEC = """
name: tiny
modality: [DX, CR]
spatial_dims: 2
normalisation: percentile
sizing: fit
max_patch: 16
preset: xray
"""
COMMON = ["--workers", "0"]


def radiograph(path, patient, number, side, manufacturer="ACME", modality="DX"):
    """A bright half, left or right of the image."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}.1"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = f"1.2.3.{number}.2", f"1.2.3.{number}.3"
    ds.PatientID, ds.Manufacturer, ds.Modality = patient, manufacturer, modality
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.Rows = ds.Columns = 16
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit = 15
    pixels = np.random.default_rng(number).integers(0, 100, (16, 16))
    pixels[:, 8 * side : 8 * side + 8] += 60
    ds.PixelData = pixels.astype("<u2").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, ds, enforce_file_format=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two images of each of twelve patients, the run of an encoder that saw the first six, and two classifiers."""
    folder = tmp_path_factory.mktemp("world")
    before = Path.cwd()
    os.chdir(folder)
    rows = []
    for number in range(24):
        patient = number // 2
        radiograph(Path(f"scans/CANARY{patient}/{number}.dcm"), f"CANARY{patient}", number, patient % 2)
        split = "test" if patient > 8 else "train"
        kind = ("none", "some", "=much")[patient % 3]
        rows.append({"series_uid": f"1.2.3.{number}.3", "side": patient % 2, "kind": kind, "split": split})
    pd.DataFrame(rows).to_csv("labels.csv", index=False)
    Path("tiny.yaml").write_text(SPEC)
    words = ["--data", "scans", "--spec", "tiny.yaml", "--out", "runs/pretrain", "--key-file", "key", *COMMON]
    assert main(["prepare", *words]) == 0
    bundle(Path("runs/pretrain"))
    common = ["--labels", "labels.csv", "--encoder", "runs/pretrain", "--resamples", "100", *COMMON]
    assert main(["finetune", *common, "--label", "kind", "--method", "knn", "--out", "runs/kinds"]) == 0
    assert main(["finetune", *common, "--label", "side", "--out", "runs/side"]) == 0
    yield folder
    os.chdir(before)


def bundle(run):
    """A random encoder, which is as good as any here, where `pretrain` would have put it."""
    _, spec = stocked(run)
    torch.manual_seed(0)
    architecture = Architecture(10, 8, 2, 1, "batch", spec.patch)
    encoder, projector = build_encoder(architecture), build_projector(64, 16, 8, layers=3)
    projector(encoder(torch.rand(8, 1, 16, 16)))
    details = {"axis_order": "", "method": "simclr", "code_version": "0", "manifest_hash": "", "holdout": {}}
    names = load_key(Path("key"))
    seen = {
        "fingerprint": names.fingerprint,
        "patients": sorted(names.pseudonym("patient", f"CANARY{patient}") for patient in range(6)),
        "pixels": [],
        "n_unknown": 0,
    }
    details |= {"spec": spec.to_dict(), "hyperparameters": {"seed": 0}, "seen": seen}
    save_bundle(run / "encoder", encoder, projector, architecture, details)


@pytest.fixture
def said(capsys, world, tmp_path):
    """Run a command with `--out` in a new folder; its exit code and what it wrote to standard output and error."""

    def run(*words, out=None):
        capsys.readouterr()
        code = main([*words, "--out", str(out or tmp_path / "out"), "--store", str(world / "runs/store"), *COMMON])
        text = capsys.readouterr()
        return code, text.out, text.err

    return run


def read(path):
    return pd.read_csv(path, dtype={"volume_id": str, "patient_key": str}, keep_default_na=False)


def test_the_same_scans_get_the_probabilities_that_finetune_gave(said, tmp_path):
    code, out, _ = said("predict", "--data", "scans")
    assert code == 0
    assert "classifier: runs/side, the newest complete finetune run; all" in out
    table, before = read(tmp_path / "out/predictions.csv"), read("runs/side/predictions.csv")
    both = before.merge(table, on="volume_id", validate="one_to_one", suffixes=("", "_new"))
    assert len(both) == len(table) == 24
    np.testing.assert_allclose(both["probability_new"], both["probability"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(1 / (1 + np.exp(-both["logit"])), both["probability_new"])
    assert (both["patient_key_new"] == both["patient_key"]).all()
    # Whom it was trained on, it says: the key is found, though nobody named one.
    assert (both["in_training"] == np.where(both["split"] == "train", "yes", "no")).all()
    assert "warning: 18 volumes of 9 patients" in out
    assert (both["unlike_training"] == "").all()


def test_the_private_table_leads_back_to_files_and_patients(said, tmp_path):
    assert said("predict", "--data", "scans", "--format", "parquet")[0] == 0
    assert not (tmp_path / "out/predictions.csv").exists()
    table = pd.read_parquet(tmp_path / "out/predictions.parquet")
    private = pd.read_parquet(tmp_path / "out/private/predictions.parquet")
    assert list(private["volume_id"]) == list(table["volume_id"])
    for row in private.itertuples():
        number = int(Path(row.path).stem)
        assert (row.patient_id, row.series_uid) == (f"CANARY{number // 2}", f"1.2.3.{number}.3")
        assert row.path == f"CANARY{number // 2}/{number}.dcm"
        assert row.in_pretraining == ("yes" if number < 12 else "no")
    np.testing.assert_array_equal(private["probability"], table["probability"])
    for path in (tmp_path / "out").rglob("*"):
        assert "private" in path.parts or path.is_dir() or b"CANARY" not in path.read_bytes()


def test_several_classes_by_the_nearest_neighbours(said, tmp_path):
    assert said("predict", "--data", "scans", "--classifier", "runs/kinds")[0] == 0
    table, before = read(tmp_path / "out/predictions.csv"), read("runs/kinds/predictions.csv")
    names = ["none", "some", "=much"]
    probability = table[[f"probability {name}" for name in names]].to_numpy()
    np.testing.assert_allclose(probability.sum(axis=1), 1)
    both = before.merge(table, on="volume_id", suffixes=("", "_new"))
    for name in names:
        np.testing.assert_allclose(both[f"probability {name}_new"], both[f"probability {name}"], atol=1e-5)
    # In a table for spreadsheets no cell is a formula.
    likeliest = [("'" * name.startswith("=")) + name for name in np.array(names)[probability.argmax(axis=1)]]
    assert list(table["predicted"]) == likeliest


def test_what_is_unlike_the_training_is_told(said, tmp_path):
    new = tmp_path / "new"
    radiograph(new / "a.dcm", "NEW", 100, 0)
    radiograph(new / "b.dcm", "CANARY1", 101, 0, manufacturer="Other")
    radiograph(new / "c.dcm", "CANARY1", 102, 0, modality="CR")
    radiograph(new / "d.dcm", "NEW", 103, 0, modality="US")
    (new / "e.dcm").write_bytes((new / "a.dcm").read_bytes()[:-100])
    code, out, _ = said("predict", "--data", str(new), "--classifier", "runs/side/classifier")
    assert code == 0
    table = read(tmp_path / "out/predictions.csv").merge(read(tmp_path / "out/private/predictions.csv"), on="volume_id")
    assert dict(zip(table["path"], table["unlike_training_x"], strict=True)) == {
        "a.dcm": "",
        "b.dcm": "manufacturer",
        "c.dcm": "modality",
    }
    assert dict(zip(table["path"], table["in_training_x"], strict=True)) == {
        "a.dcm": "no",
        "b.dcm": "yes",
        "c.dcm": "yes",
    }
    assert "warning: left out US 2D (1 file); the classifier is for DX, CR 2D" in out
    assert "warning: 1 volume of a modality that it was not trained on (CR;" in out
    assert "warning: 1 volume of a manufacturer that it was not trained on (Other;" in out
    skipped = pd.read_csv(tmp_path / "out/private/skipped.csv", index_col="item")["reason"]
    assert dict(skipped) == {"d.dcm": "OTHER_KIND", "e.dcm": "TRUNCATED"}
    code, _, err = said("predict", "--data", str(new), "--max-skipped", "0", out=tmp_path / "strict")
    assert code == 3
    assert "more than --max-skipped 0" in err


def test_under_another_key_patients_are_not_checkable(said, tmp_path):
    new = tmp_path / "new"
    radiograph(new / "a.dcm", "CANARY1", 100, 0)
    radiograph(new / "b.dcm", "CANARY1", 3, 1)  # the very pixels that it was trained on
    code, out, _ = said("predict", "--data", str(new), "--key-file", str(tmp_path / "other"))
    assert code == 0
    table = read(tmp_path / "out/private/predictions.csv").set_index("path")
    assert dict(table["in_training"]) == {"a.dcm": "not checkable", "b.dcm": "yes"}
    assert "the patients of 1 volume is not checkable" in out


def test_nothing_that_fits_is_an_error_that_names_both(said, tmp_path):
    radiograph(tmp_path / "new/a.dcm", "P", 100, 0, modality="US")
    code, _, err = said("predict", "--data", str(tmp_path / "new"))
    assert code == 1
    assert "no volume fits the spec tiny (DX CR 2D)" in err
    assert err.endswith("has US 2D. The classifier asks for it: use another --classifier\n")
    code, _, err = said("embed", "--data", str(tmp_path / "new"), "--encoder", "runs/pretrain", out=tmp_path / "2")
    assert code == 1
    assert err.endswith("The encoder asks for it: use another --encoder\n")


def test_without_a_classifier_or_an_encoder_there_is_one_line(said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scans").mkdir()
    for words, known in ((["predict", "--data", "scans"], "medclr finetune"), (["embed"], "medclr pretrain")):
        code, _, err = said(*words)
        assert code == 2
        assert known in err
        assert err.count("\n") == 1
    code, _, err = said("predict", "--data", "scans", "--classifier", "scans")
    assert code == 1
    assert "--classifier scans holds no classifier" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [["predict", "--data", "scans"], ["embed", "--encoder", "runs/pretrain"]])
def test_an_interrupted_run_goes_on_where_it_was(said, tmp_path, monkeypatch, words):
    assert said(*words, out=tmp_path / "whole")[0] == 0
    monkeypatch.setattr(apply, "PART", 7)
    calls = []
    module, name = (predict, "classify_rows") if words[0] == "predict" else (embed, "embed_rows")
    function = getattr(module, name)

    def slow(network, rows, *args):
        calls.append(len(rows))
        if len(calls) == 3:
            raise Interrupted(15)
        return function(network, rows, *args)

    monkeypatch.setattr(module, name, slow)
    assert said(*words)[0] == 143
    assert len(list((tmp_path / "out/parts").iterdir())) == 2
    code, out, _ = said(*words)
    assert code == 0
    assert calls == [7, 7, 7, 7, 3]
    assert not (tmp_path / "out/parts").exists()
    table = "predictions.csv" if words[0] == "predict" else "embeddings.parquet"
    results = [tmp_path / run / table for run in ("whole", "out")]
    a, b = (read(path) if path.suffix == ".csv" else pd.read_parquet(path) for path in results)
    pd.testing.assert_frame_equal(a, b, rtol=1e-4, atol=1e-6)
    code, out, _ = said(*words)
    assert code == 0
    assert "is complete already" in out
    assert len(calls) == 5


def test_another_classifier_in_the_same_folder_is_refused(said, tmp_path, monkeypatch):
    def fail(*args):
        raise Interrupted(15)

    with monkeypatch.context() as patch:
        patch.setattr(predict, "classify_rows", fail)
        assert said("predict", "--data", "scans")[0] == 143
    monkeypatch.setattr(Run, "newest", lambda command: Path("runs/kinds"))
    code, _, err = said("predict", "--data", "scans")
    assert code == 2
    assert "have changed since this run began" in err


def test_predict_returns_the_table_also_where_it_is_there_already(world, tmp_path):
    config = medclr.PredictConfig(data=Path("scans"), classifier=Path("runs/kinds"), out=tmp_path / "out", workers=0)
    first, again = medclr.predict(config), medclr.predict(config)
    assert list(first["volume_id"]) == list(again["volume_id"])
    assert all(isinstance(key, str) for key in again["patient_key"])
    columns = [column for column in first if column.startswith(("logit", "probability"))]
    np.testing.assert_allclose(first[columns].to_numpy(float), again[columns].to_numpy(float))


@pytest.mark.parametrize("layer", [0, 2])
def test_features_are_those_of_the_encoder(said, tmp_path, layer):
    words = ["embed", "--encoder", "runs/pretrain", "--projector-layer", str(layer)]
    assert said(*words)[0] == 0
    assert said(*words, "--data", "scans", out=tmp_path / "data")[0] == 0
    own, new = (pd.read_parquet(tmp_path / run / "embeddings.parquet") for run in ("out", "data"))
    assert list(own) == ["volume_id", "patient_key", *(f"f{at}" for at in range((64, 64, 16)[layer]))]
    rows, spec = stocked(Path("runs/pretrain"))
    network = medclr.load_encoder("runs/pretrain").bundle.middle(layer)
    expected = embed_rows(network, rows, Store(Path("runs/store")), spec)
    assert list(own["volume_id"]) == list(rows["volume_id"])
    np.testing.assert_allclose(own.iloc[:, 2:], expected, rtol=1e-4, atol=1e-5)
    assert set(own.dtypes[2:].astype(str)) == {"float32"}
    pd.testing.assert_frame_equal(own.sort_values("volume_id"), new.sort_values("volume_id"), check_index_type=False)
    for run in ("out", "data"):
        private = pd.read_csv(tmp_path / run / "private/volumes.csv")
        assert set(private["patient_id"]) == {f"CANARY{patient}" for patient in range(12)}


def test_embeddings_lie_in_row_groups(said, tmp_path, monkeypatch):
    monkeypatch.setattr(apply, "PART", 10)
    assert said("embed", "--encoder", "runs/pretrain")[0] == 0
    file = pq.ParquetFile(tmp_path / "out/embeddings.parquet")
    assert [file.metadata.row_group(at).num_rows for at in range(file.num_row_groups)] == [10, 10, 4]


def test_a_layer_that_is_not_there_is_a_usage_error(said, tmp_path):
    code, _, err = said("embed", "--encoder", "runs/pretrain", "--projector-layer", "3")
    assert code == 2
    assert "layer 3 of the projector: choose 0 to 2" in err
    assert not (tmp_path / "out").exists()


def test_the_temperature_is_in_the_probability_and_not_in_the_logit():
    logits = np.array([[2.0], [-1.0]])
    table = predict.scored(Task("binary", ("x",), ("no", "yes")), logits, 2.0)
    assert list(table) == ["probability", "logit"]
    np.testing.assert_allclose(table["probability"], 1 / (1 + np.exp(-logits[:, 0] / 2)))
    np.testing.assert_array_equal(table["logit"], logits[:, 0])
    several = predict.scored(Task("multilabel", ("a", "b"), ("1", "1")), np.array([[0.0, 3.0]]), 3.0)
    assert several.to_dict("records") == [
        {"probability a": 0.5, "probability b": pytest.approx(1 / (1 + np.exp(-1))), "logit a": 0.0, "logit b": 3.0}
    ]
