"""A teacher, and what `medclr distill` makes of it, through the command line, on tiny images."""

import json
import os
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.numpy import load_file
from scipy.special import logit
from sklearn.metrics import roc_auc_score

from medclr.cli import main
from medclr.commands import distill as module
from medclr.data.identity import load_key
from medclr.data.labels import LabelTable
from medclr.evaluation.measures import temperature_of
from medclr.models.classifier import load_classifier

SPLITS = ["train"] * 12 + ["val"] * 10 + ["test"] * 10
FEW = ["--epochs", "1", "--batch-size", "8"]
DISTILL = ["distill", "--teacher", "runs/teacher", "--resamples", "100", "--min-steps", "1", *FEW]


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """32 patients of two images, brighter below where the label is 1; of the train split, 10 images have a label."""
    folder = tmp_path_factory.mktemp("distill")
    before = Path.cwd()
    os.chdir(folder)
    rng, rows = np.random.default_rng(0), []
    Path("images").mkdir()
    for patient, split in enumerate(SPLITS):
        for visit in range(2):
            pixels, label = rng.integers(0, 120, (16, 16)), patient % 2
            pixels[9:] += 60 * label
            name = f"CANARY{patient:02d}_{visit}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(Path("images") / name)
            rows.append(
                (name, f"CANARY{patient:02d}", split, "" if split == "train" and (visit or patient >= 10) else label)
            )
    pd.DataFrame(rows, columns=["path", "patient_id", "split", "sick"]).to_csv("labels.csv", index=False)
    base = ["--labels", "labels.csv", "--out"]
    pretrain = ["pretrain", "--data", "images", "--holdout", "labels.csv", "--width", "9", "--key-file", "key"]
    assert main([*pretrain, *FEW, "--workers", "0", "--out", "runs/pretrain"]) == 0
    assert main(["finetune", *base, "runs/teacher", "--resamples", "100"]) == 0
    yield folder
    os.chdir(before)


def test_labels_of_one_class_are_nothing_to_learn_from(said):
    table = pd.read_csv("labels.csv", dtype=str, keep_default_na=False)
    one = table[(table["split"] != "train") | (table["sick"] != "1")]
    one.to_csv("one.csv", index=False)
    code, _, error = said(*DISTILL, "--labels", "one.csv", "--alpha", "0.5", "--out", "runs/one")
    assert code == 1
    assert "one.csv: the train split has 5 labelled volumes and no positive of '1" in error


@pytest.fixture
def said(capsys):
    """Run a command; its exit code and what it wrote to standard output and to standard error."""

    def run(*words):
        capsys.readouterr()
        code = main(list(words))
        return code, *capsys.readouterr()

    return run


def record(path):
    return json.loads(Path(path).read_text())


def patients_of(split):
    names, table = load_key(Path("key")), pd.read_csv("labels.csv")
    return {names.pseudonym("patient", patient) for patient in table.loc[table["split"] == split, "patient_id"]}


@pytest.fixture(scope="module")
def distilled(folder):
    assert main([*DISTILL, "--out", "runs/student"]) == 0
    return record("runs/student/metrics.json")


def test_student_and_teacher_are_measured_on_the_same_patients(distilled):
    teacher = record("runs/teacher/metrics.json")
    own, its = (pd.read_csv(f"runs/{name}/predictions.csv") for name in ("student", "teacher"))
    assert list(own["volume_id"]) == list(its["volume_id"])
    for split in ("val", "test"):
        assert distilled["teacher"]["splits"][split].items() <= teacher["splits"][split].items()
        at = own["split"] == split
        student, old = (roc_auc_score(own["y"][at], table["probability"][at]) for table in (own, its))
        found, difference = distilled["splits"][split], distilled["difference"][split]
        assert found["auroc"] == pytest.approx(student)
        assert found["low"] <= student <= found["high"]
        assert difference["auroc"] == pytest.approx(student - old)
        assert difference["low"] <= student - old <= difference["high"]
    assert not np.allclose(own["probability"], its["probability"])
    rows = pd.read_csv("runs/student/metrics.csv")
    assert list(rows["of"]) == ["student"] * 2 + ["teacher"] * 2 + ["difference"] * 2


def test_the_student_is_a_classifier_with_less_than_a_quarter_of_the_parameters(distilled):
    student, teacher = (load_classifier(Path("runs") / name) for name in ("student", "teacher"))
    assert (student.task, student.spec) == (teacher.task, teacher.spec)
    assert (student.architecture.width, student.architecture.depth) == (4, teacher.architecture.depth)
    sizes = [sum(p.numel() for p in loaded.classifier.parameters()) for loaded in (student, teacher)]
    assert distilled["parameters"] == {"student": sizes[0], "teacher": sizes[1], "ratio": sizes[0] / sizes[1]}
    assert distilled["parameters"]["ratio"] < 0.25


