"""`medclr pretrain` as several processes: one run, one voice, one end."""

import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from medclr.cli import main
from medclr.commands import pretrain as command
from medclr.commands.prepare import stocked
from medclr.data.manifest import read_skipped
from medclr.data.store import Store
from medclr.errors import MedclrError
from medclr.training.ranks import place
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
WORDS = ["pretrain", "--data", "scans", "--spec", "tiny.yaml", "--key-file", "key", "--width", "8", "--norm", "group"]
WORDS += ["--epochs", "2", "--batch-size", "4", "--workers", "0", "--device", "cpu"]
# What follows from the gradient in proportion: AdamW makes a whole step of rounding where a gradient is nearly zero.
WORDS += ["--optimizer", "lars", "--lr", "20", "--clip-norm", "0.5"]

forked = pytest.mark.skipif(torch.cuda.is_available(), reason="what has started GPU threads cannot be forked")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with nine volumes, a file that is none, a spec, a key, and the store."""
    folder = tmp_path_factory.mktemp("ranks")
    rng = np.random.default_rng(0)
    (folder / "scans").mkdir()
    for number in range(9):
        array = rng.normal(9, 2, (8, 8, 8)).astype(np.float32)
        nib.save(nib.Nifti1Image(array, np.eye(4)), folder / "scans" / f"{number}.nii")
    (folder / "scans" / "broken.dcm").write_bytes(b"no image")
    (folder / "tiny.yaml").write_text(SPEC)
    names = {"data": "scans", "spec": "tiny.yaml", "key-file": "key", "store": "runs/store", "out": "prepared"}
    words = [word for name, value in names.items() for word in (f"--{name}", str(folder / value))]
    assert main(["prepare", *words, "--workers", "0"]) == 0
    return folder


@pytest.fixture(autouse=True)
def folder(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path / "ranks")
    monkeypatch.chdir(tmp_path / "ranks")

    def stock(config, run, spec=None, fix=""):
        manifest, spec = stocked(Path("prepared"))
        manifest["manufacturer"] = ["Acme", "Borealis"] * 4 + ["Acme"]
        return manifest, read_skipped(Path("prepared/private/skipped.csv")), spec, Store(Path("runs/store"))

    # To scan and decode takes processes of its own, and seconds for each run.
    monkeypatch.setattr(command, "stock", stock)


def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def task(rank, words, environment):
    """One process of an srun, which writes what it says into a file of its own."""
    os.environ |= environment | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
    with open(f"{rank}.txt", "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    warnings.simplefilter("ignore")  # as the script does
    torch.set_num_threads(1)
    code = main(words(rank) if callable(words) else words)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@pytest.fixture
def srun():
    """Run a command as two tasks of a SLURM step; their exit codes, and what each said."""

    def run(words):
        environment = {
            "SLURM_JOB_ID": "7",
            "SLURM_STEP_ID": "0",
            "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_NTASKS": "2",
            "SLURM_GTIDS": "0,1",
            "SLURM_JOB_NAME": "train",
            "SLURM_STEP_NODELIST": "localhost",
            "MASTER_PORT": port(),
        }
        # Forked, since to import it all again would take longer than all else.
        fork = multiprocessing.get_context("fork")
        tasks = [fork.Process(target=task, args=(rank, words, environment), daemon=True) for rank in range(2)]
        for process in tasks:
            process.start()
        for process in tasks:
            process.join(120)
        return [process.exitcode for process in tasks], [Path(f"{rank}.txt").read_text() for rank in range(2)]

    return run


def is_second():
    return os.environ.get("SLURM_PROCID") == "1"


@pytest.fixture
def in_second_step(monkeypatch):
    """Have something happen in the second process alone, when it has done a step of the first epoch."""

    def arrange(happen):
        step = SimCLR.training_step

        def changed(self, batch, index):
            if is_second() and self.current_epoch == 0 and index == 1:
                happen()
            return step(self, batch, index)

        monkeypatch.setattr(SimCLR, "training_step", changed)

    return arrange


def weights(folder):
    return load_file(Path(folder) / "encoder" / "encoder.safetensors")


def assert_close(one, other):
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-3, atol=1e-5, msg=f"{name} of {other}")
    assert (
        max(tensor.abs().max() for name, tensor in ours.items() if name.endswith("bn1.bias")) > 1e-3
    )  # they begin at 0


@forked
def test_two_processes_train_what_one_would(srun, in_second_step, capfd):
    """Of nine volumes in batches of four; then also where it is stopped and goes on in one process."""
    assert main([*WORDS, "--out", "runs/one"]) == 0
    codes, (first, second) = srun([*WORDS, "--out", "runs/two"])
    assert codes == [0, 0], first + second
    assert "on 9 volumes, by 2 processes" in first
    assert "encoding 2 of 4 volumes at a time on each of 2 devices; the loss and its gradient" in first
    assert second == ""
    one, two = (pd.read_csv(f"runs/{name}/metrics.csv") for name in ("one", "two"))
    assert len(two) == 2
    np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-5)
    assert_close("runs/one", "runs/two")
    assert sorted(os.listdir("runs")) == ["one", "store", "two"]
    assert sorted(os.listdir("runs/two")) == sorted(os.listdir("runs/one"))
    assert len(list(Path("runs/two/tensorboard").glob("events*"))) == 1
    assert srun([*WORDS, "--out", "runs/two"])[0] == [0, 0]

    Path("bin").mkdir()
    Path("bin/scontrol").write_text('#!/bin/sh\necho "$@" >> scontrol.txt\n')
    Path("bin/scontrol").chmod(0o755)
    in_second_step(lambda: os.kill(os.getpid(), signal.SIGUSR1))
    path = os.environ["PATH"]
    os.environ["PATH"] = f"{Path('bin').absolute()}:{path}"
    codes, said = srun([*WORDS, "--out", "runs/parts", "--requeue"])
    os.environ["PATH"] = path
    assert codes == [143, 143]
    assert [path.name for path in checkpoints(Path("runs/parts"))] == ["epoch0000-step000002.ckpt"]
    assert Path("scontrol.txt").read_text() == "requeue 7\n"
    assert "".join(said).count("interrupted; run the same command again to continue") == 1
    assert main([*WORDS, "--out", "runs/parts"]) == 0
    assert "going on after step 2 of epoch 1" in capfd.readouterr().out
    assert_close("runs/one", "runs/parts")


@forked
def test_balanced_batches_and_negatives_by_domain_are_those_of_one_process(srun):
    words = [*WORDS, "--domains", "manufacturer", "--balance", "--negatives", "within"]
    assert main([*words, "--out", "runs/one"]) == 0
    codes, said = srun([*words, "--out", "runs/two"])
    assert codes == [0, 0], said
    assert "domains by manufacturer: Acme 5, Borealis 4; 2 of each in every batch" in said[0]
    one, two = (pd.read_csv(f"runs/{name}/metrics.csv") for name in ("one", "two"))
    np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-5)
    np.testing.assert_allclose(one["chance"], np.log(3), rtol=1e-5)
    assert_close("runs/one", "runs/two")
    codes, said = srun([*words, "--batch-size", "6", "--out", "runs/odd"])
    assert codes == [2, 2]
    assert (
        "a batch of 6 cannot hold equal numbers of 2 domains by manufacturer on 2 processes; give --batch-size 4 or 8"
        in (said[0])
    )


@forked
def test_from_an_encoder_both_processes_go_on(srun):
    assert main([*WORDS, "--out", "runs/first"]) == 0
    words = [*WORDS, "--epochs", "1", "--encoder", "runs/first"]
    assert main([*words, "--out", "runs/one"]) == 0
    codes, said = srun([*words, "--out", "runs/two"])
    assert codes == [0, 0], said
    assert said[0].count("starting from a ResNet-10 of width 8") == 1
    assert said[1] == ""
    assert_close("runs/one", "runs/two")


@forked
def test_moco_too(srun):
    words = [*WORDS, "--method", "moco", "--batch-size", "2", "--epochs", "1"]
    assert main([*words, "--out", "runs/one"]) == 0
    codes, said = srun([*words, "--out", "runs/two"])
    assert codes == [0, 0], said
    one, two = (pd.read_csv(f"runs/{name}/metrics.csv") for name in ("one", "two"))
    np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-5)
    assert_close("runs/one", "runs/two")


def failing():
    raise MedclrError("the second has failed")


@forked
@pytest.mark.parametrize(
    ("happen", "codes", "line"),
    [
        (failing, [1, 1], "medclr: the second has failed"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), [1, -9], "another process of this run has gone without a word"),
    ],
)
def test_where_one_fails_all_end_and_one_says_why(srun, in_second_step, happen, codes, line):
    in_second_step(happen)
    found, said = srun([*WORDS, "--out", "runs/a"])
    assert found == codes, said
    errors = [text for text in "".join(said).splitlines() if text.startswith("medclr: ")]
    assert len(errors) == 1
    assert line in errors[0]


@forked
@pytest.mark.parametrize(
    ("change", "codes", "line"),
    [
        (["--data", "nowhere"], [2, 2], "nowhere"),
        (["--batch-size", "5"], [2, 2], "--batch-size 5: 2 processes cannot share it evenly; give 4 or 6"),
        (["--bach-size", "5"], [2, 2], "unknown flag '--bach-size'"),
        (["--max-skipped", "0"], [3, 3], "more than --max-skipped 0"),
    ],
)
def test_what_the_first_refuses_is_said_once(srun, change, codes, line):
    found, (first, second) = srun([*WORDS, "--epochs", "1", *change])
    assert found == codes, first + second
    assert second == ""
    assert line in first.splitlines()[-1]
    assert first.count("medclr: ") + first.count("medclr pretrain: ") == 1


@forked
def test_processes_with_different_settings_are_refused(srun):
    codes, said = srun(lambda rank: [*WORDS, "--seed", str(rank)])
    assert codes == [2, 2]
    assert "".join(said).count("medclr: process 1 of 2 has other settings than the first") == 1


@forked
def test_told_to_stop_while_the_first_prepares(srun, monkeypatch):
    def stop(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(command, "stock", stop)
    codes, said = srun([*WORDS, "--out", "runs/a"])
    assert codes == [143, 143]
    assert "".join(said).count("medclr: interrupted") == 1


def test_under_torchrun():
    """The real one, with the package's own entry."""
    words = ["--nproc-per-node", "2", "--master-port", port(), "-m", "medclr", *WORDS, "--epochs", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words, "--out", "runs/a"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "on 9 volumes, by 2 processes" in done.stdout
    assert done.stdout.count("epoch 1: loss") == 1
    assert weights("runs/a")


TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
}
BATCH = {"SLURM_JOB_ID": "123456", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
STEP = BATCH | {
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NODELIST": "gpu[07-09,12]",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_GTIDS": "4,5,6,7",
}


@pytest.mark.parametrize(
    ("environment", "rank", "world", "local", "neighbours", "address", "hosts"),
    [
        ({}, 0, 1, 0, 1, ("", 0), False),
        (TORCHRUN, 5, 8, 1, 4, ("node1", 29500), False),
        (STEP, 5, 8, 1, 4, ("gpu07", 18458), False),
        (STEP | {"SLURM_PROCID": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, 0, 8, 1, 4, ("a", 1), True),
        # A batch script that does without srun, and torchrun as the task of an srun.
        (BATCH, 0, 1, 0, 1, ("", 0), False),
        (STEP | TORCHRUN, 5, 8, 1, 4, ("node1", 29500), False),
        (STEP | TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"}, 0, 1, 0, 1, ("", 0), False),
    ],
)
def test_who_a_process_is(environment, rank, world, local, neighbours, address, hosts):
    found = place(environment)
    assert (found.rank, found.world, found.local, found.neighbours) == (rank, world, local, neighbours)
    assert (found.address, found.port) == address
    assert found.hosts == hosts
    assert found.first == (rank == 0)


def test_each_process_has_its_share_of_the_cores():
    """A machine of 32; srun has bound a task to its own 8, or to none."""
    assert place({}).cores(32) == 32
    assert place(TORCHRUN).cores(32) == 8
    assert place(STEP).cores(32) == 8
    bound = place(STEP | {"SLURM_CPUS_PER_TASK": "8"})
    assert (bound.cores(8), bound.cores(32), bound.cores(4)) == (8, 8, 4)
