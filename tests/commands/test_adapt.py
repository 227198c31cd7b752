"""`medclr adapt` on phantoms of two scanners, and from one archive to another."""

import json
import os
import re
import shutil
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pydicom
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from medclr.cli import main
from medclr.commands import adapt as module
from medclr.config import AdaptConfig
from medclr.data.identity import load_key
from medclr.data.labels import Task
from medclr.data.phantoms import write_phantoms
from medclr.errors import UsageError
from medclr.models.classifier import Classifier, load_classifier
from medclr.models.encoder import build_encoder
from medclr.training import realign
from medclr.training.crossfit import Domain
from medclr.training.encode import load_encoder
from medclr.training.probe import Linear

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
METHODS = ["source-only", "adabn", "adabn-coral", "coral", "pseudo", "histogram", "fourier", "auto", "target-trained"]


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """Two archives of phantoms by two scanners each, and encoders of the first, with and without batch norm."""
    folder = tmp_path_factory.mktemp("adapt")
    before = Path.cwd()
    os.chdir(folder)
    write_phantoms(folder / "phantoms", patients=40, seed=1)
    write_phantoms(folder / "others", patients=16, seed=2)
    rename_patients(folder / "others")
    (folder / "tiny.yaml").write_text(SPEC)
    words = ["--data", "phantoms/dicom", "--spec", "tiny.yaml", "--key-file", "key", "--workers", "0"]
    settings = ["--epochs", "1", "--batch-size", "6", "--width", "8"]
    assert main(["pretrain", *words, *settings, "--out", "runs/one"]) == 0
    assert main(["pretrain", *words, *settings, "--norm", "group", "--out", "runs/group"]) == 0
    yield folder
    os.chdir(before)


def rename_patients(folder):
    """Phantoms of all seeds have the same names: give these others."""
    shutil.rmtree(folder / "dicom" / "broken")
    for path in folder.rglob("CANARY-*/*/*"):
        ds = pydicom.dcmread(path)
        ds.PatientID = ds.PatientID.replace("CANARY", "CANARY-OTHER")
        ds.save_as(path)
    labels = folder / "labels.csv"
    labels.write_text(labels.read_text().replace("CANARY", "CANARY-OTHER"))


FEW = ["--labels", "phantoms/labels.csv", "--draws", "2", "--resamples", "100", "--workers", "0"]
BASE = ["adapt", *FEW, "--encoder", "runs/one"]
WITHIN = [*BASE, "--target", "manufacturer=Borealis", "--transductive"]
BETWEEN = [*BASE, "--target-data", "others/dicom", "--target-labels", "others/labels.csv"]


def record(path):
    return json.loads(Path(path).read_text())


@pytest.fixture(scope="module")
def within(folder):
    assert main([*WITHIN, "--out", "runs/within"]) == 0
    return record("runs/within/report.json")


@pytest.fixture(scope="module")
def between(folder):
    assert main([*BETWEEN, "--out", "runs/between"]) == 0
    return record("runs/between/report.json")


def of(manufacturer):
    manifest = pd.read_parquet("runs/one/private/manifest.parquet")
    return manifest[manifest["manufacturer"] == manufacturer]


def test_every_volume_of_the_target_is_scored_by_every_method(within):
    assert [row["method"] for row in within["adapt"]] == METHODS
    assert within["context"]["target"]["n"] == len(of("Borealis"))
    assert within["context"]["source"]["n"] == len(of("Acme"))
    assert within["context"]["n_both"] == len(set(of("Borealis")["patient_key"]) & set(of("Acme")["patient_key"])) > 0
    for row in within["adapt"]:
        cells = [record(path) for path in Path("runs/within/cells").glob(f"{row['method']}_*.json")]
        assert len(cells) == 2
        assert all(np.isfinite(cell["scores"]).all() and len(cell["scores"]) == len(of("Borealis")) for cell in cells)
        assert row["auroc"] == pytest.approx(np.mean([cell["auroc"] for cell in cells]))
        assert row["low"] <= row["auroc"] <= row["high"]
    assert [row["method"] for row in within["differences"]] == METHODS[1:]
    assert sum(row["n"] for row in within["choices"]) == 2 * 2
    assert within["oracle"] in METHODS[:-2]
    for name in ("adapt", "differences", "regained", "choices"):
        assert len(pd.read_csv(f"runs/within/{name}.csv")) == len(within[name])


def test_methods_differ_and_auto_is_one_of_them_in_each_half(within):
    scores = {name: np.array(record(f"runs/within/cells/{name}_1_0.json")["scores"])[:, 0] for name in METHODS}
    for name in METHODS[1:-2]:
        assert not np.allclose(scores[name], scores["source-only"])
    chosen = record("runs/within/cells/auto_1_0.json")["choice"]
    assert chosen.count(" left ") == 2
    equal = np.stack([scores[name] == scores["auto"] for name in METHODS[:-2]])
    assert equal.any(axis=0).all()


