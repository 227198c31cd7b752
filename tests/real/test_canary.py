"""Names planted in real images, and every byte that the commands write, also where they fail."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pydicom
import pytest

from medclr.cli import main

TRAIN = ["--epochs", "1", "--batch-size", "8", "--width", "4", "--workers", "0", "--key-file", "key"]
CURVE = ["--fractions", "1", "--draws", "1", "--resamples", "100", "--min-steps", "1", "--max-steps", "1"]
BAD = 1, 2, 3  # exit codes


@pytest.fixture(scope="module")
def archive(real_data, tmp_path_factory):
    """Sixty radiographs of as_dicom.py, some then broken, with names in tags, in file names, and in label tables."""
    folder = tmp_path_factory.mktemp("archive")
    tool = real_data.parent / "tools" / "as_dicom.py"
    subprocess.run([sys.executable, tool, "pneumoniamnist", folder / "a", "--count", "60"], check=True)
    dicom = folder / "a" / "dicom"
    paths = sorted(dicom.rglob("*.dcm"))
    secret = dicom / "CANARY^JOHN" / "CANARY.dcm"
    secret.parent.mkdir()
    ds = pydicom.dcmread(paths[0])
    ds.PatientComments = ds.SeriesDescription = ds.StudyID = ds.AccessionNumber = "CANARY"
    ds.SOPInstanceUID = "1.2.3"
    ds.BodyPartExamined = "CANARY"
    ds.save_as(secret)
    whole = secret.read_bytes()
    (secret.parent / "CANARY short.dcm").write_bytes(whole[:-100])
    (secret.parent / "CANARY cut.dcm").write_bytes(whole[: len(whole) // 2])
    (secret.parent / "CANARY odd.dcm").write_bytes(whole.replace(b"1.2.840.10008.1.2.1", b"CANARY.10008.1.2.1"))
    (secret.parent / "CANARY.txt").write_text("CANARY")
    labels = pd.read_csv(folder / "a" / "labels.csv", dtype=str)
    labels.to_csv(folder / "labels.csv", index=False)
    lost = labels.assign(patient_id=labels["patient_id"] + "CANARY").drop(columns=["series_uid", "study_uid"])
    lost.to_csv(folder / "lost.csv", index=False)
    labels.assign(label="sick").to_csv(folder / "one.csv", index=False)
    doubled = pd.concat([labels, labels.assign(label=1 - labels["label"].astype(int))])
    doubled.assign(note="CANARY").to_csv(folder / "conflict.csv", index=False)
    (folder / "junk.csv").write_bytes(b"\xff\xfeCANARY\0" * 9)
    (folder / "spec.yaml").write_text("name: x\nCANARY: 3\n")
    return folder


def commands(archive):
    """Command lines and the exit codes that are allowed to them."""
    data = ["--data", str(archive / "a" / "dicom")]
    labels = ["--labels", str(archive / "labels.csv")]
    hold = ["--holdout", str(archive / "labels.csv")]
    yield ["scan", *data, "--key-file", "key"], (0,)
    yield ["scan", *data, "--key-file", "key", "--strict"], BAD
    yield ["scan", *data, "--key-file", "key", "--max-skipped", "0"], BAD
    yield ["preview", *data, "--key-file", "key"], (0,)
    yield ["preview", *data, "--key-file", "key", "--spec", "ct"], BAD
    yield ["preview", *data, "--key-file", "key", "--strict"], BAD
    yield ["preview", *data, "--key-file", "key", "--share-images"], (0,)
    yield ["prepare", *data, "--key-file", "key"], (0,)
    yield ["prepare", *data, "--key-file", "key", "--spec", "ct"], BAD
    yield ["prepare", *data, "--key-file", "key", "--max-skipped", "0"], BAD
    yield ["pretrain", *data, *hold, *TRAIN, "--out", "runs/encoder"], (0,)
    for table in ("lost", "one", "conflict", "junk"):
        yield ["pretrain", *data, "--holdout", str(archive / f"{table}.csv"), *TRAIN], (0, *BAD)
        yield ["finetune", "--labels", str(archive / f"{table}.csv"), "--encoder", "runs/encoder"], BAD
        yield ["efficiency", "--labels", str(archive / f"{table}.csv"), "--encoder", "runs/encoder", *CURVE], BAD
    yield ["finetune", *labels, "--encoder", "runs/encoder", "--resamples", "100"], (0,)
    yield ["finetune", *labels, "--encoder", "runs/encoder", "--label", "sex"], BAD
    yield ["finetune", *labels, "--encoder", "runs/encoder", "--method", "knn", "--resamples", "100"], (0,)
    yield ["predict", *data, "--store", "runs/store"], (0,)
    yield ["predict", *data, "--store", "runs/store", "--strict"], BAD
    yield ["predict", *data, "--store", "runs/store", "--max-skipped", "0", "--format", "parquet"], BAD
    yield ["predict", "--data", str(archive / "CANARY"), "--classifier", "runs/encoder"], BAD
    yield ["embed", "--encoder", "runs/encoder"], (0,)
    yield ["embed", *data, "--encoder", "runs/encoder", "--projector-layer", "1"], (0,)
    yield ["efficiency", *labels, "--encoder", "runs/encoder", *CURVE, "--examples", "2"], (0,)
    yield ["doctor"], (0, 1)


def test_no_name_leaves_private(archive, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    said: list[bytes] = []
    for words, codes in commands(archive):
        assert main(words) in codes, words
        told = capfd.readouterr()
        said.append((told.out + told.err).encode())
        # What the user typed may be said again, and nothing else of the archive's folder.
        for word in words:
            said[-1] = said[-1].replace(word.encode(), b"")
        assert b"CANARY" not in said[-1], (words, told)
        assert b"Traceback" not in said[-1], (words, told)
    written = [p for p in tmp_path.rglob("*") if p.is_file()]
    private = [p for p in written if "private" in p.parts]
    assert any(b"CANARY" in p.read_bytes() for p in private)  # so the search can find it
    assert all((p.parent.stat().st_mode & 0o777) == 0o700 for p in private)
    raw = set(pd.read_csv("runs/encoder/private/keys.csv", dtype=str)["raw"])
    secrets = [b"CANARY", *(text.encode() for text in raw if len(text) > 4)]
    for path in set(written) - set(private):
        assert "CANARY" not in str(path.relative_to(tmp_path))
        assert not [secret for secret in secrets if secret in path.read_bytes()], path
    for told in said:
        assert not [secret for secret in secrets if secret in told]
    assert len(written) - len(private) > 100
    assert np.mean([b"medclr" in told for told in said]) > 0.5
