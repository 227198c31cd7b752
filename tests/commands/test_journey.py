"""The whole way a user goes, through the command line, on phantoms: scan, pretrain, finetune, efficiency."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

import medclr
from medclr.cli import main, parse
from medclr.data.phantoms import write_phantoms

PRETRAIN = ["pretrain", "--data", "phantoms/dicom", "--holdout", "phantoms/labels.csv", "--spec", "tiny.yaml"]
SETTINGS = ["--key-file", "key", "--epochs", "6", "--batch-size", "6", "--lr", "0.02", "--width", "8", "--workers", "0"]
SPEC = """
name: tiny
modality: [CT]
spatial_dims: 3
normalisation: window
window: [-1000, 400]
clip: [-1024, 1500]
sizing: spacing
max_patch: 12
preset: ct
"""
CURVE = ["--fractions", "0.4", "1", "--draws", "2", "--resamples", "200", "--min-steps", "2", "--max-steps", "2"]


@pytest.fixture(scope="module")
def journey(tmp_path_factory):
    """A folder in which a user has run every command; yields it, and leaves the tests in it."""
    folder = tmp_path_factory.mktemp("journey")
    before = Path.cwd()
    os.chdir(folder)
    write_phantoms(folder / "phantoms", patients=36, seed=1)
    (folder / "tiny.yaml").write_text(SPEC)
    assert main(["scan", "--data", "phantoms/dicom", "--out", "runs/scan", "--key-file", "key", "--workers", "0"]) == 0
    assert main([*PRETRAIN, *SETTINGS, "--out", "runs/pretrain"]) == 0
    assert main(["finetune", "--labels", "phantoms/labels.csv", "--out", "runs/finetune", "--resamples", "200"]) == 0
    assert main(["efficiency", "--labels", "phantoms/labels.csv", "--out", "runs/efficiency", *CURVE]) == 0
    yield folder
    os.chdir(before)


@pytest.fixture
def said(capsys, journey):
    """Run a command; its exit code and the lines it wrote to standard error."""

    def run(*words: str) -> tuple[int, list[str]]:
        capsys.readouterr()
        code = main(list(words))
        return code, capsys.readouterr().err.strip().splitlines()

    return run


def record(path: str):
    return json.loads(Path(path).read_text())


def test_scan_accounts_for_every_file(journey):
    on_disk = {str(p.relative_to("phantoms/dicom")) for p in Path("phantoms/dicom").rglob("*") if p.is_file()}
    manifest = pd.read_parquet("runs/scan/private/manifest.parquet")
    used = {item for source in manifest["source"] for item in source}
    skipped = set(pd.read_csv("runs/scan/private/skipped.csv")["item"])
    assert used | skipped == on_disk
    assert not used & skipped
    assert record("runs/scan/scan.json")["files"] == {
        "all": len(on_disk),
        "used": len(used),
        "skipped": len(skipped),
    }
    assert {"TRUNCATED", "NO_GEOMETRY", "NONUNIFORM", "BURNED_IN"} <= record("runs/scan/scan.json")["skipped"].keys()


def test_pretrain_learns_and_holds_out(journey):
    rows = pd.read_csv("runs/pretrain/metrics.csv")
    assert list(rows["epoch"]) == list(range(6))
    assert rows["loss"].iloc[-1] < rows["loss"].iloc[0]
    # Some batches hold two volumes of a patient, which are not told apart.
    assert np.isclose(rows["chance"].max(), np.log(2 * 6 - 1))
    assert rows["chance"].between(np.log(2 * 4 - 1), np.log(2 * 6 - 1) + 1e-6).all()
    bundle = medclr.load_encoder("runs/pretrain").bundle
    labels = pd.read_csv("phantoms/labels.csv", dtype=str)
    keys = pd.read_csv("runs/pretrain/private/keys.csv", dtype=str)
    raw = dict(zip(keys["pseudonym"], keys["raw"], strict=True))
    seen = {raw[key] for key in bundle.details["seen"]["patients"]}
    assert seen == set(labels["patient_id"][labels["split"] == "train"])


def test_finetune_reports_what_its_predictions_say(journey):
    metrics = record("runs/finetune/metrics.json")
    table = pd.read_csv("runs/finetune/predictions.csv")
    for split in ("val", "test"):
        part = table[table["split"] == split]
        if metrics["splits"][split]["auroc"] is not None:
            assert metrics["splits"][split]["auroc"] == pytest.approx(roc_auc_score(part["y"], part["probability"]))
    test = metrics["splits"]["test"]
    assert test["low"] <= test["auroc"] <= test["high"]
    assert metrics["leakage"].startswith("Pre-training saw none")
    assert metrics["near_duplicates"]["test_images"] is not None


def test_curve_is_the_mean_of_its_cells(journey):
    points = pd.read_csv("runs/efficiency/curve.csv")
    assert set(points["arm"]) == {"scratch", "simclr-linear", "simclr-full", "pca"}
    assert len(points) == 8
    cells = pd.DataFrame([json.loads(p.read_text()) for p in Path("runs/efficiency/cells").glob("*.json")])
    assert len(cells) == 16
    for point in points.itertuples():
        mine = cells[(cells["arm"] == point.arm) & (cells["fraction"] == point.fraction)]
        assert point.auroc == pytest.approx(mine["auroc"].mean())
        assert point.low <= point.auroc <= point.high


def test_report_shows_the_curve_and_says_what_it_is_of(journey):
    page = Path("runs/efficiency/report.html").read_text()
    points = pd.read_csv("runs/efficiency/curve.csv")
    for value in points["auroc"]:
        assert f"{value:.3f}" in page
    assert "phantom" in page
    assert record("runs/efficiency/report.json")["verdict"] in page.replace("&#39;", "'")
    assert 'src="http' not in page
    for figure in ("curve.png", "curve.svg", "curve.pdf"):
        assert Path("runs/efficiency", figure).stat().st_size > 5000


def test_no_patient_data_outside_private(journey):
    """Every byte written outside private/, and not part of the input or the key."""
    raw = pd.read_csv("runs/pretrain/private/keys.csv", dtype=str)["raw"].dropna()
    secrets = [b"CANARY", *(text.encode() for text in raw if len(text) > 4)]
    looked_at = 0
    for path in Path("runs").rglob("*"):
        if path.is_file() and "private" not in path.parts:
            looked_at += 1
            content = path.read_bytes()
            assert not [secret for secret in secrets if secret in content], path
            assert "CANARY" not in str(path)
    assert looked_at > 40
    assert list(Path("runs/pretrain/tensorboard").glob("events.out.tfevents.*"))
    assert not [p for p in Path("runs").rglob("*") if socket.gethostname() in p.name.split(".")]
    for private in Path("runs").glob("*/private"):
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert b"CANARY" in Path("runs/pretrain/private/keys.csv").read_bytes()  # so the search can find it


def test_a_finished_command_is_not_run_again(journey, capsys):
    before = Path("runs/pretrain/encoder/encoder.safetensors").stat().st_mtime_ns
    assert main([*PRETRAIN, *SETTINGS, "--out", "runs/pretrain"]) == 0
    assert "complete already" in capsys.readouterr().out
    assert Path("runs/pretrain/encoder/encoder.safetensors").stat().st_mtime_ns == before


def test_another_configuration_is_refused(said):
    code, lines = said(*PRETRAIN, *SETTINGS, "--out", "runs/pretrain", "--temperature", "0.2")
    assert code == 2
    assert len(lines) == 1
    assert "temperature" in lines[0]


def test_killed_and_requeued_equals_uninterrupted(journey, tmp_path, said):
    """kill -9 within the third epoch, then SIGUSR1 to all processes of a SLURM job; the third run ends with the same
    bytes and the same rows as a run in one go."""
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho $@ >> {tmp_path}/calls\n")
    (tmp_path / "scontrol").chmod(0o755)
    slurm = {"JOB_ID": 71, "JOB_NAME": "train", "NTASKS": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0, "NNODES": 1}
    array = {"ARRAY_JOB_ID": 70, "ARRAY_TASK_ID": 1}
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment |= {f"SLURM_{name}": str(value) for name, value in (slurm | array).items()}
    words = [*PRETRAIN, *SETTINGS, "--out", "runs/killed", "--store", "runs/store"]
    more = ["--workers", "2", "--checkpoint-minutes", "0"]
    command = [sys.executable, "-c", "from medclr.cli import entry; entry()", *words, *more]
    for kill, epoch, extra, code in (
        (signal.SIGKILL, 2, [], -9),
        (signal.SIGUSR1, 4, ["--requeue"], 143),
    ):
        with subprocess.Popen(
            [*command, *extra], stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(f"epoch {epoch}:"):
                    os.killpg(process.pid, kill)
        assert process.returncode == code
    assert (tmp_path / "calls").read_text() == "requeue 70_1\n"
    assert not record("runs/killed/run.json")["complete"]
    assert not Path("runs/killed/encoder").exists()
    assert said(*words)[0] == 0
    one, other = (Path("runs", name, "encoder/encoder.safetensors").read_bytes() for name in ("pretrain", "killed"))
    assert one == other
    assert Path("runs/killed/metrics.csv").read_text() == Path("runs/pretrain/metrics.csv").read_text()


def test_ctrl_c_ends_in_one_line(journey):
    command = [sys.executable, "-c", "from medclr.cli import entry; entry()"]
    words = [*command, *PRETRAIN, *SETTINGS, "--out", "runs/stopped", "--seed", "7"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch 1"):
                process.send_signal(signal.SIGINT)
                break
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert len(errors.strip().splitlines()) == 1
    assert "again" in errors


def test_test_patients_in_pretraining_are_refused(said):
    assert main([*PRETRAIN[:3], "--spec", "tiny.yaml", *SETTINGS, "--out", "runs/leaky", "--store", "runs/store"]) == 0
    words = ["finetune", "--labels", "phantoms/labels.csv", "--encoder", "runs/leaky", "--resamples", "200"]
    code, lines = said(*words, "--out", "runs/leak")
    assert code == 1
    assert len(lines) == 1
    assert "test patients" in lines[0]
    assert "--holdout" in lines[0]
    assert main([*words, "--out", "runs/transductive", "--transductive"]) == 0
    assert record("runs/transductive/metrics.json")["transductive"] is True


@pytest.mark.parametrize(
    ("prepare", "words", "named"),
    [
        (lambda p: p.mkdir(), ["scan", "--data", "{}"], "empty"),
        (lambda p: (p.mkdir(), (p / "a.txt").write_text("x")), ["scan", "--data", "{}"], "NOT_AN_IMAGE"),
        (lambda p: None, ["scan", "--data", "{}"], "no such folder"),
        (lambda p: p.write_text("x"), ["scan", "--data", "{}"], "a file; name the folder"),
        (lambda p: p.write_text("series_uid,label\n1.2,0\n1.3,1\n"), ["finetune", "--labels", "{}"], "matches"),
        (lambda p: p.write_text("series_uid,label\n1.2,1\n1.3,1\n"), ["finetune", "--labels", "{}"], "single class"),
        (lambda p: p.write_text("nothing\n1\n"), ["finetune", "--labels", "{}"], "key"),
        (lambda p: p.write_bytes(os.urandom(300)), ["finetune", "--labels", "{}"], "bad.csv"),
        (lambda p: None, ["finetune", "--labels", "phantoms/labels.csv", "--encoder", "{}"], "does not exist"),
        (lambda p: None, ["finetune", "--labels", "{}"], "no such file"),
        (lambda p: None, ["pretrain", "--data", "phantoms/dicom", "--holdout", "{}"], "no such file"),
    ],
)
def test_bad_input_is_one_clear_line(said, tmp_path, prepare, words, named):
    path = tmp_path / ("bad.csv" if "--labels" in words else "bad")
    prepare(path)
    code, lines = said(*[word.format(path) for word in words], "--key-file", "key", "--out", str(tmp_path / "out"))
    assert code in (1, 2)
    assert len(lines) == 1
    assert named in lines[0]


@pytest.mark.parametrize(
    "words",
    [
        ["pretrain", "--holdout", "bad.csv"],
        ["pretrain", "--holdout", "phantoms/labels.csv", "--label", "lesions"],
        ["finetune", "--labels", "bad.csv", "--encoder", "runs/pretrain"],
        ["efficiency", "--labels", "phantoms/labels.csv", "--encoder", "runs/pretrain", "--label", "lesions"],
    ],
)
def test_a_wrong_table_is_found_before_anything_is_scanned(said, tmp_path, words):
    Path("bad.csv").write_text("nothing\n1\n")
    code, lines = said(*words, "--data", "phantoms/dicom", "--key-file", "key", "--out", str(tmp_path / "out"))
    assert code in (1, 2)
    assert len(lines) == 1
    assert not (tmp_path / "out" / "private" / "skipped.csv").exists()


def test_damaged_entries_of_the_store_are_mended_or_named(said, tmp_path):
    """With the scans at hand they are prepared again, with the same result; without them the command stops."""
    words = ["finetune", "--labels", "phantoms/labels.csv", "--encoder", "runs/pretrain", "--resamples", "200"]
    shutil.copytree("runs/store", tmp_path / "store")
    for entry in (tmp_path / "store").rglob("*.safetensors"):
        content = bytearray(entry.read_bytes())
        content[-1500:] = bytes(1500)
        entry.write_bytes(content)
    shutil.copytree("runs/pretrain", tmp_path / "moved")
    paths = tmp_path / "moved/private/paths.yaml"
    paths.write_text(paths.read_text().replace("phantoms/dicom", "phantoms/gone"))
    moved = [*words[:3], "--encoder", str(tmp_path / "moved"), "--store", str(tmp_path / "store")]
    code, lines = said(*moved, "--key-file", "key", "--out", str(tmp_path / "out"))
    assert code == 1
    assert len(lines) == 1
    assert "missing or damaged" in lines[0]
    assert main([*words, "--store", str(tmp_path / "store"), "--out", str(tmp_path / "mended")]) == 0
    entries = sorted((tmp_path / "store").rglob("*.safetensors"))
    entries[0].unlink()
    curve = ["--store", str(tmp_path / "store"), "--arms", "pca", "--fractions", "1", "--draws", "1"]
    assert main(["efficiency", *words[1:], *curve, "--out", str(tmp_path / "curve")]) == 0
    assert entries[0].is_file()
    assert main([*words, "--out", str(tmp_path / "sound")]) == 0
    assert record(tmp_path / "mended/metrics.json") == record(tmp_path / "sound/metrics.json")


@pytest.mark.parametrize("command", ["finetune", "efficiency"])
def test_a_run_does_not_answer_for_other_labels(said, tmp_path, command):
    table = tmp_path / "labels.csv"
    shutil.copy("phantoms/labels.csv", table)
    words = [command, "--labels", str(table), "--encoder", "runs/pretrain", "--resamples", "200"]
    words += ["--arms", "pca", "--fractions", "1.0", "--draws", "1"] if command == "efficiency" else []
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    labels = pd.read_csv(table, dtype=str)
    labels["lesion"] = labels["lesion"].map({"0": "1", "1": "0"})
    labels.to_csv(table, index=False)
    code, lines = said(*words, "--out", str(tmp_path / "out"))
    assert code == 2
    assert "labels" in lines[0]
    assert "changed" in lines[0]


def test_volumes_of_other_kinds_are_accounted_for(said, tmp_path):
    shutil.copytree("phantoms/dicom", tmp_path / "mixed/ct")
    images = np.random.default_rng(0).integers(0, 255, (5, 28, 28), dtype=np.uint8)
    images[2] = 7
    np.savez(tmp_path / "mixed/flat.npz", train_images=images, train_labels=np.zeros(5))
    words = ["prepare", "--data", str(tmp_path / "mixed"), "--key-file", "key", "--store", str(tmp_path / "store")]
    for spec, reason, files, parts in (("tiny.yaml", "OTHER_KIND", 1, 0), ("cxr", "NOT_FINITE", 0, 1)):
        out = tmp_path / spec
        assert main([*words, "--spec", spec, "--out", str(out)]) == 0
        manifest = pd.read_parquet(out / "private/manifest.parquet")
        skipped = pd.read_csv(out / "private/skipped.csv")
        used = {item for source in manifest["source"] for item in source}
        whole = set(skipped["item"][skipped["part"].isna()])
        on_disk = {
            p.relative_to(tmp_path / "mixed").as_posix() for p in Path(tmp_path / "mixed").rglob("*") if p.is_file()
        }
        assert used | whole == on_disk
        assert not used & whole
        counts = record(out / "scan.json")
        assert counts["files"] == {"all": len(on_disk), "used": len(used), "skipped": len(whole)}
        assert (counts["skipped"][reason]["files"], counts["skipped"][reason]["parts_of_used_files"]) == (files, parts)


def test_slices_of_volumes_are_learned_from_and_make_one_prediction_a_volume(journey, tmp_path, capsys):
    slices = SPEC.replace("spatial_dims: 3", "spatial_dims: 2\nslices: coronal\nslice_step_mm: 40")
    (tmp_path / "slices.yaml").write_text(slices)
    words = [*PRETRAIN[:5], "--spec", str(tmp_path / "slices.yaml"), *SETTINGS, "--epochs", "1"]
    words += ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "pretrain")]
    assert main(words) == 0
    out = capsys.readouterr().out
    prepared = pd.read_parquet(tmp_path / "pretrain/private/manifest.parquet")
    kept = prepared["slices"].map(len)
    assert kept.min() > 1
    assert f"{kept.sum():,} of {prepared['store_shape'].str[0].sum():,} coronal slices are kept" in out
    assert "pairs: adjacent, since" in out
    details = medclr.load_encoder(tmp_path / "pretrain").bundle.details
    assert details["axis_order"] == "channel, right, superior"
    assert details["spec"]["slices"] == "coronal"
    assert details["hyperparameters"]["pairs"] == "adjacent"
    words = [
        "finetune",
        "--labels",
        "phantoms/labels.csv",
        "--encoder",
        str(tmp_path / "pretrain"),
        "--resamples",
        "200",
    ]
    assert main([*words, "--out", str(tmp_path / "finetune")]) == 0
    assert len(pd.read_csv(tmp_path / "finetune/predictions.csv")) == len(prepared)


def test_neighbours_of_whole_volumes_are_refused_before_anything_is_read(said, tmp_path):
    code, lines = said(*PRETRAIN, *SETTINGS, "--pairs", "adjacent", "--out", str(tmp_path / "out"))
    assert (code, len(lines)) == (2, 1)
    assert "slices: axial" in lines[0]
    assert not (tmp_path / "out").exists()


def test_fine_tuning_from_a_middle_layer_starts_at_the_linear_head(journey, tmp_path, said):
    labelled = ["--labels", "phantoms/labels.csv", "--encoder", "runs/pretrain", "--projector-layer", "1"]
    words = ["finetune", "--resamples", "100", *labelled]
    weights = {}
    for method, extra in (("linear", []), ("lp-ft", ["--lr", "0", "--min-steps", "1", "--max-steps", "1"])):
        out = tmp_path / method
        assert said(*words, "--method", method, *extra, "--out", str(out))[0] == 0
        weights[method] = load_file(out / "classifier/classifier.safetensors")
        assert record(out / "classifier/classifier.json")["projector"]["layers"] == 1
    assert any(".1.weight" in name for name in weights["linear"])  # the projector's first layer
    assert torch.equal(weights["linear"]["head.weight"], weights["lp-ft"]["head.weight"])
    curve = ["efficiency", *labelled, "--arms", "lp-ft", "pca", *CURVE]
    assert said(*curve, "--out", str(tmp_path / "curve"))[0] == 0
    assert set(pd.read_csv(tmp_path / "curve/curve.csv")["arm"]) == {"simclr-lp-ft", "pca"}
    assert "Classifiers keep 1 hidden layer of its projector" in (tmp_path / "curve/report.html").read_text()
    code, err = said(*words[:-1], "2", "--out", str(tmp_path / "too-deep"))
    assert code == 2
    assert "layer 2 of the projector: choose 0 to 1" in err[-1]


def test_corrupt_bundle_is_named(said, tmp_path):
    shutil.copytree("runs/pretrain/encoder", tmp_path / "encoder")
    weights = tmp_path / "encoder/encoder.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    words = ["finetune", "--labels", "phantoms/labels.csv", "--encoder", str(tmp_path / "encoder")]
    code, lines = said(*words, "--out", str(tmp_path / "out"))
    assert code == 1
    assert len(lines) == 1
    assert "encoder.safetensors" in lines[0]


def test_bundle_of_other_dimensions_is_refused(said, tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (12, 28, 28), dtype=np.uint8)
    flat = tmp_path / "flat"
    flat.mkdir()
    splits = {f"{s}_{kind}": images for s in ("train", "val", "test") for kind in ("images", "labels")}
    np.savez(flat / "pneumoniamnist.npz", **splits)
    words = ["finetune", "--labels", "phantoms/labels.csv", "--encoder", "runs/pretrain"]
    code, lines = said(*words, "--data", str(flat), "--out", str(tmp_path / "out"))
    assert code == 1
    assert len(lines) == 1
    assert "3D" in lines[0]
    assert "2D" in lines[0]


def test_out_that_cannot_be_written(said, tmp_path):
    (tmp_path / "file").write_text("")
    code, lines = said("scan", "--data", "phantoms/dicom", "--key-file", "key", "--out", str(tmp_path / "file" / "run"))
    assert code == 1
    assert len(lines) == 1
    assert "--out" in lines[0]


def test_too_many_skipped_is_exit_code_three(said, tmp_path):
    code, lines = said(
        "scan", "--data", "phantoms/dicom", "--key-file", "key", "--out", str(tmp_path / "out"), "--max-skipped", "0.01"
    )
    assert code == 3
    assert "--max-skipped" in lines[0]
    assert record(str(tmp_path / "out" / "run.json"))["complete"]
    code, lines = said(
        "scan", "--data", "phantoms/dicom", "--key-file", "key", "--out", str(tmp_path / "s"), "--strict"
    )
    assert code == 1
    assert "--strict" in lines[0]


def test_strict_holds_while_decoding_too(said, tmp_path):
    """A gzip stream that ends early shows only when it is read."""
    for name in "abc":
        image = nib.Nifti1Image(np.random.default_rng(0).random((12, 12, 12), dtype=np.float32), np.eye(4))
        nib.save(image, tmp_path / f"{name}.nii.gz")
    whole = (tmp_path / "b.nii.gz").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(whole[: len(whole) // 2])
    words = ["prepare", "--data", str(tmp_path), "--key-file", "key", "--store", str(tmp_path / "store")]
    code, lines = said(*words, "--out", str(tmp_path / "strict"), "--strict")
    assert code == 1
    assert "TRUNCATED" in lines[0]


def test_what_to_run_next_can_be_typed(said, capsys, tmp_path):
    """Each command's last line parses, and carries on what the user chose."""
    scans = tmp_path / "my scans"
    shutil.copytree("phantoms/dicom", scans)
    both = pd.read_csv("phantoms/labels.csv", dtype=str).assign(other="0")
    both.to_csv(tmp_path / "two.csv", index=False)
    labels = str(tmp_path / "two.csv")
    reading = ["--data", str(scans), "--key-file", "key", "--tilt", "skip"]
    learning = [*SETTINGS[2:], "--epochs", "1", "--spec", "tiny.yaml", "--holdout", labels, "--label", "lesion"]
    steps = [
        (["scan", *reading], "pretrain", {"data": scans, "key_file": Path("key"), "tilt": "skip"}),
        (["prepare", *reading, "--spec", "tiny.yaml"], "pretrain", {"data": scans, "spec": Path("tiny.yaml")}),
        (["pretrain", *reading, *learning], "finetune", {"label": ["lesion"], "encoder": tmp_path / "pretrain"}),
        (["finetune", "--labels", labels, "--label", "lesion", "--encoder", str(tmp_path / "pretrain")],
         "efficiency", {"label": ["lesion"], "labels": tmp_path / "two.csv", "encoder": [tmp_path / "pretrain"]}),
    ]  # fmt: skip
    for words, command, carried in steps:
        capsys.readouterr()
        assert main([*words, "--out", str(tmp_path / words[0])]) == 0
        (line,) = re.findall(r"^next: medclr (.*)$", capsys.readouterr().out, re.MULTILINE)
        name, *flags = shlex.split(line)
        assert name == command
        config = parse(name, flags)
        assert {field: getattr(config, field) for field in carried} == carried


def test_the_printed_command_can_be_typed(journey):
    """The report's command line and the demo's are what the parser takes, lists included."""
    page = Path("runs/efficiency/report.html").read_text()
    line = re.search(r"medclr efficiency [^<]*", page).group()
    words = shlex.split(line.replace("LABELS", "phantoms/labels.csv"))[1:]
    config = parse("efficiency", words[1:])
    assert config.fractions == [0.4, 1.0]
    assert config.max_steps == 2