def test_the_page_says_what_it_rests_on(within):
    page = Path("runs/within/report.html").read_text()
    for words in ("generated phantoms", "Transductive.", "manufacturer Acme to manufacturer Borealis", "Holm"):
        assert words in page
    assert Path("runs/within/adapt.png").is_file()


def test_nothing_that_may_be_shared_names_a_patient(within, between, shots):
    for run in ("within", "between", "shots"):
        for path in Path("runs", run).rglob("*"):
            if path.is_file() and "private" not in path.parts:
                assert b"CANARY" not in path.read_bytes(), path


def test_a_run_that_goes_on_computes_what_is_missing_alone(within, monkeypatch):
    before = pd.read_csv("runs/within/adapt.csv")
    for path in Path("runs/within/cells").glob("coral_*"):
        path.unlink()
    monkeypatch.setattr(module.Volumes, "embed", lambda *_: pytest.fail("features are computed again"))
    assert main([*WITHIN, "--out", "runs/within"]) == 0
    pd.testing.assert_frame_equal(pd.read_csv("runs/within/adapt.csv"), before)


def test_what_casts_doubt_on_the_label_is_said_on_the_terminal_too(within, monkeypatch, capsys):
    monkeypatch.setattr(module, "doubts", lambda found, context: [f"the label of {context['target']['name']}"])
    assert main([*WITHIN, "--out", "runs/within"]) == 0
    printed = capsys.readouterr().out
    assert "warning: the label of manufacturer Borealis" in printed
    assert "Did any method gain over source-only? No gain is shown." in printed


def test_networks_are_trained_on_both_domains_when_asked():
    trained = ["simclr-target", "simclr-both", "finetuned", "deep-coral", "mmd", "dann"]
    words = ["--draws", "1", "--steps", "2", "--batch-size", "8", "--lr", "0.003"]
    assert main([*WITHIN, *words, "--methods", *trained, "coral", "auto", "--out", "runs/networks"]) == 0
    report = record("runs/networks/report.json")
    assert [row["method"] for row in report["adapt"]] == ["source-only", *trained, "coral", "auto", "target-trained"]
    assert report["context"]["training"] == {
        "steps": 2, "batch_size": 8, "lr": 0.003, "weight_decay": 0.01, "alignment": 1.0, "negatives": "all"
    }  # fmt: skip
    found = {name: record(f"runs/networks/cells/{name}_1_0.json")["scores"] for name in [*trained, "source-only"]}
    assert len({str(scores) for scores in found.values()}) == len(found)
    # What has learned all labels of the source cannot be chosen by them.
    chosen = record("runs/networks/cells/auto_1_0.json")["choice"]
    assert not set(re.findall(r"(\S+) by", chosen)) & {"finetuned", "deep-coral", "mmd", "dann"}


def test_what_was_chosen_is_a_classifier_for_new_volumes(within):
    assert within["context"]["classifier"] == within["choices"][0]["method"]
    assert load_classifier("runs/within").details["method"] == f"adapt, {within['choices'][0]['method']}"
    assert main(["predict", "--data", "phantoms/dicom", "--classifier", "runs/within", "--out", "runs/predicted"]) == 0
    predicted = pd.read_csv("runs/predicted/predictions.csv")
    assert predicted["probability"].between(0, 1).all()
    assert predicted["probability"].nunique() == len(predicted) > 40
    seen = load_classifier("runs/within").trained_on
    assert len(seen.patients) == 40  # of both domains: labels of one, images of the other


def test_two_linear_layers_are_saved_as_one(within, tmp_path, monkeypatch):
    """Of a network that was trained whole the logits are the features, which the head has only scaled."""
    own = Classifier(nn.Sequential(build_encoder(load_encoder("runs/one").bundle.architecture)), 64, 1).eval()
    own.set_head(np.linspace(-1, 1, 64)[:, None], np.array([0.5]))
    head = Linear(np.array([[2.0]]), np.array([-3.0]), False, 1.0)
    solved = SimpleNamespace(whole=lambda method, seed: (SimpleNamespace(network=own), head))
    written = {}
    monkeypatch.setattr(module, "save_classifier", lambda folder, classifier, *rest: written.update(it=classifier))
    part = SimpleNamespace(
        fingerprint="", spec=None, table=SimpleNamespace(task=Task("binary", ("lesion",), ("0", "1")))
    )
    rows = pd.read_parquet("runs/one/private/manifest.parquet")
    side = SimpleNamespace(volumes=lambda crops: SimpleNamespace(rows=rows), part=part)
    config = AdaptConfig(labels=Path("l"), target="view=AP")
    encoder, run = load_encoder("runs/one"), SimpleNamespace(folder=tmp_path, found=lambda **_: None)
    module._save_classifier(config, run, Path("runs/one"), encoder, solved, "dann", side, side)
    images = torch.rand(3, 1, 12, 12, 12)
    torch.testing.assert_close(written["it"](images), 2 * own(images) - 3)


