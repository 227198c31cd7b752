"""A run stopped anywhere, and gone on with, is the run that was not stopped: to the bit, rows included."""

import math
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from medclr.config import PretrainConfig
from medclr.data.loader import Blocks
from medclr.errors import Interrupted, MedclrError
from medclr.training import start as module
from medclr.training.checkpoints import STOPPING
from medclr.training.resume import SafeCheckpointIO, checkpoints, newest_checkpoint, position
from medclr.training.simclr import SimCLR
from medclr.training.trainer import pretrain_encoder
from medclr.transforms.presets import build_views

# torch says so where a machine has fewer cores than the two workers that these tests need.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

STEPS, EPOCHS = 3, 2


class Killed(Exception):
    """Stands for kill -9: nothing gets a chance to save."""


def small(shape):
    """A network in place of the ResNet; it keeps statistics, and takes random numbers."""
    return nn.Sequential(nn.Flatten(), nn.Linear(144, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2))


@pytest.fixture(scope="module")
def whole():
    """What a run in one go ends with: weights and rows."""
    return {}


@pytest.fixture
def train(families, tmp_path, monkeypatch, whole):
    """Three steps of four volumes, two epochs; the health check takes random numbers too.

    `act` is called with the number of steps taken when a loss is about to be computed, and -1 in the health check.
    """
    views = build_views("xray", 2)
    monkeypatch.setattr(module, "build_encoder", small)
    step = SimCLR.training_step

    def run(name, act=lambda steps: None, rows=None, **settings):
        rows = [] if rows is None else rows

        def health(encoder):
            drawn = float(torch.rand(()))
            act(-1)
            return {"rankme": drawn}

        def training_step(self, *args):
            act(self.trainer.global_step)
            return step(self, *args)

        monkeypatch.setattr(SimCLR, "training_step", training_step)
        config = PretrainConfig(
            **{"data": tmp_path, "width": 8, "epochs": EPOCHS, "batch_size": 4, "device": "cpu", "workers": 0}
            | settings
        )
        blocks = Blocks(families.rows, families.store, families.spec, views, 2, config.seed)
        folder = tmp_path / name
        trained, _ = pretrain_encoder(
            config, families.spec, views, blocks, folder, 1, health, rows.append, newest_checkpoint(folder, print)
        )
        return {name: value.clone() for name, value in trained.state_dict().items()}, rows

    run.folder = tmp_path
    if not whole:
        whole["weights"], whole["rows"] = run("whole")
    return run


def at(wanted, do):
    """Call `do` the first time that `wanted` comes."""
    left = [wanted]

    def act(steps):
        if steps in left:
            left.remove(steps)
            do()

    return act


def kill():
    raise Killed


def assert_same(parts, whole, first_row=0):
    weights, rows = parts
    assert weights.keys() == whole["weights"].keys()
    assert [name for name in weights if not torch.equal(weights[name], whole["weights"][name])] == []
    assert rows == whole["rows"][first_row:]


def test_killed_after_every_single_step(train, whole):
    """Each run gets one step further; the rows are over whole epochs all the same."""
    rows = []
    for steps in range(1, STEPS * EPOCHS):
        with pytest.raises(Killed):
            train("parts", at(steps, kill), rows, checkpoint_minutes=0)
        assert len(rows) == steps // STEPS
        torch.manual_seed(99)
    assert_same(train("parts", rows=rows, checkpoint_minutes=0), whole)


def test_killed_with_loader_processes(train, whole):
    rows = []
    with pytest.raises(Killed):
        train("parts", at(4, kill), rows, checkpoint_minutes=0, workers=2)
    assert_same(train("parts", rows=rows, workers=2), whole)


