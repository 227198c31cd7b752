"""What a classifier loses in other domains, through the command line: within its own archive, and in another."""

import json
import math
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from medclr.cli import main
from medclr.commands.prepare import stocked
from medclr.data.identity import Seen, load_key
from medclr.data.phantoms import write_phantoms
from medclr.models import Architecture, build_encoder, build_projector, save_bundle
from medclr.training import probe

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
TABLES = ("domains", "differences", "heads", "probes", "distances", "shortcuts")
LABELS = "one/labels.csv"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two archives of phantoms; an encoder of the first and classifiers that learned from 24 of its 70 patients."""
    folder = tmp_path_factory.mktemp("world")
    before = Path.cwd()
    os.chdir(folder)
    for name, patients, seed in (("one", 70, 1), ("other", 40, 2)):
        write_phantoms(folder / name, patients=patients, seed=seed)
        table = pd.read_csv(f"{name}/labels.csv", dtype=str)
        number = table["patient_id"].str[-4:].astype(int)
        table["split"] = np.where(number < 24, "train", np.where(number < 30, "val", "test"))
        table["sex"] = np.where(number % 3 == 0, "F", "M")
        table["age"] = (20 + number % 60).astype(str)
        table["hospital"] = np.where(number % 2 == 0, "CANARY GENERAL", "CANARY CLINIC")
        table["stage"] = np.where(number % 3 == 0, "a", np.where(number % 3 == 1, "b", "c"))
        if name == "other":
            # Another patient of the same number is another patient.
            table["sex"] = table["sex"].where(number >= 4, "")
        table.to_csv(f"{name}/labels.csv", index=False)
    Path("tiny.yaml").write_text(SPEC)
    words = [
        "--data",
        "one/dicom",
        "--spec",
        "tiny.yaml",
        "--out",
        "runs/pretrain",
        "--key-file",
        "key",
        "--workers",
        "0",
    ]
    assert main(["prepare", *words]) == 0
    bundle(Path("runs/pretrain"))
    common = ["--labels", LABELS, "--encoder", "runs/pretrain", "--resamples", "100"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "FEWEST_PATIENTS", 1000)  # or the choice of strengths would take nearly all of the time
        for out, words in (
            ("stage", ["--label", "stage", "--method", "knn"]),
            ("seed1", ["--label", "lesion", "--seed", "1", "--class-weight", "none"]),
            ("first", ["--label", "lesion"]),
        ):
            assert main(["finetune", *common, *words, "--out", f"runs/{out}"]) == 0
        yield folder
    os.chdir(before)


def bundle(run):
    """A random encoder, which is as good as any here, where `pretrain` would have put it; it saw what is trained on."""
    manifest, spec = stocked(run)
    torch.manual_seed(0)
    architecture = Architecture(10, 8, 3, 1, "batch", spec.patch)
    encoder, projector = build_encoder(architecture), build_projector(64, 16, 8)
    projector(encoder(torch.rand(4, 1, *spec.patch)))
    details = {"axis_order": "", "method": "simclr", "code_version": "0", "manifest_hash": "", "holdout": {}}
    names = load_key(Path("key"))
    saw = manifest["patient_key"].isin([names.pseudonym("patient", f"CANARY-{n:04d}") for n in range(24)])
    seen = Seen.of(names.fingerprint, manifest[saw]).to_dict()
    details |= {"spec": spec.to_dict(), "hyperparameters": {"seed": 0}, "seen": seen}
    save_bundle(run / "encoder", encoder, projector, architecture, details)


@pytest.fixture(scope="module")
def within(world):
    """By the scanner and columns of the table; of two classifiers."""
    words = ["--by", "manufacturer=Acme", "hospital", "--attributes", "sex", "age", "--resamples", "100"]
    classifiers = ["--classifier", "runs/first", "runs/seed1"]
    assert main(["shift", *classifiers, *words, "--out", "runs/within"]) == 0
    return Path("runs/within")


@pytest.fixture(scope="module")
def against(world):
    """Another archive."""
    words = ["--data", "other/dicom", "--labels", "other/labels.csv", "--resamples", "100", "--workers", "0"]
    assert main(["shift", *words, "--classifier", "runs/first", "--out", "runs/against"]) == 0
    return Path("runs/against")


@pytest.fixture
def said(capsys, world, tmp_path):
    """Run a command with `--out` in a new folder; its exit code and the lines on standard output and error."""

    def run(*words, out=None):
        capsys.readouterr()
        code = main([*words, "--out", str(out or tmp_path / "out")])
        text = capsys.readouterr()
        return code, text.out.strip().splitlines(), text.err.strip().splitlines()

    return run


def record(path):
    return json.loads(Path(path).read_text())


def unlearned():
    """The labelled volumes of patients that the classifier did not learn from, with what finetune predicted."""
    table = pd.read_csv("runs/first/predictions.csv", dtype={"volume_id": str, "patient_key": str})
    manifest = pd.read_parquet("runs/pretrain/private/manifest.parquet")
    return table[table["split"] != "train"].merge(manifest[["volume_id", "manufacturer", "site"]], on="volume_id")


def test_within_an_archive_domains_are_those_of_a_column(said, within):
    code, out, _ = said("shift", "--classifier", "runs/first", "--by", "manufacturer", "--resamples", "100")
    assert code == 0
    (folder,) = [line.removeprefix("run folder: ") for line in out if line.startswith("run folder: ")]
    domains = pd.read_csv(f"{folder}/domains.csv").set_index("domain")
    rows = unlearned()
    assert set(domains.index) == {"Acme", "Borealis"}
    for name, row in domains.iterrows():
        own = rows[rows["manufacturer"] == name]
        assert row["auroc"] == pytest.approx(roc_auc_score(own["y"], own["probability"]))
        assert row[["n", "n_patients"]].tolist() == [len(own), own["patient_key"].nunique()]
        assert row["predicted"] == pytest.approx(own["probability"].mean(), abs=1e-6)
        assert row["observed"] == pytest.approx(own["y"].mean())
    manifest = pd.read_parquet("runs/pretrain/private/manifest.parquet")
    learned = pd.read_csv("runs/first/predictions.csv", dtype=str).query("split == 'train'")
    counts = manifest[manifest["volume_id"].isin(learned["volume_id"])]["manufacturer"].value_counts()
    assert domains["is_source"].to_dict() == {name: name == counts.index[0] for name in domains.index}
    assert record(f"{folder}/report.json")["context"]["trained"]["manufacturer"] == counts.to_dict()
    findings = ["{question} {short}".format(**answer) for answer in record(f"{folder}/report.json")["findings"]]
    assert set(findings) <= set(out)


def test_corruptions_are_domains_of_the_same_volumes(said, tmp_path):
    words = ["--classifier", "runs/first", "--resamples", "100", "--corruptions", "noise", "contrast"]
    code, out, _ = said("shift", *words)
    assert code == 0, out
    domains = pd.read_csv(tmp_path / "out" / "domains.csv", dtype={"domain": str})
    assert domains.groupby("column", sort=False)["domain"].agg(list).to_dict() == {
        "strength of noise": list("012345"),
        "strength of contrast": list("012345"),
    }
    assert domains["is_source"].tolist() == [True, *[False] * 5] * 2
    assert domains["n"].nunique() == 1
    clean = unlearned()
    assert domains["auroc"][0] == domains["auroc"][6] == pytest.approx(roc_auc_score(clean["y"], clean["probability"]))
    assert domains["auroc"].nunique() > 2
    assert pd.read_csv(tmp_path / "out" / "shortcuts.csv").empty


def test_a_source_may_be_named_and_places_and_ages_are_not(within):
    domains = pd.read_csv(within / "domains.csv")
    assert domains[["column", "domain"]].to_numpy().tolist() == [
        ["manufacturer", "Acme"], ["manufacturer", "Borealis"], ["hospital", "site A"], ["hospital", "site B"]
    ]  # fmt: skip
    assert domains["is_source"].tolist()[:2] == [True, False]
    shortcuts = pd.read_csv(within / "shortcuts.csv")
    assert {"sex", "age", "model", "hospital", "manufacturer"} <= set(shortcuts["attribute"])
    report = record(within / "report.json")
    assert set(report["context"]["trained"]["age"]) <= {"18-39", "40-59", "60+", "0-17"}
    assert len(report["context"]["classifiers"]) == 2
    assert report["context"]["test"]["n"] == len(unlearned())
    assert report["context"]["test"]["n_pretrained"] == report["context"]["test"]["n_uncheckable"] == 0


def test_against_another_archive_the_own_one_is_the_source(against):
    domains = pd.read_csv(against / "domains.csv").set_index("domain")
    assert domains.index.tolist() == ["home", "new"]
    assert domains["is_source"].tolist() == [True, False]
    rows = unlearned()
    assert domains.loc["home", "auroc"] == pytest.approx(roc_auc_score(rows["y"], rows["probability"]))
    # As `predict` has it, under the same preprocessing.
    words = ["--data", "other/dicom", "--classifier", "runs/first", "--workers", "0"]
    assert main(["predict", *words, "--out", "runs/predict"]) == 0
    predicted = pd.read_csv("runs/predict/predictions.csv", dtype={"volume_id": str})
    labels = pd.read_csv("other/labels.csv", dtype=str)
    series = {
        load_key(Path("key")).pseudonym("series", uid): int(y) for uid, y in labels[["series_uid", "lesion"]].values
    }
    manifest = pd.read_parquet("runs/predict/private/manifest.parquet").set_index("volume_id")["series_key"]
    predicted["y"] = predicted["volume_id"].map(manifest).map(series)
    known = predicted.dropna(subset="y")
    # Patients of both archives have the same names, and so are the same: those that were learned from are left out.
    own = pd.read_parquet("runs/against/private/manifest.parquet").set_index("volume_id")["patient_key"]
    names = load_key(Path("key"))
    learned = {names.pseudonym("patient", f"CANARY-{number:04d}") for number in range(24)}
    known = known[~known["volume_id"].map(own).isin(learned)]
    assert domains.loc["new", "n"] == len(known)
    assert domains.loc["new", "auroc"] == pytest.approx(roc_auc_score(known["y"], known["probability"]))
    assert domains.loc["new", "predicted"] == pytest.approx(known["probability"].mean(), abs=1e-6)


@pytest.mark.parametrize("run", ["within", "against"])
def test_report_is_the_tables(run, request):
    folder = request.getfixturevalue(run)
    report = record(folder / "report.json")
    for name in TABLES:
        table = pd.read_csv(folder / f"{name}.csv", keep_default_na=False, na_values=[""])
        rows = pd.DataFrame(report[name])
        assert list(table.columns) == list(rows.columns)
        assert len(table) == len(rows) > 0
        for one, other in zip(table.to_dict("records"), rows.to_dict("records"), strict=True):
            for column, value in one.items():
                if isinstance(value, float) and math.isnan(value):
                    assert other[column] in ("", None) or math.isnan(other[column])
                else:
                    assert value == pytest.approx(other[column]) if isinstance(value, float) else value == other[column]
    domains, page = pd.read_csv(folder / "domains.csv"), (folder / "report.html").read_text()
    for value in domains["auroc"]:
        assert f"{value:.3f}" in page
    for name in ("png", "svg", "pdf"):
        assert (folder / f"domains.{name}").stat().st_size > 5000


class Page(HTMLParser):
    """Tags that are open, and what is referred to."""

    def __init__(self, html):
        super().__init__()
        self.open, self.refers, self.used = [], [], set()
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.used.add(tag)
        self.refers += [value for name, value in attrs if name in ("src", "href", "action", "srcset", "data")]
        if tag not in {"meta", "br", "path", "use", "line", "circle", "rect", "link"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.used.add(tag)
        self.refers += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        if tag not in {"meta", "br", "path", "use", "line", "circle", "rect", "link"}:
            assert self.open.pop() == tag


def test_the_page_is_whole_says_that_these_are_phantoms_and_loads_nothing(within, against):
    for folder in (within, against):
        html = (folder / "report.html").read_text()
        page = Page(html)
        assert not page.open
        assert all(reference.startswith("#") for reference in page.refers)
        assert not page.used & {"script", "img", "iframe", "link"}
        assert not re.search(r"url\((?!#)|@import", html)
        assert "generated phantoms, not patients" in html
        assert "nan" not in re.sub(r"<style>.*?</style>|<[^>]*>", "", html, flags=re.DOTALL)


def test_nothing_of_a_patient_is_outside_private(within, against):
    keys = pd.concat([pd.read_csv(f"{run}/private/keys.csv", dtype=str) for run in ("runs/pretrain", against)])
    secrets = [b"CANARY", *(text.encode() for text in keys["raw"].dropna() if len(text) > 4)]
    looked_at = 0
    for folder in (within, against):
        for path in folder.rglob("*"):
            if path.is_file() and "private" not in path.relative_to(folder).parts:
                looked_at += 1
                assert not [secret for secret in secrets if secret in path.read_bytes()], path
    assert looked_at > 25
    assert b"CANARY" in (against / "private/keys.csv").read_bytes()  # so the search can find it


def test_a_complete_run_is_run_again_with_the_same_result(said, against):
    """Without a second scan of the other archive."""
    before = {path: path.read_bytes() for path in against.glob("*.*") if path.name != "run.json"}
    scanned = (against / "private/manifest.parquet").stat().st_mtime_ns
    words = ["--data", "other/dicom", "--labels", "other/labels.csv", "--resamples", "100", "--workers", "0"]
    assert said("shift", *words, "--classifier", "runs/first", out=against)[0] == 0
    assert {path: path.read_bytes() for path in before} == before
    assert (against / "private/manifest.parquet").stat().st_mtime_ns == scanned
    code, _, err = said("shift", *words, "--classifier", "runs/first", "--seed", "4", out=against)
    assert (code, len(err)) == (2, 1)
    assert "seed 0, not 4" in err[0]


def test_a_classifier_of_several_classes_is_judged_too(said, tmp_path):
    code, _, err = said("shift", "--classifier", "runs/stage", "--by", "manufacturer", "--resamples", "100")
    assert (code, err) == (0, [])
    domains = pd.read_csv(tmp_path / "out/domains.csv")
    assert domains["auroc"].notna().all()
    assert domains["sensitivity"].isna().all()


FIRST = ["--classifier", "runs/first", "--resamples", "100"]
OTHER = ["--data", "other/dicom", "--labels", "other/labels.csv", "--workers", "0"]


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (["--classifier", "runs/first", "runs/first/classifier"], 2, "--classifier: two of them are the same"),
        ([*FIRST, "--by", "modality"], 1, "--by modality: there is only 'CT' of 5 patients"),
        ([*FIRST, "--by", "view"], 2, "--by view: no such .*; there are sex, age, hospital, stage, manufacturer, "),
        ([*FIRST, "--by", "patient_id"], 2, "names patients"),
        ([*FIRST, "--by", "manufacturer=Corona"], 2, "no such domain; there are Acme and Borealis"),
        ([*FIRST, "--by", "sex", "--attributes", "weight"], 2, "--attributes weight: no such column in the "),
        ([*FIRST, "--by", "sex", "sex=F"], 2, "name each column once"),
        ([*FIRST, "--data", "other/dicom"], 2, "--data: whose label table is not given; name it with --labels"),
        ([*FIRST, "--data", "one/dicom", "--labels", LABELS, "--workers", "0"], 1, "are among those of the"),
        ([*FIRST, *OTHER, "--label", "sex"], 1, "classifier"),
        ([*FIRST, *OTHER[:2], "--labels", "gone.csv"], 2, "gone.csv: no such file"),
        (["--classifier", "runs/first", "runs/stage"], 1, "--classifier runs/stage: has another label"),
        (["--classifier", "runs/pretrain"], 1, "classifier"),
        ([*FIRST, "--by", "sex=F=M"], 2, "--by sex=F=M: no such domain"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line(said, words, code, named):
    found, _, err = said("shift", *words)
    assert len(err) == 1, err
    assert re.search(named, err[0]), err[0]
    assert found == code


def test_without_a_classifier_it_says_what_to_run(said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = said("shift")
    assert (code, len(err)) == (2, 1)
    assert "no complete finetune run under runs/; run `medclr finetune --labels CSV`" in err[0]


def test_scans_of_a_patient_are_no_domain_of_five(said, tmp_path):
    """Five volumes of two patients: too few patients for any figure."""
    table = pd.read_csv(LABELS, dtype=str)
    few = table.groupby("patient_id")["series_uid"].transform("count") > 1
    chosen = table[few & (table["split"] == "test")]["patient_id"].unique()[:3]
    table["room"] = np.where(table["patient_id"].isin(chosen), "small", "large")
    assert (table["room"] == "small").sum() >= 5
    table.to_csv(tmp_path / "rooms.csv", index=False)
    code, _, err = said("shift", *FIRST, "--labels", str(tmp_path / "rooms.csv"), "--by", "room")
    assert (code, len(err)) == (1, 1)
    assert "--by room: there is only 'large' of 5 patients whom the classifier did not learn from" in err[0]


def test_a_classifier_that_was_sent_alone_needs_scans_and_labels(said, tmp_path):
    shutil.copytree("runs/first/classifier", tmp_path / "sent/classifier")
    words = ["--classifier", str(tmp_path / "sent/classifier"), "--resamples", "100", "--key-file", "key"]
    code, _, err = said("shift", *words)
    assert (code, len(err)) == (2, 1)
    assert "are not at hand; give --data and --labels" in err[0]
    code, _, err = said("shift", *words, *OTHER, "--by", "manufacturer", out=tmp_path / "with")
    assert (code, err) == (0, [])
    assert set(pd.read_csv(tmp_path / "with/domains.csv")["domain"]) == {"Acme", "Borealis"}
