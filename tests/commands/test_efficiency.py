"""What `medclr efficiency` makes of its encoders, its columns and its processes."""

import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit

import medclr
from medclr.cli import main
from medclr.commands import efficiency as module
from medclr.commands.efficiency import _caveats, _enlarged, _shift, encoder_groups
from medclr.commands.finetune import break_down
from medclr.config import EfficiencyConfig, FinetuneConfig
from medclr.data.labels import Task
from medclr.data.phantoms import write_phantoms
from medclr.errors import UsageError
from medclr.evaluation.efficiency import label_efficiency
from medclr.models.bundle import load_bundle, save_bundle
from medclr.training.methods import UNCHOSEN

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


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with phantoms and two encoders that differ in their seed."""
    folder = tmp_path_factory.mktemp("efficiency")
    before = Path.cwd()
    os.chdir(folder)
    write_phantoms(folder / "phantoms", patients=36, seed=1)
    (folder / "tiny.yaml").write_text(SPEC)
    words = ["--data", "phantoms/dicom", "--holdout", "phantoms/labels.csv", "--spec", "tiny.yaml", "--key-file", "key"]
    settings = ["--epochs", "1", "--batch-size", "6", "--width", "8", "--workers", "0"]
    assert main(["pretrain", *words, *settings, "--out", "runs/one"]) == 0
    shutil.copytree("runs/one", "runs/two")
    bundle = load_bundle(Path("runs/two"))
    torch.manual_seed(1)
    with torch.no_grad():
        for p in bundle.encoder.parameters():
            p.add_(0.05 * torch.randn_like(p))
    details = bundle.details | {"hyperparameters": bundle.details["hyperparameters"] | {"seed": 1}}
    save_bundle(Path("runs/two/encoder"), bundle.encoder, bundle.projector, bundle.architecture, details)
    yield folder
    os.chdir(before)


CURVE = ["efficiency", "--labels", "phantoms/labels.csv", "--encoder", "runs/one", "runs/two", "--fractions", "1"]
BUDGET = ["--draws", "2", "--resamples", "200", "--min-steps", "2", "--max-steps", "2"]


def test_encoders_of_two_seeds_are_one_arm_whichever_process_computes_it(trained):
    arms = ["--arms", "scratch", "pca", "linear", "full", "--tuned", "scratch"]
    for out, jobs in (("alone", "1"), ("together", "2")):
        assert main([*CURVE, *BUDGET, *arms, "--jobs", jobs, "--out", f"runs/{out}"]) == 0
    one, two = (pd.read_csv(f"runs/{out}/curve.csv") for out in ("alone", "together"))
    assert dict(zip(one["arm"], one["n_encoders"], strict=True)) == {
        "scratch": 1,
        "pca": 1,
        "simclr-linear": 2,
        "simclr-full": 2,
    }
    assert len(list(Path("runs/alone/cells").glob("*.json"))) == 2 * (1 + 1 + 2 + 2)
    np.testing.assert_allclose(one[["auroc", "low", "high"]], two[["auroc", "low", "high"]], atol=0.02)
    for name in ("differences", "metrics", "calibration", "subgroups"):
        assert Path(f"runs/alone/{name}.csv").is_file()
    page = Path("runs/alone/report.html").read_text()
    assert "with 2 seeds, over which results are means" in page
    assert "conditional on one encoder" not in page


def test_a_run_that_goes_on_computes_no_features_again(trained, monkeypatch):
    words = [*CURVE, *BUDGET, "--arms", "pca", "linear", "--out", "runs/again"]
    assert main(words) == 0
    before = pd.read_csv("runs/again/curve.csv")
    for path in Path("runs/again/cells").glob("simclr*"):
        path.unlink()
    monkeypatch.setattr(module.Labelled, "features", None)
    assert main(words) == 0
    pd.testing.assert_frame_equal(pd.read_csv("runs/again/curve.csv"), before)
    assert all("features" not in path.name for path in Path("runs/again").iterdir())


def test_where_a_worker_is_killed_a_line_says_so_and_what_is_finished_is_kept(trained, monkeypatch, capfd):
    words = [*CURVE, *BUDGET, "--arms", "full", "--draws", "3", "--out", "runs/killed"]

    def killing(*given, **named):
        *others, on_cell = given

        def once(cell):
            on_cell(cell)
            os.kill(next(iter(named["pool"]._processes)), signal.SIGKILL)

        return label_efficiency(*others, once, **named)

    with monkeypatch.context() as patch:
        patch.setattr(module, "label_efficiency", killing)
        assert main([*words, "--jobs", "2"]) == 1
    told = capfd.readouterr().err.strip().splitlines()
    assert told == [
        "medclr: a process that computes cells died; out of memory? Finished cells are kept: run the same command "
        "again to go on, with fewer --jobs, and in a script call medclr under `if __name__ == '__main__':`"
    ]
    kept = {path: path.stat().st_mtime_ns for path in Path("runs/killed/cells").glob("*.json")}
    assert 1 <= len(kept) < 6
    assert main([*words, "--jobs", "1"]) == 0
    assert len(list(Path("runs/killed/cells").glob("*.json"))) == 6
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_the_rows_behind_the_scores_are_kept_in_private(trained):
    assert main([*CURVE, *BUDGET, "--arms", "pca", "--out", "runs/rows"]) == 0
    rows = pd.read_csv("runs/rows/private/test.csv")
    labels = pd.read_csv("phantoms/labels.csv")
    assert len(rows) == (labels["split"] == "test").sum()
    assert rows["y 1"].sum() == labels["lesion"][labels["split"] == "test"].sum()


def test_examples_of_errors_are_in_private_alone_and_change_nothing_else(trained, capsys):
    def run(out, *more):
        assert main([*CURVE, *BUDGET, "--arms", "pca", "linear", "--out", f"runs/{out}", *more]) == 0
        shared = [path for path in Path(f"runs/{out}").rglob("*") if path.is_file() and "private" not in path.parts]
        return {str(path.relative_to(f"runs/{out}")): path.read_bytes() for path in shared}

    before = run("shown")
    assert not Path("runs/shown/private/errors.html").exists()
    capsys.readouterr()
    after = run("shown", "--examples", "3")  # a finished run takes it up
    assert "wrote runs/shown/private/errors.html: images of patients, not to be passed on" in capsys.readouterr().out
    assert after.keys() == before.keys()
    same = {name for name in after if after[name] == before[name]}
    assert {"report.html", "config.yaml", "curve.csv", "differences.csv"} <= same
    assert not [name for name, data in after.items() if b"data:image" in data or b"errors.html" in data]

    path = Path("runs/shown/private/errors.html")
    assert path.stat().st_mode & 0o777 == 0o600
    page = path.read_text()
    assert "Do not pass it on" in page
    assert "Errors of simclr-linear" in page
    table = pd.read_csv("runs/shown/private/test.csv", dtype={"volume_id": str})
    scores = [json.loads(cell.read_text())["scores"] for cell in Path("runs/shown/cells").glob("simclr*.json")]
    table["probability"] = expit(np.array(scores)[..., 0]).mean(axis=0)
    ends = table.groupby("y 1")["probability"].agg(["min", "max"])
    wrong = table[(table["probability"] >= ends.loc[1, "min"]) & (table["probability"] <= ends.loc[0, "max"])]
    worst = {
        label: rows.sort_values("probability", ascending=label == 1).head(3) for label, rows in wrong.groupby("y 1")
    }
    figures = re.findall(r"<b>([\d.]+)</b> for lesion = 1\n.*label: (\d)</span>\n<span>volume (\w+)<", page)
    expected = [
        (f"{row.probability:.3f}", str(label), row.volume_id) for label in (0, 1) for row in worst[label].itertuples()
    ]
    assert figures == expected
    assert page.count("<img") == 3 * len(figures)  # three planes of each
    raw = set(pd.read_csv("runs/one/private/keys.csv", dtype=str)["raw"])
    assert not [text for text in raw if len(text) > 4 and text in page]


def test_what_was_left_out_is_said(trained):
    page = Path("runs/shown/report.html").read_text()
    labels = pd.read_csv("phantoms/labels.csv")
    n = labels.loc[labels["split"] == "val", "patient_id"].nunique()
    assert f"Left out: {n} labelled patients of the val split, which no curve uses." in page


def encoder(method="simclr", digest="", **learned):
    settings = {"epochs": 20, "temperature": 0.1, "seed": 0, "workers": 4} | learned
    details, digest = {"method": method, "hyperparameters": settings}, digest or f"{method} {settings}"
    return SimpleNamespace(bundle=SimpleNamespace(details=details, architecture="ResNet-10", digest=digest))


def test_groups_are_of_encoders_that_differ_in_their_seed_alone():
    one, two = encoder(seed=0), encoder(seed=1, workers=0)
    assert encoder_groups([one, two]) == {"simclr": [one, two]}
    long, moco, longer = encoder(epochs=40), encoder("moco"), encoder(epochs=80)
    assert encoder_groups([one, long, moco, two, longer]) == {
        "simclr": [one, two],
        "simclr2": [long],
        "moco": [moco],
        "simclr3": [longer],
    }


def test_ages_become_bands_and_the_scanner_is_always_there():
    rows = pd.DataFrame({"manufacturer": ["GE", "GE", "ACME"], "model": ["a", "b", ""]})
    groups = pd.DataFrame({"Age": ["036Y", "71", ""], "sex": ["F", "M", ""]})
    found = break_down(SimpleNamespace(rows=rows, groups=groups))
    assert found["Age"].tolist() == ["18-39", "60+", "unknown"]
    assert found["sex"].tolist() == ["F", "M", ""]
    assert found["manufacturer"].tolist() == ["GE", "GE", "ACME"]


def grouped(**columns):
    n = len(next(iter(columns.values())))
    return break_down(
        SimpleNamespace(rows=pd.DataFrame({"manufacturer": ["GE"] * n, "model": "a"}), groups=pd.DataFrame(columns))
    )


def test_ages_are_read_as_dicom_writes_them():
    ages = ["004Y", "214M", "220M", "999W", "010D", "058Y", "61.5", "", "old"]
    bands = ["0-17", "0-17", "18-39", "18-39", "0-17", "40-59", "60+", "unknown", "unknown"]
    found = grouped(PatientAge=ages, **{"Patient Age": ages, "age_group": ages})
    assert found["PatientAge"].tolist() == found["Patient Age"].tolist() == bands
    assert found["age_group"].tolist() == ages
    assert grouped(age=["60-69", "70-79"])["age"].tolist() == ["60-69", "70-79"]


def test_numbers_become_quartiles_where_they_are_many():
    found = grouped(weight=[*map(str, range(50, 66)), ""], doses=[*"12345678" * 2, ""], code=[*"ABCDEFGHIJKLMNOP", ""])
    assert found["weight"].value_counts(sort=False).to_dict() == {
        "below 54": 4, "54 to below 58": 4, "58 to below 62": 4, "62 and above": 4, "unknown": 1
    }  # fmt: skip
    assert found["doses"].tolist()[:3] == ["1", "2", "3"]
    assert found["code"].tolist()[:2] == ["A", "B"]


def test_names_of_places_become_letters():
    found = grouped(hospital=["St Mary", "Clinic Z", "", "St Mary"], site=["site A", "site B", "site A", ""])
    assert found["hospital"].tolist() == ["site B", "site A", "", "site B"]
    assert found["site"].tolist() == ["site A", "site B", "site A", ""]


def test_a_rate_at_the_edge_is_said_of_cells_that_could_choose():
    config = EfficiencyConfig(labels=Path("labels.csv"), arms=["scratch"], lr=0.001, max_steps=100, epochs=1)
    unchosen, middle, top = f"learning rate 0.001{UNCHOSEN}", "learning rate 0.003", "learning rate 0.01"

    def said(*choices):
        return _caveats(config, 50, SimpleNamespace(cells=[SimpleNamespace(arm="scratch", choice=c) for c in choices]))

    assert said(*[unchosen] * 9, "", top) == [
        "scratch chose the highest learning rate 0.01 in 1 of 1 cells: a higher --lr may be better."
    ]
    assert said(*[unchosen] * 9, top, middle) == []
    (cut,) = _caveats(replace(config, fractions=[0.1, 0.5, 1.0]), 16000, SimpleNamespace(cells=[]))
    assert "scratch stopped at --max-steps 100, after 0.8 with 50% and 0.4 with 100%, of 1 epochs" in cut


def test_of_fewer_volumes_than_a_batch_an_epoch_is_a_step():
    config = EfficiencyConfig(
        labels=Path("labels.csv"), arms=["scratch"], fractions=[0.1], min_steps=2, max_steps=12, batch_size=16
    )
    (cut,) = _caveats(config, 120, SimpleNamespace(cells=[]))
    assert "stopped at --max-steps 12, after 12.0 with 10%, of 30 epochs" in cut


def test_a_draw_that_holds_more_than_its_share_is_said():
    points = pd.DataFrame({"fraction": [0.01, 0.05, 0.5, 1.0], "n_patients": [8.0, 8.0, 48.0, 96.0]})
    larger, same = _enlarged(points)
    assert larger.startswith("1% has 8 patients (8.3%) and 5% has 8 patients (8.3%): a draw is made large enough")
    assert same.startswith("1% and 5% are the same draws")
    assert _enlarged(points[2:]) == []
    assert _enlarged(points[3:]) == []
    assert _enlarged(points.assign(n_patients=np.nan)) == []


def test_one_encoder_does_not_count_twice():
    with pytest.raises(UsageError, match="one of simclr is given twice"):
        encoder_groups([encoder(seed=0), encoder(seed=1), encoder(seed=0)])
    with pytest.raises(UsageError, match="2 of simclr have the seed 3"):
        encoder_groups([encoder("moco", seed=3), encoder(digest="a", seed=3), encoder(digest="b", seed=3)])
    encoder_groups([encoder(digest="a", seed=None), encoder(digest="b", seed=None)])  # weights from elsewhere


def test_another_share_of_positives_is_said():
    train, test = (np.repeat([[1.0], [0.0]], counts, axis=0) for counts in ((74, 26), (62, 38)))
    (said,) = _shift(train, test, Task("binary", ("sick",), ("0", "1")))
    assert said.startswith("Of the labelled training volumes 74% are positive, of the test volumes 62%")
    assert _shift(train, train[1:], Task("binary", ("sick",), ("0", "1"))) == []


def test_only_arms_that_train_a_network_can_be_tuned():
    config = EfficiencyConfig(labels=Path("labels.csv"))
    with pytest.raises(UsageError, match="--tuned linear: it trains no whole network"):
        replace(config, tuned=["linear"])
    with pytest.raises(UsageError, match="--tuned with --method linear: it has no learning rate to choose"):
        FinetuneConfig(labels=Path("labels.csv"), tuned=True)
    assert medclr.EfficiencyConfig is EfficiencyConfig