def test_another_archive_is_prepared_as_the_encoder_asks(between):
    assert [row["method"] for row in between["adapt"]] == METHODS
    context = between["context"]
    assert (context["source"]["name"], context["target"]["name"]) == ("archive home", "archive new")
    assert context["source"]["n"] == len(pd.read_csv("phantoms/labels.csv"))
    assert context["target"]["n"] == len(pd.read_csv("others/labels.csv"))
    assert context["n_both"] == 0
    assert not context["transductive"]
    assert "none of the test patients" in context["leakage"]


SHOTS = [*WITHIN, "--target-shots", "4", "2", "60", "--lp-ft", "--steps", "3", "--out", "runs/shots"]


@pytest.fixture(scope="module")
def shots(folder):
    assert main(SHOTS) == 0
    return record("runs/shots/report.json")


def test_its_classifier_can_only_be_judged_on_a_third_archive(within, capsys):
    words = ["shift", "--classifier", "runs/within", "--resamples", "100", "--workers", "0", "--out", "runs/judged"]
    used = "`medclr adapt` has used all patients of its source and of its target; "
    third = f"{used}a third archive is needed: give --data and --labels of one, and its columns with --by"
    other = ["--data", "others/dicom", "--labels", "others/labels.csv"]
    for more, said in (
        (
            ["--by", "modality"],
            f"--by modality: there is none of 5 patients whom the classifier did not learn from; {third}",
        ),
        ([], f"kernel and field_strength; {third}"),
        (["--corruptions", "noise"], f"--corruptions: the classifier learned from all labelled volumes; {third}"),
        (other, f"there is one domain only by each of archive; {used}name columns of the label table with --by"),
    ):
        shutil.rmtree("runs/judged", ignore_errors=True)
        code, line = refused(capsys, *words, *more)
        assert line.endswith(said)
        assert code == 1
    shutil.rmtree("runs/judged")
    assert main([*words, *other, "--by", "manufacturer"]) == 0


def test_a_few_labels_of_the_target_with_and_without_adaptation(shots, within):
    kinds = ["source+target", "adapted+target", "target-alone", "lp-ft"]
    points = {(row["method"], row["shots"]): row for row in shots["shots"]}
    zero = {("source+target", 0), ("adapted+target", 0)}
    assert set(points) == zero | {(kind, n) for kind in kinds for n in (2, 4, 60)}
    main_rows = {row["method"]: row for row in shots["adapt"]}
    assert shots["adapt"] == within["adapt"]
    for kind, name in (("source+target", "source-only"), ("adapted+target", "auto")):
        assert points[kind, 0]["auroc"] == pytest.approx(main_rows[name]["auroc"])
    scores = {}
    for (kind, n), row in points.items():
        if n in (2, 4):
            cells = [record(f"runs/shots/cells/{kind}-{n}_1_{draw}.json") for draw in (0, 1)]
            assert row["auroc"] == pytest.approx(np.mean([cell["auroc"] for cell in cells]))
            assert all(np.isfinite(cell["scores"]).all() for cell in cells)
            scores[kind, n] = np.array(cells[0]["scores"])[:, 0]
        elif n == 60:
            assert "patients of a class, and 60 are asked for" in row["reason"]
    for kind in kinds:
        assert not np.allclose(scores[kind, 2], scores[kind, 4])
    # Of the others two may be one: where the source is left out, and where auto leaves the features as they are.
    assert not any(np.allclose(scores["lp-ft", 4], scores[kind, 4]) for kind in kinds[:3])
    assert shots["worth"]["most"] == 4
    for name in ("shots", "shot_differences"):
        assert len(pd.read_csv(f"runs/shots/{name}.csv")) == len(shots[name])
    page = Path("runs/shots/report.html").read_text()
    assert "How many labels of the target is adaptation worth?" in page
    assert "With a few labels of the target" in page
    assert Path("runs/shots/shots.pdf").is_file()
    assert "With a few labels" not in Path("runs/within/report.html").read_text()


def test_a_curve_that_goes_on_trains_what_is_missing_alone(shots, monkeypatch):
    trained = []
    real = realign.fit_full
    monkeypatch.setattr(realign, "fit_full", lambda *given: trained.append(len(given[2])) or real(*given))
    Path("runs/shots/cells/lp-ft-4_1_1.json").unlink()
    before = Path("runs/shots/shots.csv").read_bytes()
    assert main(SHOTS) == 0
    assert trained == [8, 8]  # four of either class, of both halves
    assert Path("runs/shots/shots.csv").read_bytes() == before