def test_it_learned_from_all_but_val_and_test_and_says_so(distilled):
    student, teacher = (load_classifier(Path("runs") / name) for name in ("student", "teacher"))
    assert student.trained_on.patients == patients_of("train")
    assert distilled["n_train"] == len(student.trained_on.pixels) == 24
    assert len(teacher.trained_on.pixels) == 10
    assert student.pretrained_on == teacher.pretrained_on
    assert distilled["leakage"] == "Pre-training saw none of the test patients and none of the test images."
    assert distilled["near_duplicates"]["test_images"] is not None
    assert student.details["encoder"] is None
    assert student.details["method"] == "distill"


def test_its_probabilities_are_tempered_by_the_val_split(distilled):
    own = pd.read_csv("runs/student/predictions.csv")
    val = own[own["split"] == "val"]
    temperature = load_classifier(Path("runs/student")).temperature
    scores = temperature * logit(val["probability"].to_numpy())[:, None]
    expected = temperature_of(scores, val["y"].to_numpy(float)[:, None], "binary")
    assert temperature == pytest.approx(expected.value, rel=1e-3)
    assert temperature != 1


def test_nothing_of_a_patient_is_outside_private(distilled):
    files = [path for path in Path("runs/student").rglob("*") if path.is_file() and "private" not in path.parts]
    assert len(files) > 6
    assert not [path for path in files if b"CANARY" in path.read_bytes()]


def test_a_finished_run_is_not_run_again_and_another_teacher_is_refused(distilled, said):
    before = Path("runs/student/classifier/classifier.safetensors").stat().st_mtime_ns
    code, out, _ = said(*DISTILL, "--out", "runs/student")
    assert (code, "complete already" in out) == (0, True)
    assert Path("runs/student/classifier/classifier.safetensors").stat().st_mtime_ns == before
    code, _, err = said(*DISTILL, "--out", "runs/student", "--temperature", "2")
    assert code == 2
    assert "temperature" in err


def test_stopped_and_run_again_it_ends_as_if_it_had_not_been(distilled, said, monkeypatch):
    words, say, told = [*DISTILL, "--epochs", "3", "--out"], module.say, []

    def stop(line):
        say(line)
        told.append(line)
        if len([line for line in told if line.startswith("step ")]) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "say", stop)
    assert said(*words, "runs/stopped")[0] == 130
    monkeypatch.setattr(module, "say", say)
    code, out, _ = said(*words, "runs/stopped")
    assert code == 0
    assert [line.split(":")[0] for line in out.splitlines() if line.startswith("step ")] == ["step 9"]
    assert said(*words, "runs/whole")[0] == 0
    one, two = (load_file(f"runs/{name}/classifier/classifier.safetensors") for name in ("stopped", "whole"))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert record("runs/stopped/metrics.json") == record("runs/whole/metrics.json")


def test_labels_are_mixed_in_where_they_are_known(said):
    code, _, _ = said(*DISTILL, "--alpha", "0.5", "--temperature", "2", "--out", "runs/mixed")
    assert code == 0
    found = record("runs/mixed/metrics.json")
    assert (found["n_labelled"], found["n_train"]) == (10, 24)
    assert found["distillation"] == {"temperature": 2.0, "alpha": 0.5}
    rows = pd.DataFrame({"volume_id": ["c", "a", "x", "b"]})
    split = pd.DataFrame({"volume_id": ["a", "b", "c"], "split": ["train", "val", "train"]})
    table = LabelTable(split, np.array([[1.0], [0.0], [0.0]]), None, pd.DataFrame(), "path", "table", ())
    np.testing.assert_array_equal(module._labels_of(rows, table), [[0], [1], [np.nan], [np.nan]])


def test_self_distillation_starts_from_an_encoder_and_says_what_that_saw(said):
    code, out, _ = said(*DISTILL, "--encoder", "runs/pretrain", "--lr", "0", "--out", "runs/self")
    assert code == 0
    assert "1.000 of the teacher's" in out
    loaded = load_classifier(Path("runs/self"))
    weights, encoder = (
        load_file(f"runs/{name}.safetensors") for name in ("self/classifier/classifier", "pretrain/encoder/encoder")
    )
    np.testing.assert_array_equal(weights["network.0.conv1.weight"], encoder["encoder.conv1.weight"])
    assert loaded.details["encoder"]
    assert record("runs/self/metrics.json")["init"] == "encoder"


