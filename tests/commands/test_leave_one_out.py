"""`medclr adapt --target COLUMN` on phantoms: each scanner, or room, is left out in turn."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import medclr
from medclr.cli import main
from medclr.commands import adapt as module
from medclr.config import AdaptConfig
from medclr.data.phantoms import write_phantoms
from medclr.evaluation.leave_one_out import LeaveOneOut

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
FEW = ["--draws", "1", "--resamples", "100", "--workers", "0", "--transductive", "--label", "lesion"]
BASE = ["adapt", "--encoder", "runs/one", *FEW]
SCANNERS = [*BASE, "--labels", "phantoms/labels.csv", "--target", "manufacturer", "--methods", "coral", "auto"]
ROOMS = [*BASE, "--labels", "rooms.csv", "--target", "room", "--methods", "coral"]
METHODS = ["source-only", "coral", "auto", "target-trained"]


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """Phantoms of two scanners, in three rooms and one that few patients saw, and an encoder of them."""
    folder = tmp_path_factory.mktemp("leave")
    before = Path.cwd()
    os.chdir(folder)
    write_phantoms(folder / "phantoms", patients=40, seed=1)
    (folder / "tiny.yaml").write_text(SPEC)
    words = ["--data", "phantoms/dicom", "--spec", "tiny.yaml", "--key-file", "key", "--workers", "0"]
    assert main(["pretrain", *words, "--epochs", "1", "--batch-size", "6", "--width", "8", "--out", "runs/one"]) == 0
    labels = pd.read_csv("phantoms/labels.csv")
    patients = labels.drop_duplicates("patient_id").set_index("patient_id")
    place = patients.groupby("lesion").cumcount()
    room = place.map(lambda number: "attic" if number < 2 else "" if number == 2 else "ab/"[number % 3])
    labels["room"] = labels["patient_id"].map(room)
    labels.to_csv("rooms.csv", index=False)
    yield folder
    os.chdir(before)


def record(path):
    return json.loads(Path(path).read_text())


@pytest.fixture(scope="module")
def scanners(folder):
    assert main([*SCANNERS, "--out", "runs/scanners"]) == 0
    return record("runs/scanners/report.json")


@pytest.fixture(scope="module")
def rooms(folder):
    assert main([*ROOMS, "--out", "runs/rooms"]) == 0
    return record("runs/rooms/report.json")


def test_each_domain_is_a_run_of_its_own(scanners):
    """With the figures of `--target manufacturer=NAME`, but for the correction."""
    alone = [*SCANNERS[:-4], "manufacturer=Borealis", *SCANNERS[-3:]]
    assert main([*alone, "--out", "runs/alone"]) == 0
    for name, column in (("adapt", "auroc"), ("differences", "p"), ("regained", "gap"), ("choices", "n")):
        table, own = pd.read_csv(f"runs/scanners/{name}.csv"), pd.read_csv(f"runs/alone/{name}.csv")
        assert list(table.columns) == ["domain", *own.columns]
        rows = table[table["domain"] == "Borealis"]
        assert list(rows["method"]) == list(own["method"])
        np.testing.assert_allclose(rows[column], own[column])
        assert len(table) == len(scanners[name])
    assert [row["domain"] for row in scanners["domains"]] == ["Acme", "Borealis"]
    assert {(row["domain"], row["method"]) for row in scanners["adapt"]} == {
        (domain, method) for domain in ("Acme", "Borealis") for method in METHODS
    }
    own = record("runs/scanners/manufacturer-Borealis/report.json")
    assert own["context"]["target"]["name"] == "manufacturer Borealis"
    assert Path("runs/scanners/manufacturer-Borealis/report.html").is_file()
    assert record("runs/scanners/manufacturer-Borealis/run.json")["complete"]


def test_the_page_leads_to_those_of_its_domains(scanners):
    page = Path("runs/scanners/report.html").read_text()
    links = re.findall(r'<a href="([^"]+)"', page)
    assert sorted(links) == ["manufacturer-Acme/report.html", "manufacturer-Borealis/report.html"]
    for link in links:
        assert Path("runs/scanners", link).is_file()
    for words in ("generated phantoms", "Transductive.", "Leave one domain out: lesion by manufacturer", "conditional"):
        assert words in page
    assert Path("runs/scanners/adapt.png").is_file()


def test_nothing_that_may_be_shared_names_a_patient(scanners, rooms):
    for path in Path("runs").rglob("*"):
        if path.is_file() and "private" not in path.parts and path.parts[1] in ("scanners", "rooms"):
            assert b"CANARY" not in path.read_bytes(), path


def test_a_run_that_goes_on_computes_what_is_missing_alone(scanners, monkeypatch):
    before = {name: pd.read_csv(f"runs/scanners/{name}.csv") for name in ("adapt", "differences", "choices")}
    for path in Path("runs/scanners/manufacturer-Borealis/cells").glob("coral_*"):
        path.unlink()
    monkeypatch.setattr(module.Volumes, "embed", lambda *_: pytest.fail("features are computed again"))
    assert main([*SCANNERS, "--out", "runs/scanners"]) == 0
    for name, table in before.items():
        pd.testing.assert_frame_equal(pd.read_csv(f"runs/scanners/{name}.csv"), table)


def test_features_are_computed_once_for_all_domains(monkeypatch):
    seen, embed = [], module.Volumes.embed

    def counted(volumes, network):
        seen.append(len(volumes.rows))
        return embed(volumes, network)

    monkeypatch.setattr(module.Volumes, "embed", counted)
    assert main([*SCANNERS, "--out", "runs/once"]) == 0
    assert seen == [len(pd.read_csv("phantoms/labels.csv"))]


def test_a_domain_that_cannot_be_judged_is_learned_from_and_named(rooms):
    labels = pd.read_csv("rooms.csv", keep_default_na=False)
    domains = {row["domain"]: row for row in rooms["domains"]}
    assert list(domains) == ["/", "a", "attic", "b"]
    assert {name for name, row in domains.items() if row["reason"]} == {"attic"}
    assert domains["attic"]["reason"] == "only 2 patients with a positive (fewer than 5)"
    for name in ("adapt", "differences", "regained"):
        rows = [row for row in rooms[name] if row["domain"] == "attic"]
        assert rows
        assert all(row["reason"] == domains["attic"]["reason"] for row in rows)
        assert all(row.get("auroc") is None and row.get("p_holm") is None for row in rows)
    assert not list(Path("runs/rooms").glob("room-attic"))
    source = record("runs/rooms/room-b/report.json")["context"]["source"]
    assert source["name"] == "room /, a and attic"
    assert source["n"] == labels["room"].isin(["/", "a", "attic"]).sum()
    assert rooms["context"]["n_unknown"] == (labels["room"] == "").sum() > 0
    page = Path("runs/rooms/report.html").read_text()
    assert "attic could not be judged, and is only learned from: only 2 patients" in page
    assert not re.search(r"\bnan\b", page)
    # A name of a folder has no character that would be another folder.
    assert Path("runs/rooms/room/report.html").is_file()


def test_domains_of_the_source_count_the_same_when_asked(monkeypatch):
    seen, drawn = [], module.CrossFit._problem

    def kept(self, *given):
        problem = drawn(self, *given)
        seen.append((self, problem))
        return problem

    monkeypatch.setattr(module.CrossFit, "_problem", kept)
    assert main([*ROOMS, "--balance", "--out", "runs/balanced"]) == 0
    assert len(seen) == 2 * 3
    for fit, problem in seen:
        assert len(problem.y) > len(fit._source.y)
        domain_of = dict(zip(fit._source.patients, fit._domains, strict=True))
        counts = pd.Series(problem.patients).map(domain_of).value_counts()
        assert len(counts) == 3
        assert counts.nunique() == 1
    assert "count the same in all" in Path("runs/balanced/report.html").read_text()
    assert "count the same in all" in Path("runs/balanced/room-b/report.html").read_text()
    equal = pd.read_csv("runs/balanced/adapt.csv")
    assert len(equal) == 4 * 3


def test_the_public_function_returns_the_tables(scanners):
    config = AdaptConfig(
        labels=Path("phantoms/labels.csv"),
        target="manufacturer",
        encoder=[Path("runs/one")],
        label=["lesion"],
        methods=["coral", "auto"],
        draws=1,
        resamples=100,
        workers=0,
        transductive=True,
        out=Path("runs/scanners"),
    )
    found = medclr.adapt(config)
    assert isinstance(found, LeaveOneOut)
    assert found.frame() is found.points
    assert list(found.points["method"]) == 2 * METHODS
    np.testing.assert_allclose(found.points["auroc"], pd.read_csv("runs/scanners/adapt.csv")["auroc"])


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--target", "ward"], 2, "no such column in the labels or the manifest; there are room, many, half, b"),
        (["--target", "modality"], 1, "--target modality: all are CT, so that none can be left out; name another col"),
        (["--target", "blank"], 1, "--target blank: all are unknown, so that none can be left out"),
        (["--target", "room", "--source", "room=a"], 2, "--source room=a: with --target room, a column alone, each d"),
        (["--target", "many"], 1, "--target many: 20 values are too many to leave out in turn (more than 12); name o"),
        (["--target", "half"], 1, "0 of its 2 domains can be judged, where it takes two: a holds no negative; b holds"),
        (
            ["--target", "manufacturer", "--balance"],
            1,
            "--balance: the source is one domain, manufacturer Borealis; le",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(capsys, words, code, said):
    labels = pd.read_csv("rooms.csv", keep_default_na=False)
    labels["many"] = [f"v{place % 20}" for place in range(len(labels))]
    labels["half"] = np.where(labels["lesion"] == 1, "a", "b")
    labels.assign(blank="").to_csv("bad.csv", index=False)
    shutil.rmtree("runs/refused", ignore_errors=True)
    capsys.readouterr()
    assert main([*BASE, "--labels", "bad.csv", *words, "--out", "runs/refused"]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_domains_that_pre_training_saw_are_refused_before_any_is_run(capsys):
    words = [word for word in SCANNERS if word != "--transductive"]
    assert main([*words, "--out", "runs/leak"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("medclr: Pre-training saw ")
    assert not list(Path("runs/leak").glob("manufacturer-*"))