def test_without_auto_there_is_no_curve_with_adaptation(folder, capsys):
    words = [*WITHIN, "--methods", "coral", "--target-shots", "2", "--draws", "1", "--out", "runs/no-auto"]
    assert main(words) == 0
    assert "adapted+target is left out: it is as auto chooses, which --methods leaves out" in capsys.readouterr().out
    found = record("runs/no-auto/report.json")
    assert {row["method"] for row in found["shots"]} == {"source+target", "target-alone"}
    assert "worth" not in found


def test_several_labels_have_no_n_per_class(capsys):
    labels = pd.read_csv("phantoms/labels.csv")
    labels.assign(other=labels["lesion"].sample(frac=1, random_state=0).to_numpy()).to_csv("several.csv", index=False)
    words = [*WITHIN, "--labels", "several.csv", "--label", "lesion", "other", "--target-shots", "2"]
    code, line = refused(capsys, *words, "--out", "runs/several")
    assert code == 2
    assert line.startswith("--target-shots: lesion, other are labels of which a volume may have several")


def test_a_source_is_one_domain_or_all_others_that_are_known():
    labels = pd.read_csv("phantoms/labels.csv")
    patients = labels.drop_duplicates("patient_id").set_index("patient_id")
    room = patients.groupby("lesion").cumcount().map(lambda number: "abc"[number % 3] if number else "")
    rooms = labels["patient_id"].map(room).to_numpy()
    labels.assign(room=rooms).to_csv("rooms.csv", index=False)
    words = ["--label", "lesion", "--methods", "coral", "--labels", "rooms.csv", "--target", "room=a", "--transductive"]
    for source, name, n in (
        ([], "room b and c", np.isin(rooms, ["b", "c"]).sum()),
        (["--source", "room=b"], "room b", (rooms == "b").sum()),
    ):
        out = f"runs/rooms-{len(source)}"
        assert main([*BASE, *words, *source, "--out", out]) == 0
        found = record(f"{out}/report.json")
        assert (found["context"]["source"]["name"], found["context"]["source"]["n"]) == (name, n)
        assert found["context"]["target"]["n"] == (rooms == "a").sum()
        assert [row["method"] for row in found["adapt"]] == ["source-only", "coral", "target-trained"]
        assert found["choices"] == []


def test_statistics_for_all_halves_are_of_every_domain_that_is_to_count():
    """Those of AdaBN are of patients who are never scored, if that leaves no domain out."""

    def rows(patients, of_target, domains):
        n, m = len(patients), len(of_target)
        empty = np.zeros((max(n, m), 1))
        source, target = (
            Domain(empty[: len(keys)], np.array([*keys], dtype=object), empty[: len(keys)], np.array([*keys], object))
            for keys in (patients, of_target)
        )
        side = SimpleNamespace(domains=None if domains is None else np.array([*domains], dtype=object))
        config = AdaptConfig(labels=Path("labels.csv"), target="room=x")
        found = module._for_all_halves(config, side, source, target)
        return None if found is None else found.tolist()

    assert rows("abcdef", "fx", None) == [0, 1, 2, 3, 4]
    assert rows("abcdef", "abcd", None) is None
    assert rows("abcdef", "x", "ppppqq") == [0, 1, 2, 3, 4, 4, 5, 5]
    assert rows("abcdef", "fx", "ppppqq") == [0, 1, 2, 3, 4, 4, 4, 4]
    assert rows("abcdef", "ef", "ppppqq") is None


def test_a_corrupted_target_is_the_source_shown_otherwise(within, capsys):
    words = [*BASE, "--corruption", "contrast", "--strength", "5", "--transductive"]
    assert main([*words, "--methods", "histogram", "adabn", "--out", "runs/corrupted"]) == 0
    found = record("runs/corrupted/report.json")
    source, target = found["context"]["source"], found["context"]["target"]
    assert (source["name"], target["name"]) == ("archive home", "archive home, contrast 5")
    assert source["n"] == target["n"] == len(pd.read_csv("phantoms/labels.csv"))
    assert found["context"]["n_both"] == target["n_patients"]
    kept = [np.load(path) for path in Path("runs/corrupted/private").glob("features-*.npy")]
    assert len(kept) >= 2
    assert not any(np.allclose(a, b, atol=1e-3) for a, b in combinations(kept, 2))
    assert main([*BASE, *WITHIN[-3:], "--corruption", "noise", "--methods", "coral", "--out", "runs/corrupted2"]) == 0
    other = record("runs/corrupted2/report.json")
    assert other["context"]["target"]["name"] == "manufacturer Borealis, noise 3"
    of = {row["method"]: row["auroc"] for row in other["adapt"]}
    assert of["source-only"] != within["adapt"][0]["auroc"]