@pytest.mark.parametrize("steps", [2, 4, -1])
def test_killed_between_checkpoints(train, steps, whole):
    """By default the last state is that of the epoch before."""
    with pytest.raises(Killed):
        train("parts", at(steps, kill))
    done = max(0, steps // STEPS)
    assert [position(path) for path in checkpoints(train.folder / "parts")] == [(e, 0) for e in range(done, 0, -1)]
    assert_same(train("parts"), whole, done)


def test_a_signal_saves_at_the_end_of_the_step(train, whole):
    """Also in the last step of an epoch, and while the epoch is measured, which is then done again."""
    before = [signal.getsignal(each) for each in STOPPING]
    rows = []
    for steps, signum, saved in [
        (0, signal.SIGTERM, (0, 1)),
        (2, signal.SIGUSR1, (0, 3)),
        (-1, signal.SIGINT, (0, 3)),
        (3, signal.SIGINT, (1, 1)),
        (-1, signal.SIGTERM, (1, 3)),
    ]:
        with pytest.raises(Interrupted) as stop:
            train("parts", at(steps, lambda signum=signum: os.kill(os.getpid(), signum)), rows)
        assert (stop.value.signum, stop.value.exit_code) == (signum, 130 if signum == signal.SIGINT else 143)
        assert [signal.getsignal(each) for each in STOPPING] == before
        assert position(checkpoints(train.folder / "parts")[0]) == saved
        assert len(rows) == saved[0]
    assert_same(train("parts", rows=rows), whole)


def test_ctrl_c_twice_does_not_wait_for_the_step(train):
    after = []

    def impatient():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        after.append(1)

    with pytest.raises(Interrupted):
        train("parts", at(1, impatient))
    assert after == []
    assert checkpoints(train.folder / "parts") == []


def test_lightning_does_not_requeue_under_slurm(train, whole, monkeypatch, tmp_path):
    """It would save within the step, where it cannot be gone on from, and ask for the job a second time."""
    calls = tmp_path / "calls"
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho $@ >> {calls}\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    slurm = {"JOB_ID": 7, "JOB_NAME": "train", "NTASKS": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0, "NNODES": 1}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.chdir(tmp_path)
    Path("hpc_ckpt_1.ckpt").write_text("of another program, and Lightning would take it up")
    rows = []
    with pytest.raises(Interrupted):
        train("parts", at(1, lambda: os.kill(os.getpid(), signal.SIGUSR1)), rows)
    assert not calls.exists()
    assert {path.name for path in (tmp_path / "parts").iterdir()} == {"checkpoints", "tensorboard"}
    assert [position(path) for path in checkpoints(tmp_path / "parts")] == [(0, 2)]
    assert_same(train("parts", rows=rows), whole)


def test_a_signal_between_two_steps_is_not_lightnings(train, monkeypatch, whole):
    """Its own handler would end the process there, with exit code 0 and nothing saved."""
    end = at(0, lambda: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(SimCLR, "on_train_batch_end", lambda self, outputs, batch, index: end(index), raising=False)
    rows = []
    with pytest.raises(Interrupted):
        train("parts", rows=rows)
    assert position(checkpoints(train.folder / "parts")[0]) == (0, 2)
    assert_same(train("parts", rows=rows), whole)


def test_sigterm_twice_still_saves(train):
    """A launcher that hands the signal on, to a process whose group got it too."""
    with pytest.raises(Interrupted):
        train("parts", at(1, lambda: [os.kill(os.getpid(), signal.SIGTERM) for _ in range(3)]))
    assert position(checkpoints(train.folder / "parts")[0]) == (0, 2)


def test_a_kill_costs_so_many_minutes_at_most(train, monkeypatch):
    """On a clock that a step moves by four minutes, and the health check too."""
    clock = [0.0]
    monkeypatch.setattr("medclr.training.checkpoints.time.monotonic", lambda: clock[0])
    saved = []
    save = SafeCheckpointIO.save_checkpoint

    def noted(self, state, path, **_):
        saved.append(position(path))
        save(self, state, path)

    monkeypatch.setattr(SafeCheckpointIO, "save_checkpoint", noted)

    def act(steps):
        clock[0] += 240

    train("a", act, epochs=3, checkpoint_minutes=10, batch_size=2)
    whole_epochs = [(1, 0), (2, 0), (3, 0)]
    assert saved == sorted([*whole_epochs, *((epoch, step) for epoch in range(3) for step in (3, 6))])
    assert len(checkpoints(train.folder / "a")) == 2
    saved.clear()
    train("b", act, epochs=1, checkpoint_minutes=1e6, batch_size=2)
    assert saved == [(1, 0)]


@pytest.mark.parametrize("part", ["weights", "optimiser"])
def test_a_spoilt_state_is_not_kept_in_mid_epoch_either(train, part):
    """The gradient of a sound loss can spoil either, here in the second step."""
    steps = []

    def spoil(optimizer, *_):
        steps.append(1)
        if len(steps) == 2:
            weight = optimizer.param_groups[0]["params"][0]
            tensor = weight.data if part == "weights" else optimizer.state[weight]["exp_avg"]
            tensor.flatten()[0] = math.inf

    hook = register_optimizer_step_post_hook(spoil)
    with pytest.raises(MedclrError, match="weights are not finite after step 2 of epoch 1"):
        train("run", checkpoint_minutes=0)
    hook.remove()
    assert [position(path) for path in checkpoints(train.folder / "run")] == [(0, 1)]


def test_a_full_disk_in_mid_epoch_stops_with_the_state_before_it(train, monkeypatch, whole):
    save = torch.save

    def full(state, file):
        if state["medclr"]["step"] == 2:
            file.write(b"some")
            raise OSError(28, "No space left on device")
        save(state, file)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(MedclrError, match=r"cannot write the checkpoint .*No space left on device; free some space"):
        train("parts", checkpoint_minutes=0)
    monkeypatch.setattr(torch, "save", save)
    assert [path.name for path in (train.folder / "parts" / "checkpoints").iterdir()] == ["epoch0000-step000001.ckpt"]
    assert_same(train("parts"), whole)


def test_a_checkpoint_holds_plain_types_and_no_more_than_two_are_kept(train):
    train("run", checkpoint_minutes=0)
    found = checkpoints(train.folder / "run")
    assert [position(path) for path in found] == [(2, 0), (1, 3)]
    state = SafeCheckpointIO().load_checkpoint(found[1])["medclr"]
    assert (state["epoch"], state["step"], set(state["sums"])) == (1, 3, {"loss", "chance"})


def test_a_damaged_newest_falls_back_to_the_one_before(train, whole):
    """And ends with the same weights, and again with two checkpoints that are whole."""
    with pytest.raises(Killed):
        train("parts", at(5, kill), checkpoint_minutes=0)
    newest, before = checkpoints(train.folder / "parts")
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    said = []
    assert newest_checkpoint(train.folder / "parts", said.append) == before
    assert said == [
        "warning: checkpoint epoch0001-step000002.ckpt is damaged (put aside as epoch0001-step000002.ckpt.damaged); "
        "taking epoch0001-step000001.ckpt"
    ]
    assert_same(train("parts", checkpoint_minutes=0), whole, 1)
    assert [position(path) for path in checkpoints(train.folder / "parts")] == [(2, 0), (1, 3)]
