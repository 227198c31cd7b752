"""What pretrain says about the health of a run, and to whom."""

import json
import math
import re
import socket
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medclr.cli import main
from medclr.reporting.tracking import EXPERIMENT
from medclr.training.trainer import pretrain_encoder

SETTINGS = ["--epochs", "4", "--batch-size", "12", "--width", "8", "--warmup-epochs", "0", "--workers", "0"]
SPEC = """
name: far
modality: [""]
spatial_dims: 2
normalisation: window
window: [3000, 4000]
sizing: fit
max_patch: 28
preset: xray
"""


@pytest.fixture
def pretrain(tmp_path, monkeypatch, capsys):
    """Run `medclr pretrain` on images of noise; its exit code, and the lines of both streams."""
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 255, (24, 12, 12), dtype=np.uint8)
    Path("scans").mkdir()
    np.savez("scans/noise.npz", train_images=images, train_labels=np.zeros(24))
    Path("far.yaml").write_text(SPEC)

    def run(*words, spec="cxr"):
        words = ["--data", "scans", "--key-file", "key", "--spec", spec, "--out", "run", *SETTINGS, *words]
        code = main(["pretrain", *words])
        said = capsys.readouterr()
        return code, said.out.splitlines(), said.err.splitlines()

    return run


def test_a_run_at_chance_is_told_as_soon_as_it_is_known_and_last(pretrain):
    code, lines, _ = pretrain("--lr", "0", "--health-every", "2")
    assert code == 0
    where = [number for number, line in enumerate(lines) if "is at its chance level" in line]
    third = next(number for number, line in enumerate(lines) if line.startswith("epoch 3:"))
    assert where == [third + 1, len(lines) - 1]
    assert lines[-1].startswith("warning: after 4 epochs the loss")
    rows = pd.read_csv("run/metrics.csv")
    assert rows["loss"].notna().all()
    assert list(rows["rankme"].notna()) == [True, False, True, True]
    assert re.search(r"\), similarity 0\.\d\d \(negatives -?0\.\d\d\), RankMe \d+\.\d$", lines[third])


def test_scans_that_the_spec_shows_nothing_of_are_refused_before_training(pretrain):
    code, _, errors = pretrain(spec="far.yaml")
    assert code == 1
    (line,) = errors
    assert "24 of 24 volumes looked at show a single grey value" in line
    assert "spec far" in line
    assert not Path("run/checkpoints").exists()


@pytest.mark.parametrize(
    "words", [["--logger", "mlflow"], ["--tracking-uri", "http://localhost:5000"], ["--health-every", "0"]]
)
def test_settings_that_say_nothing_are_refused(pretrain, words):
    code, _, errors = pretrain(*words)
    assert code == 2
    assert words[0] in errors[0]
    assert not Path("run").exists()


class Store:
    """A stand-in for MLflow's client that keeps what it is sent, and fails after some rows."""

    def __init__(self, rows=math.inf, up=True):
        self.rows, self.up, self.sent = rows, up, []

    def module(self):
        store = self

        class Failure(Exception):
            pass

        class Client:
            def __init__(self, uri):
                store.sent.append(("uri", uri))

            def get_experiment_by_name(self, name):
                if not store.up:
                    raise Failure(f"cannot reach {store.sent[0][1]}")

            def create_experiment(self, name):
                return name

            def create_run(self, experiment, tags):
                store.sent.append(("run", experiment, tags))
                return types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))

            def update_run(self, run, status):
                store.sent.append(("resumed", run))

            def log_batch(self, run, metrics=(), params=()):
                if metrics:
                    store.rows -= 1
                    if store.rows < 0:
                        raise Failure("gone")
                store.sent.append((run, {name: value for name, value, *_ in [*metrics, *params]}))

            def set_terminated(self, run, status):
                store.sent.append(("end", status))

        mlflow, entities, exceptions = (types.ModuleType(name) for name in ("mlflow", "m.entities", "m.exceptions"))
        mlflow.MlflowClient, exceptions.MlflowException = Client, Failure
        entities.Metric = entities.Param = lambda *values: values
        return {"mlflow": mlflow, "mlflow.entities": entities, "mlflow.exceptions": exceptions}