def test_a_copy_of_a_scored_volume_under_another_name_is_told_and_left_out(within, monkeypatch):
    real = module.labelled_part

    def with_a_copy(*given):
        part = real(*given)
        rows = part.table.rows
        makers, patients = rows["manufacturer"], rows["patient_key"]
        copy = np.flatnonzero((makers == "Acme") & ~patients.isin(patients[makers == "Borealis"]))[0]
        rows.loc[copy, "pixel_hash"] = rows.loc[makers == "Borealis", "pixel_hash"].iloc[0]
        return part

    monkeypatch.setattr(module, "labelled_part", with_a_copy)
    assert main([*WITHIN, "--methods", "coral", "--out", "runs/copied"]) == 0
    found = record("runs/copied/report.json")
    assert (found["context"]["n_copies"], within["context"]["n_copies"]) == (1, 0)
    assert (
        "1 volume of the source has the very pixels of one of the target" in Path("runs/copied/report.html").read_text()
    )
    without, one = (
        np.array(record(f"runs/{run}/cells/source-only_1_0.json")["scores"]) for run in ("within", "copied")
    )
    assert (without == one).any()
    assert (without != one).any()


def test_what_trains_a_network_has_no_corrupted_target(capsys):
    words = [*BASE, "--corruption", "blur", "--transductive", "--methods", "coral", "dann"]
    code, line = refused(capsys, *words, "--out", "runs/untrained")
    assert (code, line[:15]) == (2, "--methods dann:")
    assert not Path("runs/untrained").exists()  # so the same --out may be used when that is mended


@pytest.mark.parametrize("others", [["pseudo"], ["finetuned", "dann"]])
def test_auto_among_these_has_nothing_to_choose(capsys, others):
    code, line = refused(capsys, *WITHIN, "--methods", "auto", *others, "--out", f"runs/alone-{len(others)}")
    assert (code, line[:37]) == (2, "--methods auto: has nothing to choose")


def refused(capsys, *words):
    capsys.readouterr()
    code = main(list(words))
    (line,) = capsys.readouterr().err.splitlines()
    return code, line.removeprefix("medclr: ")


def test_auto_alone_chooses_among_all_that_leave_the_encoder_as_it_is(folder):
    config = AdaptConfig(labels=Path("phantoms/labels.csv"), target="manufacturer=Borealis", methods=["auto"])
    assert module._methods(config, [load_encoder(Path("runs/one"))]) == METHODS