def test_other_volumes_have_no_labels_and_leave_nobody_out(said):
    code, out, _ = said(*DISTILL, "--data", "images", "--workers", "0", "--out", "runs/other")
    assert code == 0
    assert "no label table: nobody is left out" in out
    found = record("runs/other/metrics.json")
    assert (found["n_train"], found["splits"], "leakage" in found) == (64, {}, False)
    seen = load_classifier(Path("runs/other")).trained_on
    assert (len(seen.pixels), seen.n_unknown) == (64, 64), "without the table nothing names these patients"
    assert seen.patients > load_classifier(Path("runs/teacher")).trained_on.patients
    assert not Path("runs/other/predictions.csv").exists()


def test_a_student_may_teach_another(distilled, said):
    """Of the same volumes, leaving out the same patients; and it is applied as its teacher is."""
    code, out, _ = said("distill", "--teacher", "runs/student", *DISTILL[3:], "--out", "runs/second")
    assert code == 0
    found = record("runs/second/metrics.json")
    assert (found["n_train"], found["parameters"]["ratio"]) == (24, 1.0)
    assert found["teacher"]["splits"] == distilled["splits"]
    command = shlex.split(next(line for line in out.splitlines() if line.startswith("next: ")).removeprefix("next: "))
    assert command[:2] == ["medclr", "predict"]
    code, out, _ = said(*[word.replace("SCANS", "images") for word in command[1:]], "--workers", "0")
    assert code == 0


def swapped(name, **columns):
    table = pd.read_csv("labels.csv", dtype=str, keep_default_na=False)
    table.assign(**{column: change(table[column]) for column, change in columns.items()}).to_csv(name, index=False)
    return name


def test_a_teacher_that_learned_from_the_test_split_is_refused(said):
    labels = swapped("swapped.csv", split=lambda split: split.replace({"train": "test", "test": "train"}))
    code, _, err = said(*DISTILL, "--labels", labels, "--out", "runs/leak")
    assert code == 1
    assert "--teacher was fine-tuned on 10 patients and 10 images of the test split of swapped.csv" in err


def test_a_test_split_that_pretraining_saw_is_refused_unless_that_is_allowed(said):
    """Two patients without a label for the teacher, now of the test split."""
    table = pd.read_csv("labels.csv", dtype=str, keep_default_na=False)
    late = table["patient_id"].isin(["CANARY10", "CANARY11"])
    table.loc[late, ["split", "sick"]] = [["test", sick] for sick in ("0", "0", "1", "1")]
    table.to_csv("late.csv", index=False)
    words = [*DISTILL, "--labels", "late.csv"]
    code, _, err = said(*words, "--out", "runs/seen")
    assert code == 1
    assert "Pre-training saw 2 test patients and 4 test images." in err
    assert said(*words, "--transductive", "--out", "runs/allowed")[0] == 0
    found = record("runs/allowed/metrics.json")
    assert (found["transductive"], found["n_train"]) == (True, 20)


def test_another_question_than_the_teachers_is_refused(said):
    labels = swapped("words.csv", sick=lambda sick: sick.replace({"0": "well", "1": "ill"}))
    code, _, err = said(*DISTILL, "--labels", labels, "--out", "runs/words")
    assert code == 1
    assert "words.csv: column 'sick' has ill and well, where the teacher knows 0 and 1; write them as it does" in err


def test_a_teacher_alone_needs_data(said, tmp_path):
    source = Path("runs/teacher/classifier").absolute()
    (tmp_path / "shared").symlink_to(source)
    code, _, err = said("distill", "--teacher", str(tmp_path / "shared"), "--out", "runs/alone")
    assert code == 2
    assert "the volumes behind it are not at hand; give --data" in err
    code, _, err = said("distill", "--teacher", str(tmp_path / "shared"), "--alpha", "0.5", "--out", "runs/alpha")
    assert code == 2
    assert "--alpha 0.5: there are no labels to learn from" in err
    code, _, err = said("distill", "--teacher", "runs", "--out", "runs/none")
    assert code == 1
    assert "--teacher runs holds no classifier" in err


def test_a_training_that_diverges_saves_no_classifier(folder, said):
    for command in (["finetune", "--labels", "labels.csv", "--method", "full", "--min-steps", "3"], DISTILL):
        out = f"runs/diverged-{command[0]}"
        code, _, error = said(*command, *FEW, "--lr", "1e30", "--out", out)
        assert code == 1
        assert "--lr 1e+30: the training diverged" in error
        assert not Path(out, "classifier").exists()


def test_under_another_key_nothing_is_said_to_be_clean(folder, said):
    code, _, _ = said(
        *DISTILL, "--key-file", "another", "--data", "images", "--labels", "labels.csv", "--out", "runs/key"
    )
    assert code == 0
    assert record("runs/key/metrics.json")["leakage"].startswith("Patients not checkable")