@pytest.fixture
def store(monkeypatch):
    def put(**settings):
        found = Store(**settings)
        for name, module in found.module().items():
            monkeypatch.setitem(sys.modules, name, module)
        return found

    return put


TRACKED = ["--logger", "mlflow", "--tracking-uri", "http://mlflow.clinic:5000"]


def test_a_store_that_fails_in_between_does_not_end_the_run(pretrain, store):
    found = store(rows=2)
    code, lines, _ = pretrain(*TRACKED)
    assert code == 0
    assert len([line for line in lines if "MLflow no longer takes measures" in line]) == 1
    assert len(pd.read_csv("run/metrics.csv")) == 4
    assert [item[1]["epoch"] for item in found.sent if item[0] == "r1" and "epoch" in item[1]] == [0, 1]
    assert found.sent[-1] == ("end", "FINISHED")


def test_a_store_that_is_away_is_known_before_training(pretrain, store):
    store(up=False)
    code, _, errors = pretrain(*TRACKED)
    assert code == 1
    (line,) = errors
    assert "--tracking-uri: cannot log there" in line
    assert "clinic" not in line
    # Before anything is scanned.
    assert not Path("run/private/skipped.csv").exists()


def test_without_mlflow_the_fix_is_named(pretrain, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    code, _, errors = pretrain(*TRACKED)
    assert code == 2
    assert "pip install 'medclr[mlflow]'" in errors[0]
    assert not Path("run/private/skipped.csv").exists()


def test_an_interrupted_run_goes_on_in_its_own_mlflow_run(pretrain, store, monkeypatch):
    found = store()
    from medclr.commands import pretrain as command

    def stopped(*arguments, **settings):
        pretrain_encoder(*arguments, **settings)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command, "pretrain_encoder", stopped)
        assert pretrain(*TRACKED)[0] == 130
    assert found.sent[-1] == ("end", "FAILED")
    assert json.loads(Path("run/mlflow.json").read_text()) == {"experiment": EXPERIMENT, "run": "r1"}
    assert pretrain(*TRACKED)[0] == 0
    assert [item[0] for item in found.sent].count("run") == 1
    assert found.sent[-2:] == [("resumed", "r1"), ("end", "FINISHED")]
    assert not [path for path in Path("run").rglob("*") if path.is_file() and b"mlflow.clinic" in path.read_bytes()]


def test_mlflow_has_what_metrics_csv_has_and_names_nobody(pretrain, tmp_path):
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    code, _, errors = pretrain("--logger", "mlflow", "--tracking-uri", f"file://{tmp_path}/ml", "--health-every", "2")
    assert (code, errors) == (0, [])
    client = MlflowClient(f"file://{tmp_path}/ml")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == json.loads(Path("run/mlflow.json").read_text())["run"]
    assert (run.info.status, run.info.user_id) == ("FINISHED", "unknown")
    rows = pd.read_csv("run/metrics.csv")
    for name in rows:
        sent = {m.step - 1: m.value for m in client.get_metric_history(run.info.run_id, name)}
        known = rows[rows[name].notna()]
        assert sent == pytest.approx(dict(zip(known["epoch"], known[name], strict=True)))
    assert set(run.data.tags) == {"mlflow.source.name", "mlflow.runName", "medclr.version"}
    assert run.data.params["width"] == "8"
    assert not {"data", "out", "store", "key_file", "holdout", "tracking_uri"} & run.data.params.keys()
    for path in (tmp_path / "ml").rglob("*"):
        text = path.read_text().replace(f"file://{tmp_path}/ml", "") if path.is_file() else ""
        assert not [word for word in (socket.gethostname(), str(tmp_path), str(Path.home())) if word in text]