def test_a_column_of_the_label_table_goes_before_that_of_the_manifest(capsys):
    """As where the files do not name their hospital, or not the one that is meant."""
    own = pd.read_csv("phantoms/labels.csv")
    own.assign(manufacturer=[f"room {n % 2}" for n in range(len(own))]).to_csv("named.csv", index=False)
    words = ["--label", "lesion", "--labels", "named.csv", "--target", "manufacturer=room 1", "--transductive"]
    assert main([*BASE, *words, "--methods", "coral", "--out", "runs/named"]) == 0
    found = record("runs/named/report.json")["context"]
    assert (found["target"]["n"], found["source"]["n"]) == (len(own) // 2, len(own) - len(own) // 2)


def test_a_hospital_has_a_letter_which_private_explains(capsys):
    own = pd.read_csv("phantoms/labels.csv")
    hospitals = np.array([("Uster", "Baden")[n % 2] for n in range(len(own))], dtype=object)
    hospitals[-4:] = "Aarau"  # of which no label is known, so that the others keep their letters
    blank = own.assign(hospital=hospitals, lesion=own["lesion"].astype(str).mask(hospitals == "Aarau", ""))
    blank.to_csv("hospitals.csv", index=False)
    words = [*BASE, "--label", "lesion", "--labels", "hospitals.csv", "--transductive", "--methods", "coral"]
    shutil.rmtree("runs/hospital", ignore_errors=True)
    found, line = refused(capsys, *words, "--target", "hospital=Uster", "--out", "runs/hospital")
    assert found == 1
    assert line == (
        "--target hospital=Uster: no volume of it; there are site A, site B and site C, as private/places.csv of the "
        "run folder names them"
    )
    assert pd.read_csv("runs/hospital/private/places.csv").to_numpy().tolist() == [
        ["Baden", "site A"],
        ["Uster", "site B"],
        ["Aarau", "site C"],
    ]
    assert main([*words, "--target", "hospital=site B", "--out", "runs/hospital"]) == 0
    told = [path for path in Path("runs/hospital").rglob("*") if path.is_file() and "private" not in path.parts]
    assert not [path for path in told if b"Uster" in path.read_bytes()]


def test_a_volume_of_nobody_knows_whom_is_not_adapted_to_beside_scored_patients():
    """It may be of one of them."""
    rows = pd.DataFrame({"patient_known": [True, True, True, False]})
    part = SimpleNamespace(table=SimpleNamespace(rows=rows[:2]), every=SimpleNamespace(rows=rows))
    config = AdaptConfig(labels=Path("l"), target="view=AP")
    of = np.array([True, True, True, True])
    assert module._with_rest(config, module._Side("a", part, np.array([0, 1])), of).rest.tolist() == [2]
    assert module._with_rest(config, module._Side("a", part, np.arange(0)), of).rest.tolist() == [2, 3]
    rows.loc[0, "patient_known"] = False  # of whom intervals are image-level, as the report says
    assert module._with_rest(config, module._Side("a", part, np.array([0, 1])), of).rest.tolist() == [2, 3]


def test_labels_of_the_target_are_those_of_the_source_where_its_table_has_more(folder):
    """Known before any volume is read."""
    other = pd.read_csv("others/labels.csv", dtype=str)
    other.assign(sex="F").to_csv("more.csv", index=False)
    other.rename(columns={"lesion": "nodule"}).to_csv("nodule.csv", index=False)
    other.rename(columns={"lesion": "nodule"}).assign(sex="F").to_csv("two.csv", index=False)
    spec = load_encoder("runs/one").spec
    own = Path("phantoms/labels.csv")
    for name, given, label in (("more", [], ["lesion"]), ("nodule", [], []), ("two", ["nodule"], ["nodule"])):
        target = {"target_data": Path("d"), "target_labels": Path(f"{name}.csv"), "target_label": given}
        config = AdaptConfig(labels=own, **target)
        module._check_tables(config, spec)
        assert module._target_label(config, spec, Task("binary", ("lesion",), ("0", "1"))) == label
    shutil.rmtree("runs/two", ignore_errors=True)
    assert main([*BETWEEN[:-1], "two.csv", "--out", "runs/two"]) == 2
    other.assign(lesion=other["lesion"].map({"0": "no", "1": "yes"})).to_csv("words.csv", index=False)
    assert main([*BETWEEN[:-1], "words.csv", "--out", "runs/two"]) == 1
    assert not Path("runs/two").exists()


UNLABELLED = [*BASE, "--target-data", "others/dicom"]


@pytest.fixture(scope="module")
def unlabelled(folder):
    assert main([*UNLABELLED, "--out", "runs/unlabelled"]) == 0
    return record("runs/unlabelled/report.json")


def test_a_target_without_labels_is_adapted_to_and_not_judged(unlabelled, capsys):
    manifest = pd.read_parquet("runs/unlabelled/private/manifest.parquet")
    target = unlabelled["context"]["target"]
    assert (target["n"], target["n_rest"], target["n_rest_there"]) == (0, len(manifest), len(manifest))
    points = {row["method"]: row for row in unlabelled["adapt"]}
    assert list(points) == METHODS[:-1]
    assert all(row["auroc"] is None and row["reason"] for row in points.values())
    assert all(0 < points[name]["at_home"] < 1 and 0 < points[name]["entropy"] <= 1 for name in METHODS[:-2])
    (chosen,) = unlabelled["choices"]
    assert (chosen["n"], chosen["of"]) == (1, 1)
    classifier = load_classifier("runs/unlabelled/classifier")
    assert classifier.details["method"] == f"adapt, {chosen['method']}"
    assert set(manifest["patient_key"]) < set(classifier.details["seen"]["training"]["patients"])
    page = Path("runs/unlabelled/report.html").read_text()
    assert "Not known: no volume of archive new has a label." in page
    assert "AUROC in the source" in page
    assert not re.search(r"\bnan\b|halves|scored the|The target&#39;s patients", page)
    assert main([*UNLABELLED, "--out", "runs/unlabelled"]) == 0  # as it was
    said = capsys.readouterr().out
    assert f"archive new: {len(manifest)} volumes without a label\n" in said
    assert record("runs/unlabelled/report.json")["adapt"] == unlabelled["adapt"]


def test_a_classifier_for_a_target_without_labels_is_the_one_for_all_of_it(unlabelled, between):
    """Labels are used to measure: with them it is the same, where auto chooses the same."""
    words = [*BETWEEN, "--unlabelled", "1000", "--methods", "coral", "--draws", "1", "--out", "runs/labelled"]
    assert main(words) == 0
    assert main([*UNLABELLED, "--methods", "coral", "--out", "runs/unjudged"]) == 0
    one, two = (load_classifier(f"runs/{name}/classifier").classifier for name in ("labelled", "unjudged"))
    for name, weight in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], weight, rtol=1e-4, atol=1e-5)


