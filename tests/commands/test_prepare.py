"""`medclr prepare`: shards, Dask, free space, `kill -9`."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from medclr.cli import main, parse
from medclr.commands import prepare as command
from medclr.data import pool
from medclr.data import prepare as module
from medclr.errors import UsageError

SPEC = """
name: tiny
modality: ['']
spatial_dims: 3
normalisation: percentile
sizing: spacing
max_patch: 12
preset: mr
"""


@pytest.fixture
def in_this_process(monkeypatch):
    monkeypatch.setattr(module, "isolated", lambda function, *args, seconds, memory: function(*args))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Sixty tiny volumes of different sizes, a damaged one, and a file that is none."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    Path("scans").mkdir()
    for number in range(60):
        values = rng.integers(1, 900, (6 + number % 7, 9, 8)).astype(np.int16)
        nib.save(nib.Nifti1Image(values, np.diag([1 + number % 3, 1, 1, 1])), f"scans/{number}.nii")
    nib.save(nib.Nifti1Image(np.zeros((9, 9, 9), np.int16), np.eye(4)), "scans/blank.nii")
    Path("scans/notes.txt").write_text("none")
    Path("tiny.yaml").write_text(SPEC)
    return tmp_path


def words(name, *more):
    files = ["--data", "scans", "--spec", "tiny.yaml", "--key-file", "key"]
    return ["prepare", *files, "--out", f"{name}/run", "--workers", "0", *more]


def entries(store):
    return {path.name: path.read_bytes() for path in Path(store).glob("*/*.safetensors")}


def manifest(run):
    return pd.read_parquet(f"{run}/private/manifest.parquet")


def test_shards_fill_the_store_and_a_plain_run_gathers(folder, in_this_process, monkeypatch, capsys):
    assert main(words("plain")) == 0
    said = capsys.readouterr().out
    assert re.search(r"\nstore plain/store: about 0\.\d MiB to write, [\d,.]+ GiB free\n", said)
    keys = set()
    for index in (2, 0, 1):
        flags = ("--shard", f"{index}/3", "--store", "parts/store", "--out", f"parts/run{index}", "--max-skipped", "0")
        assert main(words("parts", *flags)) == 0
        said = capsys.readouterr().out
        assert re.search(rf"\nshard {index}/3: 2[01] of 61 volumes\n", said)
        assert "\nnext, when all 3 shards are done: medclr pretrain --data scans" in said
        part = manifest(f"parts/run{index}")
        assert not keys & set(part["store_key"])
        keys |= set(part["store_key"])
        assert Path(f"parts/run{index}/spec.yaml").read_bytes() == Path("plain/run/spec.yaml").read_bytes()
    assert entries("parts/store") == entries("plain/store")
    assert len(entries("parts/store")) == 60
    monkeypatch.setattr(module, "READERS", dict.fromkeys(module.READERS, lambda root, candidate: 1 // 0))
    Path("scans/blank.nii").unlink()
    assert main(words("parts")) == 0
    pd.testing.assert_frame_equal(manifest("parts/run"), manifest("plain/run"))


def test_a_copy_within_a_study_is_left_out_where_all_is_gathered(folder, in_this_process, capsys):
    rng = np.random.default_rng(1)
    first, second = rng.integers(1, 900, (2, 9, 9, 9)).astype(np.int16)
    nib.save(nib.Nifti1Image(np.stack([second, first, first], axis=3), np.eye(4)), "scans/times.nii")
    nib.save(nib.Nifti1Image(first, np.eye(4)), "scans/another_patient.nii")
    nib.save(nib.Nifti1Image(first, np.diag([2, 2, 2, 1])), "scans/spaced.nii")
    assert main(words("parts", "--shard", "0/1", "--out", "parts/run0")) == 0
    parts = manifest("parts/run0")
    assert len(parts) == 60 + 5
    capsys.readouterr()
    assert main(words("parts")) == 0
    assert "\n1 volume left out: the values of another of the same study\n" in capsys.readouterr().out
    times = parts[parts["source"].str[0] == "times.nii"].set_index("member")["volume_id"]
    copy = max((1, 2), key=lambda member: times[member])
    pd.testing.assert_frame_equal(
        manifest("parts/run").sort_values("volume_id", ignore_index=True),
        parts[parts["volume_id"] != times[copy]].sort_values("volume_id", ignore_index=True),
    )
    skipped = pd.read_csv("parts/run/private/skipped.csv").query("reason == 'DUPLICATE'")
    assert skipped[["item", "part"]].to_numpy().tolist() == [["times.nii", copy]]


def test_a_shard_with_no_volume_is_done_at_once(folder, in_this_process, capsys):
    assert main(words("runs", "--shard", "61/70")) == 0
    assert "\nshard 61/70: 0 of 61 volumes\n" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["8/8", "-1/8", "1", "a/b", "0/0", "1/2/3", "0/2x", ""])
def test_a_shard_that_is_none(wrong, capsys):
    assert main(["prepare", "--data", "d", f"--shard={wrong}"]) == 2
    error = capsys.readouterr().err
    assert f"--shard {wrong}: " in error
    assert "must be i/N with i from 0 to N-1, such as 0/8" in error


def test_shards_and_dask_are_of_prepare_alone():
    assert parse("prepare", ["--data", "d", "--shard", "7/8"]).part == (7, 8)
    for flag in ("--shard", "--scheduler"):
        with pytest.raises(UsageError, match=f"unknown flag '{flag}'"):
            parse("pretrain", ["--data", "d", flag, "0/8"])


def test_a_store_that_does_not_fit_is_refused_before_it_starts(folder, in_this_process, monkeypatch, capsys):
    assert main(words("done")) == 0
    grown = sum(map(len, entries("done/store").values()))
    capsys.readouterr()
    monkeypatch.setattr(command.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=grown // 2))
    assert main(words("full")) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(
        r"medclr: --store full/store: needs about 0\.\d MiB, and 0\.\d MiB are free there; free some, or name a folder "
        r"on a larger disk with --store\n",
        error,
    )
    assert not entries("full/store")
    assert main(words("done")) == 0  # what is there already needs no more


# In one process, so that the kill meets it while it writes.
FORKED = """
import os, sys
import medclr.commands.prepare
from medclr.cli import main
from medclr.data import prepare

