"""A stopped `medclr pretrain` and what happened to it since: what it goes on from, what it refuses, what it says."""

import os
import signal
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medclr.cli import main
from medclr.commands import pretrain as command
from medclr.data.store import Store
from medclr.errors import Interrupted
from medclr.training.resume import checkpoints
from medclr.training.simclr import SimCLR

SPEC = """
name: tiny
modality: ['']
spatial_dims: 3
normalisation: percentile
sizing: spacing
max_patch: 8
preset: mr
"""
WORDS = ["pretrain", "--data", "scans", "--spec", "tiny.yaml", "--key-file", "key", "--width", "4", "--epochs", "2"]
WORDS += ["--batch-size", "4", "--workers", "0", "--device", "cpu", "--out", "runs/a", "--checkpoint-minutes", "0"]


@pytest.fixture
def said(capsys):
    """Run a command; its exit code and all it wrote."""

    def run(*words):
        capsys.readouterr()
        code = main(list(words))
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A run of two epochs of two steps that got SIGTERM in its second step."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    Path("scans").mkdir()
    for number in range(8):
        nib.save(nib.Nifti1Image(rng.normal(9, 2, (8, 8, 8)).astype(np.float32), np.eye(4)), f"scans/{number}.nii")
    Path("tiny.yaml").write_text(SPEC)
    step = SimCLR.training_step

    def stopping(self, batch, index):
        if index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, index)

    monkeypatch.setattr(SimCLR, "training_step", stopping)
    assert main(WORDS) == 143
    monkeypatch.setattr(SimCLR, "training_step", step)
    return [path.name for path in checkpoints(Path("runs/a"))]


def contents(folder):
    return {path: path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def test_a_changed_run_is_refused_and_keeps_what_it_had(stopped, said):
    assert stopped == ["epoch0000-step000002.ckpt", "epoch0000-step000001.ckpt"]
    before = contents("runs/a")
    code, text = said(*WORDS, "--temperature", "0.2", "--batch-size", "3")
    assert code == 2
    assert "holds a run with batch_size 4, not 3; temperature unset, not 0.2. To go on, use another --out" in text
    scan = Path("scans/3.nii").read_bytes()
    for change in (lambda: Path("scans/3.nii").write_bytes(scan + b"more"), Path("scans/3.nii").unlink):
        change()
        code, text = said(*WORDS)
        assert code == 2
        assert "have changed since this run began; use another --out" in text
    assert contents("runs/a") == before
    Path("scans/3.nii").write_bytes(scan)
    code, text = said(*WORDS)
    assert code == 0
    assert "on 8 volumes, going on after step 2 of epoch 1" in text


def test_damaged_checkpoints_and_entries_are_told_and_mended(stopped, said):
    """A NaN in the store is damage too: the entry is prepared again."""
    newest, before = (Path("runs/a/checkpoints") / name for name in stopped)
    newest.write_bytes(newest.read_bytes()[:-1])
    whole = before.read_bytes()
    before.write_bytes(b"")
    code, text = said(*WORDS)
    assert code == 1
    assert f"{stopped[0]} and {stopped[1]} damaged, and no other there; restore one from a copy, or delete them" in text
    before.write_bytes(whole)
    entry = next(Path("runs/store").rglob("*.safetensors"))
    store, key = Store(Path("runs/store")), entry.stem
    facts = store.facts(key)
    store.write(key, np.full((1, 8, 8, 8), np.nan, np.float32), facts)
    code, text = said(*WORDS)
    assert code == 0
    assert "1 volume missing or damaged" in text
    assert "prepared again: 1 volume" in text
    assert f"warning: checkpoint {stopped[0]} is damaged (put aside as {stopped[0]}.damaged); taking " in text
    assert "going on after step 1 of epoch 1" in text


def test_requeue_needs_slurm_and_a_folder(said, tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    code, text = said("pretrain", "--data", str(tmp_path), "--requeue")
    assert code == 2
    assert "--requeue: needs --out" in text
    code, text = said("pretrain", "--data", str(tmp_path), "--out", str(tmp_path / "run"), "--requeue")
    assert code == 2
    assert "SLURM_JOB_ID is not set" in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize(
    ("script", "told"),
    [
        (None, "warning: scontrol requeue 7 failed (FileNotFoundError); submit"),
        ("exit 1", "warning: scontrol requeue 7 failed (CalledProcessError); submit"),
        ("", "asked SLURM to queue job 7 again"),
    ],
)
def test_only_sigusr1_requeues_and_a_failure_is_told(said, tmp_path, monkeypatch, signum, script, told):
    """Also before training has begun."""
    if script is not None:
        (tmp_path / "scontrol").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)

    def interrupted(config):
        raise Interrupted(signum)

    monkeypatch.setattr(command, "check_inputs", interrupted)
    code, text = said("pretrain", "--data", str(tmp_path), "--out", str(tmp_path / "run"), "--requeue")
    assert code == 143
    assert (told in text) == (signum == signal.SIGUSR1)
    assert ("scontrol" in text or "SLURM" in text) == (signum == signal.SIGUSR1)