def test_volumes_without_a_label_are_adapted_to_as_well(within, capsys):
    """A table that has the column of all, and the label of some."""
    own, target = pd.read_csv("phantoms/labels.csv", dtype=str), set(of("Borealis")["volume_id"])
    manifest = pd.read_parquet("runs/one/private/manifest.parquet")
    read = pd.read_csv("runs/within/private/target.csv")
    keep = read.groupby("y 1")["patient_key"].transform(lambda keys: keys.rank(method="dense")) <= 8
    kept = set(read["volume_id"][keep])
    by_series = read_keys(manifest)
    makers = own["series_uid"].map(lambda uid: "north" if by_series[uid] in target else "south")
    blank = own["series_uid"].map(lambda uid: by_series[uid] in target - kept)
    own.assign(side=makers, lesion=own["lesion"].mask(blank, "")).to_csv("some.csv", index=False)
    words = [*BASE, "--labels", "some.csv", "--transductive", "--target", "side=north", "--methods", "coral"]
    assert main([*words, "--out", "runs/some"]) == 0
    context = record("runs/some/report.json")["context"]["target"]
    assert (context["n"], context["n_rest"]) == (len(kept), blank.sum())
    assert f"side north: {len(kept)} labelled volumes of " in capsys.readouterr().out
    assert (
        f"Both halves adapt to {blank.sum()} volumes without a label, too" in Path("runs/some/report.html").read_text()
    )
    assert main([*words, "--unlabelled", "3", "--out", "runs/three"]) == 0
    assert f" and 3 volumes of {blank.sum()} without a label" in capsys.readouterr().out
    assert main([*words, "--unlabelled", "0", "--out", "runs/zero"]) == 0
    told = {run: np.array(record(f"runs/{run}/cells/coral_1_0.json")["scores"]) for run in ("some", "three", "zero")}
    assert not any(np.allclose(told[one], told[other]) for one, other in combinations(told, 2))


def read_keys(manifest):
    """From series UIDs to volumes of phantoms, of which each has one."""
    names = load_key(Path("key"))
    keys = dict(zip(manifest["series_key"], manifest["volume_id"], strict=True))
    uids = pd.read_csv("phantoms/labels.csv", dtype=str)["series_uid"]
    return {uid: keys[names.pseudonym("series", uid)] for uid in uids}


def test_a_target_that_pre_training_saw_is_refused_unless_allowed(capsys):
    words = [word for word in WITHIN if word != "--transductive"]
    code, line = refused(capsys, *words, "--out", "runs/leak")
    assert code == 1
    assert line.startswith("Pre-training saw ")
    assert "--transductive" in line


