"""`medclr pretrain --method moco`: from images to a bundle, and what it refuses."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import medclr
from medclr.cli import main
from medclr.training.resume import SafeCheckpointIO, checkpoints

WORDS = ["pretrain", "--data", "scans", "--spec", "cxr", "--key-file", "key", "--out", "run", "--method", "moco"]
WORDS += ["--width", "8", "--workers", "0", "--device", "cpu", "--warmup-epochs", "0", "--lr", "0.02"]


@pytest.fixture
def pretrain(tmp_path, monkeypatch, capsys):
    """Run the command on forty images of a disc, each somewhere else; its exit code, and the lines of both streams."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    axis = np.arange(12)
    images = rng.normal(90, 10, (40, 12, 12))
    for image in images:
        x, y, size = rng.uniform((2, 2, 1), (10, 10, 4))
        image += 120 * (np.hypot(axis[:, None] - x, axis - y) < size)
    Path("scans").mkdir()
    np.savez("scans/discs.npz", train_images=images.clip(0, 255).astype(np.uint8), train_labels=np.zeros(40))

    def run(*words):
        code = main([*WORDS, *words])
        said = capsys.readouterr()
        return code, said.out.splitlines(), said.err.splitlines()

    return run


def test_it_learns_and_the_bundle_says_how(pretrain):
    code, lines, _ = pretrain("--epochs", "5", "--batch-size", "5", "--health-every", "9")
    assert code == 0
    assert "MoCo, ResNet-10 of width 8, on 40 volumes" in lines
    (told,) = (line for line in lines if line.startswith("MoCo: "))
    cut = "cut from 65,536 to whole batches in at most a quarter of the 40 volumes"
    assert told == f"MoCo: momentum 0.99, a queue of 10 keys, {cut}"
    rows = pd.read_csv("run/metrics.csv")
    # Two steps of the first epoch had an emptier queue; each image is a patient of its own, and seldom in the queue.
    assert rows["chance"][0] < rows["chance"][1] <= np.log(11)
    assert rows["chance"][0] == pytest.approx((np.log(6) + 6 * np.log(11)) / 8)
    assert rows["loss"].iloc[-1] < 0.97 * rows["chance"].iloc[-1]
    bundle = medclr.load_encoder("run").bundle
    assert bundle.details["method"] == "moco"
    learned = bundle.details["hyperparameters"]
    assert {name: learned[name] for name in ("method", "queue", "momentum", "temperature")} == {
        "method": "moco",
        "queue": 10,
        "momentum": 0.99,
        "temperature": 0.2,
    }
    # It holds what was learned, and of the momentum encoder nothing.
    state = SafeCheckpointIO().load_checkpoint(checkpoints(Path("run"))[0])["state_dict"]
    for name, weight in bundle.encoder.state_dict().items():
        assert torch.equal(weight, state[f"encoder.{name}"])
    assert not torch.equal(state["momentum_encoder.0.conv1.weight"], state["encoder.conv1.weight"])


def test_too_few_volumes_for_a_queue_are_refused_with_the_fix(pretrain):
    code, _, errors = pretrain("--batch-size", "11")
    assert code == 2
    (line,) = errors
    assert "a queue of a quarter of 40 volumes does not hold a batch of 11; give --batch-size 10 or less" in line
    # The folder is not bound to what was refused.
    assert "does not hold a batch of 12" in pretrain("--batch-size", "12")[2][0]
    assert not Path("run/checkpoints").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--queue", "8", "--batch-size", "9"], "--queue 8: must be at least 9"),
        (["--momentum", "1"], "--momentum 1.0: must be 0 or more, and below 1"),
        (["--momentum", "-0.1"], "--momentum -0.1: must be 0 or more, and below 1"),
        (["--method", "simclr", "--queue", "512"], "--queue 512: only with --method moco"),
        (["--method", "simclr", "--momentum", "0.99"], "--momentum 0.99: only with --method moco"),
    ],
)
def test_settings_that_make_no_sense_are_refused(pretrain, words, message):
    code, _, errors = pretrain(*words)
    assert code == 2
    assert message in errors[0]
    assert not Path("run").exists()
