"""`medclr pretrain --domains`: what is said of domains, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import medclr
from medclr.cli import main, parse
from medclr.commands.batches import coded, domains_of, lonely
from medclr.data.phantoms import write_phantoms
from medclr.errors import UsageError

SPEC = """
name: tiny
modality: [CT]
spatial_dims: 2
slices: axial
slice_step_mm: 40
normalisation: window
window: [-1000, 400]
clip: [-1024, 1500]
sizing: spacing
max_patch: 12
preset: ct
"""


def units(sites, patients=None, **columns):
    rows = pd.DataFrame({"site": sites, "modality": "CT", "manufacturer": "", "model": "", "kernel": ""} | columns)
    return rows.assign(field_strength=float("nan"), patient_key=patients or list(map(str, range(len(rows)))))


def config(*words):
    return parse("pretrain", ["--data", "x", "--domains", "site", *words])


AB = ["site A"] * 6 + ["site B"] * 3 + [""]


def test_domains_are_told_with_their_numbers(capsys):
    assert domains_of(config("--negatives", "within"), units(AB), 1).tolist() == [0] * 6 + [1] * 3 + [2]
    assert capsys.readouterr().out == "domains by site: site A 6, site B 3, unknown 1\n"
    domains_of(config("--balance", "--batch-size", "6"), units(AB[:9]), 1)
    assert capsys.readouterr().out == "domains by site: site A 6, site B 3; 3 of each in every batch\n"
    many = units([f"site {i % 11:02}" for i in range(100)])
    domains_of(config("--negatives", "across"), many, 1)
    assert capsys.readouterr().out.endswith("site 07 9, …\n")
    assert domains_of(parse("pretrain", ["--data", "x"]), units(AB), 1) is None
    assert coded(parse("pretrain", ["--data", "x"]), units(AB)) is None


def test_a_domain_of_one_patient_has_no_negatives_within():
    sites, patients = ["site A", "site A", "site B", "site B"], ["1", "2", "3", "3"]
    (told,) = lonely(config("--negatives", "within"), units(sites, patients))
    assert told.startswith("--negatives within: 1 domain by site with a single patient")
    assert lonely(config("--negatives", "across"), units(sites, patients)) == []
    assert lonely(config("--negatives", "within"), units(sites)) == []


@pytest.mark.parametrize(
    ("words", "rows", "world", "message"),
    [
        (
            ["--balance"],
            units([""] * 4),
            1,
            "--domains site: no volume says its own, and it takes two; no column of the",
        ),
        (
            ["--balance"],
            units(["site A"] * 4, kernel=["a", "b", "b", "c"]),
            1,
            r"all are of site A, and it takes two; there are several by kernel \(3\)",
        ),
        (
            ["--balance", "--batch-size", "7"],
            units(AB),
            1,
            r"of 7 cannot hold equal numbers of 3 .* --batch-size 6 or 9",
        ),
        (["--balance", "--batch-size", "2"], units(AB), 1, r"of 2 cannot hold equal numbers of 3 .* --batch-size 3$"),
        (
            ["--balance", "--batch-size", "9"],
            units(AB),
            1,
            "unknown has 1 of the 3 that a batch of 9 is to hold of each domain by site; give --batch-size 3 or",
        ),
        (
            ["--balance", "--batch-size", "8"],
            units(AB[:9]),
            1,
            "site B has 3 of the 4 .* --batch-size 6 or less, or leave",
        ),
        (
            ["--balance", "--batch-size", "6"],
            units(AB),
            2,
            "unknown has 1 of the 2 that a batch of 6 is to hold of each domain by site; leave out such volumes",
        ),
    ],
)
def test_what_cannot_be_balanced_is_refused_with_the_fix(words, rows, world, message):
    with pytest.raises(UsageError, match=message):
        domains_of(config(*words), rows, world)


@pytest.mark.parametrize("words", [["--domains", "site"], ["--balance", "true"], ["--negatives", "within"]])
def test_domains_and_what_they_are_for_need_each_other(words):
    with pytest.raises(UsageError, match="--domains COLUMN and what it is for, --balance or --negatives"):
        parse("pretrain", ["--data", "x", *words])


def test_from_scans_of_two_scanners_to_a_bundle(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_phantoms(tmp_path / "phantoms", patients=16, seed=1)
    Path("tiny.yaml").write_text(SPEC)
    words = ["pretrain", "--data", "phantoms/dicom", "--spec", "tiny.yaml", "--key-file", "key", "--out", "run"]
    words += ["--epochs", "2", "--batch-size", "8", "--width", "8", "--workers", "0", "--health-every", "1"]
    # The folder is not bound to what was refused.
    assert main([*words, "--domains", "field_strength", "--balance"]) == 2
    err = capsys.readouterr().err
    assert (
        "--domains field_strength: no volume says its own, and it takes two; there are several by site (2), manu" in err
    )
    assert main([*words, "--domains", "kernel", "--balance", "--negatives", "within"]) in (0, 3)
    out = capsys.readouterr().out
    assert "domains by kernel: " in out
    assert "; 4 of each in every batch" in out
    learned = medclr.load_encoder("run").bundle.details["hyperparameters"]
    assert [learned[name] for name in ("domains", "balance", "negatives")] == ["kernel", True, "within"]
    rows = pd.read_csv("run/metrics.csv")
    # Four slices of each scanner, of which some are of one patient.
    assert (rows["chance"] <= np.log(7) + 1e-6).all()
    assert json.loads(Path("run/run.json").read_text())["complete"]