def test_an_encoder_without_batch_norm_has_no_adabn(capsys):
    words = [*WITHIN, "--encoder", "runs/group", "--draws", "1"]
    code, line = refused(capsys, *words, "--methods", "adabn", "--out", "runs/none")
    assert (code, line[:16]) == (2, "--methods adabn:")
    capsys.readouterr()
    assert main([*words, "--out", "runs/grouped"]) == 0
    assert "adabn and adabn-coral are left out: the encoder has no batch norm" in capsys.readouterr().out
    rows = record("runs/grouped/report.json")["adapt"]
    assert [row["method"] for row in rows] == [name for name in METHODS if not name.startswith("adabn")]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (
            ["--target", "ward=a"],
            2,
            "--target ward=a: no such column in the labels or the manifest; there are manufact",
        ),
        (
            ["--target", "a=b", "--labels", "halves.csv", "--label", "lesion"],
            2,
            "there are half, manufacturer, model, ",
        ),
        (["--target", "manufacturer=Coldlight"], 1, "manufacturer=Coldlight: no volume of it; there are Acme and Bor"),
        (["--target", "manufacturer=Acme", "--source", "manufacturer=X"], 1, "X: no labelled volume of it, where 5 pa"),
        (["--target-data", "phantoms/dicom"], 1, "--target-data phantoms/dicom: 52 of its 52 volumes are among tho"),
        (["--target-data", "others/dicom", "--unlabelled", "0"], 1, "archive new: no labelled volume, and 0 others of"),
        (["--target-data", "others/dicom", "--unlabelled", "1"], 1, "and 1 other of 1 patient (--unlabelled 1 at mo"),
        (["--target-data", "others/dicom", "--target-shots", "5"], 2, "--target-shots: only with --target-labels"),
        (["--target", "modality=CT"], 1, "--target modality=CT: there is no other modality to learn from"),
        (["--target-data", "phantoms/dicom", "--target-labels", "phantoms/labels.csv"], 1, "are among those of the s"),
        (["--target-data", "others/dicom", "--target-labels", "blank.csv"], 1, "column 'lesion' is blank in all"),
        (["--target-data", "others/dicom", "--target-labels", "named.csv"], 1, "where the source knows 0 and 1"),
        (["--target", "half=a", "--labels", "halves.csv"], 1, "half b: its "),
        (["--target", "half=a", "--labels", "gone.csv"], 2, "label table gone.csv: no such file"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(capsys, words, code, said):
    table = pd.read_csv("others/labels.csv")
    table.assign(lesion="").to_csv("blank.csv", index=False)
    table.assign(lesion=table["lesion"].map({0: "no", 1: "yes"})).to_csv("named.csv", index=False)
    own = pd.read_csv("phantoms/labels.csv")
    own.assign(half=np.where(own["lesion"] == 1, "a", "b")).to_csv("halves.csv", index=False)
    shutil.rmtree("runs/refused", ignore_errors=True)
    found, line = refused(capsys, *BASE, "--transductive", *words, "--out", "runs/refused")
    assert found == code
    assert said in line


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "name what to adapt to"),
        ({"target": "view=AP", "target_data": Path("d"), "target_labels": Path("l")}, "--target and --target-data"),
        ({"target": "view=AP", "target_labels": Path("l")}, "--target-labels l: only with --target-data"),
        ({"target": "view=AP", "target_label": ["l"]}, "--target-label l: only with --target-labels"),
        ({"target_data": Path("d"), "target_labels": Path("l"), "source": "view=PA"}, "only with --target"),
        ({"target_data": Path("d"), "target_labels": Path("l"), "data": Path("e")}, "--data with --target-data"),
        ({"target": "=AP"}, "must be COLUMN=VALUE"),
        ({"target": "view="}, "--target view=: must be COLUMN=VALUE"),
        ({"target": ""}, "must be COLUMN=VALUE"),
        ({"target": "view", "source": "view"}, "--source view: must be COLUMN=VALUE"),
        ({"target": "view", "source": "view=PA"}, "a column alone, each domain is learned from all others"),
        ({"target": "view=AP", "source": "view=PA", "balance": True}, "--balance: the source is one domain"),
        ({"target_data": Path("d"), "target_labels": Path("l"), "balance": True}, "--balance: the source is one dom"),
        ({"target": "view=AP", "source": "PA"}, "--source PA: must be COLUMN=VALUE"),
        ({"target": "view=AP", "source": "sex=F"}, "must be of the column of --target, view"),
        ({"target": "view=AP", "source": "view=AP"}, "is the source too"),
        ({"target": "view=AP", "target_data": Path("d"), "corruption": "blur"}, "--target and --target-data"),
        ({"corruption": "blur", "strength": 6}, "--strength 6: must be from 0 to 5"),
        ({"corruption": "blur", "strength": -1}, "--strength -1: must be from 0 to 5"),
        ({"target": "view=AP", "strength": 2}, "--strength 2: changes nothing here, it is only for --corruption"),
        (
            {"target": "view=AP", "alignment": 2.0},
            "--alignment 2.0: changes nothing here, it is only for --methods deep-",
        ),
        ({"target": "view=AP", "alignment": 2.0, "methods": ["finetuned"]}, "--alignment 2.0: changes nothing here"),
        (
            {"target": "view=AP", "negatives": "within", "methods": ["simclr-target"]},
            "--negatives within: changes noth",
        ),
        (
            {"target": "view=AP", "batch_size": 8, "methods": ["coral"]},
            "--batch-size 8: changes nothing here, it is onl",
        ),
        ({"target": "view=AP", "target_shots": [5], "steps": 8}, "--steps 8: changes nothing .* or with --lp-ft"),
        ({"target": "view=AP", "draws": 0}, "--draws 0"),
        ({"target": "view=AP", "target_shots": [5, 0]}, "--target-shots 0: must be at least 1"),
        ({"target": "view=AP", "lp_ft": True}, "--lp-ft: only with --target-shots"),
        ({"corruption": "blur", "lp_ft": True, "target_shots": [5]}, "--lp-ft: learns from augmented views of what"),
        ({"target": "view=AP", "crops": 0}, "--crops 0"),
        ({"target": "view=AP", "projector_layer": -1}, "--projector-layer -1"),
    ],
)
def test_a_config_that_asks_for_nothing_is_refused(given, said):
    with pytest.raises(UsageError, match=said):
        AdaptConfig(labels=Path("labels.csv"), **given)


def test_settings_of_a_training_are_taken_where_there_is_one():
    given = {"labels": Path("labels.csv"), "target": "view=AP", "steps": 8, "lr": 0.01, "weight_decay": 0.1}
    assert AdaptConfig(**given, batch_size=8, target_shots=[5], lp_ft=True).steps == 8
    assert AdaptConfig(**given, methods=["auto", "dann"], alignment=2.0).alignment == 2
    assert AdaptConfig(**given, methods=["simclr-both"], negatives="within").negatives == "within"


def test_figures_are_those_of_the_scores(within):
    """The AUROC of a cell, by another package, on labels joined by hand."""
    manifest, labels = pd.read_parquet("runs/one/private/manifest.parquet"), pd.read_csv("phantoms/labels.csv")
    keys = pd.read_csv("runs/one/private/keys.csv")
    raw = keys[keys["kind"] == "series"].set_index("pseudonym")["raw"]
    rows = manifest[manifest["manufacturer"] == "Borealis"]
    truth = rows["series_key"].map(raw).map(labels.set_index("series_uid")["lesion"])
    cell = record("runs/within/cells/coral_1_1.json")
    judged = pd.read_csv("runs/within/private/target.csv")
    assert list(judged["volume_id"]) == list(rows["volume_id"])
    assert list(judged.filter(like="y ").iloc[:, 0]) == list(truth.astype(float))
    assert cell["auroc"] == pytest.approx(roc_auc_score(truth, np.array(cell["scores"])[:, 0]))