prepare.isolated = lambda function, *args, seconds, memory: function(*args)
answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
assert main(sys.stdin.readline().split()) == 0  # imports all that the others need
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os._exit(main(line.split()))
    print(child, file=answers)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers)
"""


def test_killed_at_ten_moments_ends_as_if_it_never_was(folder):
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", FORKED], stdin=pipe, stdout=pipe, text=True) as launcher:
        assert launcher.stdin
        assert launcher.stdout
        print(" ".join(words("plain")), file=launcher.stdin, flush=True)

        def start():
            print(" ".join(words("killed")), file=launcher.stdin, flush=True)
            return int(launcher.stdout.readline())

        codes = []
        for moment in sorted(np.random.default_rng(5).choice(np.arange(1, 60), 10, replace=False)):
            child = start()
            while len(os.listdir("killed/store") if Path("killed/store").exists() else []) < moment * 0.8:
                time.sleep(0.0002)
            os.kill(child, signal.SIGKILL)
            codes.append(int(launcher.stdout.readline()))
        start()
        assert launcher.stdout.readline() == "0\n"
        launcher.stdin.close()
    assert codes == [-signal.SIGKILL] * 10
    assert entries("killed/store") == entries("plain/store")
    pd.testing.assert_frame_equal(manifest("killed/run"), manifest("plain/run"))
    others = [path for path in Path("killed/store").glob("*/*") if path.suffix != ".safetensors"]
    assert all(path.suffix == ".part" for path in others)


COMMAND = "import sys; from medclr.cli import main; sys.exit(main())"


def test_a_parent_killed_alone_leaves_nothing_behind(folder, in_this_process):
    """As the out-of-memory killer does it; its processes end by themselves."""
    assert main(words("plain")) == 0
    argv = [sys.executable, "-c", COMMAND, *words("killed", "--workers", "2")]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, start_new_session=True) as running:
        while len(entries("killed/store")) < 5:
            assert running.poll() is None
            time.sleep(0.01)
        running.kill()
    for _ in range(200):
        if not session(running.pid):
            break
        time.sleep(0.05)
    assert not session(running.pid)
    assert 5 <= len(entries("killed/store")) < 60
    assert not list(Path("killed/store").glob("*/.*"))
    assert main(words("killed")) == 0
    assert entries("killed/store") == entries("plain/store")
    pd.testing.assert_frame_equal(manifest("killed/run"), manifest("plain/run"))


def session(leader):
    """The processes that a session leader started and that still run."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(status.parent.name)
    return found


SLOW = """
import time
from medclr.data import nifti

def read(root, candidate):
    time.sleep(0.1)
    return nifti.read(root, candidate)
"""


def test_dask_with_a_worker_killed_equals_a_plain_run(folder, in_this_process, monkeypatch, capsys):
    distributed = pytest.importorskip("distributed")
    assert main(words("plain")) == 0
    (folder / "slow_reader.py").write_text(SLOW)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, sys.path)))  # Dask's workers import it, too
    import slow_reader

    monkeypatch.setitem(module.READERS, "nifti", slow_reader.read)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        (victim, _) = [nanny.process.process.pid for nanny in cluster.workers.values()]

        def kill():
            while len(entries("dask/store")) < 8:
                time.sleep(0.01)
            os.kill(victim, signal.SIGKILL)

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        assert main(words("dask", "--scheduler", cluster.scheduler_address)) == 0
        killer.join()
    assert entries("dask/store") == entries("plain/store")
    pd.testing.assert_frame_equal(manifest("dask/run"), manifest("plain/run"))
    for file in Path("dask/run").glob("*.*"):
        assert b"tcp://" not in file.read_bytes()  # where a scheduler runs is nobody's business


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense:x", "tcp://no.such.host.invalid:8786"])
def test_a_scheduler_that_does_not_answer_is_one_line(address, folder, monkeypatch, capsys):
    monkeypatch.setattr(pool, "_CONNECT_S", 0.5)
    assert main(words("dask", "--scheduler", address)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"medclr: --scheduler {address}: no Dask scheduler answers there; start one with")
    assert error.count("\n") == 1
    assert not Path("dask").exists()


def test_dask_that_is_missing_is_named_with_what_brings_it(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(words("dask", "--scheduler", "tcp://127.0.0.1:9")) == 2
    assert capsys.readouterr().err == "medclr: --scheduler: Dask is not installed; pip install medclr[dask]\n"


def test_a_wrong_name_leaves_no_run_that_remembers_it(folder, in_this_process, capsys):
    for name in ("prepare", "pretrain"):
        assert main([name, "--data", "scans", "--key-file", "key", "--out", "runs/a", "--spec", "tiyn.yaml"]) == 2
        assert main([name, "--data", "scan", "--key-file", "key", "--out", "runs/a"]) == 2
    assert main(["scan", "--data", "scan", "--key-file", "key", "--out", "runs/a"]) == 2
    assert capsys.readouterr().err.count("\n") == 5
    assert not Path("runs").exists()
