"""A public set from its own files and its own table to a classifier, through the command line."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medclr.cli import main
from medclr.data.phantoms import write_phantoms

HEADER = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
SMALL = ["--epochs", "1", "--batch-size", "8", "--width", "4", "--workers", "0", "--key-file", "key"]


@pytest.fixture
def said(tmp_path, monkeypatch, capfd):
    """Run a command in a folder of its own; its exit code and all that it wrote."""
    monkeypatch.chdir(tmp_path)
    key = tmp_path / "key"
    key.touch(mode=0o600)
    key.write_text("7" * 64)  # splits by its hashes, which this one spreads over both classes

    def run(*words: str) -> tuple[int, str]:
        capfd.readouterr()
        code = main(list(words))
        return code, "".join(capfd.readouterr())

    return run


def write_nih(folder):
    """Three images of each of 16 patients; those of the second half of them are brighter below, and have pneumonia."""
    rng = np.random.default_rng(0)
    rows = [HEADER]
    (folder / "images").mkdir(parents=True)
    for patient in range(1, 17):
        for visit in range(3):
            name = f"{patient:08d}_{visit:03d}.png"
            pixels = rng.integers(0, 120, (16, 16))
            if patient > 8:
                pixels[9:] += 90
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / name)
            findings = "Edema|Pneumonia" if patient > 8 else ("No Finding", "Edema", "Mass|Nodule")[visit]
            rows.append(f"{name},{findings},{visit},{patient},50,F,PA")
    (folder / "Data_Entry_2017.csv").write_text("\n".join(rows) + "\n")


def test_from_the_files_and_the_table_of_a_public_set_to_a_report(said, tmp_path):
    write_nih(tmp_path / "nih")
    table = ["--label", "Pneumonia"]
    code, text = said(
        "pretrain", "--data", "nih", "--spec", "nih_chestxray14", "--holdout", "nih/Data_Entry_2017.csv", *table,
        *SMALL, "--out", "runs/pretrain",
    )  # fmt: skip
    assert code == 0
    assert "Data: nih_chestxray14; licence: no restrictions on use" in text
    assert "Cite: Wang X" in text
    words = ["--labels", "nih/Data_Entry_2017.csv", *table, "--resamples", "100"]
    code, text = said("finetune", *words, "--out", "runs/finetune")
    assert code == 0
    assert "labels: 48 volumes by file, column 'Pneumonia'; 0 keys without a volume" in text
    assert "Encoder's data: nih_chestxray14; licence" in text
    metrics = json.loads(Path("runs/finetune/metrics.json").read_text())
    assert all(part["interval_level"] == "patient" for part in metrics["splits"].values())
    assert sum(part["n"] for part in metrics["splits"].values()) + metrics["n_train"] == 48
    assert pd.read_csv("runs/finetune/predictions.csv")["patient_key"].nunique() == 16
    arms = ["--arms", "pca", "--fractions", "1.0", "--draws", "1"]
    assert said("efficiency", *words, *arms, "--out", "runs/curve", "--spec", "nih_chestxray14")[0] == 0
    page = Path("runs/curve/report.html").read_text()
    assert "Labels: nih_chestxray14; licence: no restrictions" in page
    assert "doi:10.1109/CVPR.2017.369" in page
    # Whatever is missing is said before anything is done.
    code, text = said("finetune", "--labels", "nih/Data_Entry_2017.csv", "--out", "runs/other")
    assert code == 2
    assert "15 columns may be the label" in text


def test_the_spec_of_the_labels_need_not_be_that_of_the_encoder(said, tmp_path):
    write_nih(tmp_path / "nih")
    assert said("pretrain", "--data", "nih", *SMALL, "--out", "runs/pretrain")[0] == 0
    words = ["--labels", "nih/Data_Entry_2017.csv", "--label", "Mass", "--resamples", "100", "--transductive"]
    code, text = said("finetune", *words, "--out", "runs/finetune")
    assert code == 1
    assert "no key among its 7 columns" in text
    code, text = said("finetune", *words, "--spec", "nih_chestxray14", "--out", "runs/finetune2")
    assert code == 0
    assert "Labels: nih_chestxray14; licence" in text
    assert "Encoder's data" not in text


def test_prepare_counts_the_volumes_of_each_domain(said, tmp_path):
    write_phantoms(tmp_path / "phantoms", patients=3, seed=1)
    code, text = said(
        "prepare", "--data", "phantoms/dicom", "--spec", "phantom", "--out", "runs/p", "--key-file", "key"
    )
    assert code == 0
    domains = json.loads(Path("runs/p/scan.json").read_text())["domains"]
    manifest = pd.read_parquet("runs/p/private/manifest.parquet")
    assert sum(domains.values()) == len(manifest)
    assert len(domains) == len(manifest.groupby(["site", "manufacturer", "model", "kernel"])) > 1
    assert f"{len(domains)} domains by site, manufacturer, model, kernel; the largest has" in text


def test_a_domain_that_no_file_names_is_unknown(said, tmp_path):
    (tmp_path / "scans").mkdir()
    for name in "ab":
        values = np.random.default_rng(ord(name)).normal(size=(12, 12, 12)).astype(np.float32)
        nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "scans" / f"{name}.nii")
    code, text = said("prepare", "--data", "scans", "--spec", "mr", "--out", "runs/p", "--key-file", "key")
    assert code == 0, text
    domains = json.loads(Path("runs/p/scan.json").read_text())["domains"]
    assert domains == {"unknown, unknown, unknown, unknown": 2}


def test_one_set_in_two_sizes_is_refused(said, tmp_path):
    (tmp_path / "sets").mkdir()
    for name, side in (("pneumoniamnist", 8), ("pneumoniamnist_64", 12)):
        images = np.random.default_rng(0).integers(0, 255, (3, side, side), dtype=np.uint8)
        np.savez(tmp_path / f"sets/{name}.npz", train_images=images, train_labels=np.zeros((3, 1), np.uint8))
    words = ["prepare", "--data", "sets", "--spec", "pneumoniamnist", "--key-file", "key", "--out"]
    code, text = said(*words, "runs/both")
    assert code == 1
    assert "2 .npz files hold one set in several sizes; leave one there" in text
    (tmp_path / "sets/pneumoniamnist.npz").unlink()
    assert said(*words, "runs/one")[0] == 0
    words[words.index("pneumoniamnist")] = "pneumonia_mnist"
    code, text = said(*words, "runs/mistyped")
    assert code == 2
    assert "did you mean pneumoniamnist" in text
    assert "volumes of" not in text
    words[words.index("pneumonia_mnist")] = "chestmnist"
    code, text = said(*words, "runs/none")
    assert code == 1
    assert r"no volume fits the spec chestmnist (DX 2D, named as (^|/)chestmnist(_\d+)?\.npz$ finds)" in text
