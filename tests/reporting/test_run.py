import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from medclr.config import EfficiencyConfig, PretrainConfig, ScanConfig
from medclr.errors import MedclrError, UsageError
from medclr.reporting import run as module
from medclr.reporting.run import Run, command_line, read_paths, read_record, write_atomic

CONFIG = EfficiencyConfig(labels=Path("labels.csv"), draws=7)


def opened(out: Path, config: object = CONFIG, command: str = "efficiency") -> Run:
    return Run.open(command, config, out)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def one_line(error: pytest.ExceptionInfo[MedclrError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_new_run_keeps_paths_and_modes_private(tmp_path: Path) -> None:
    config = replace(CONFIG, labels=tmp_path / "CANARY^NAME.csv")
    run = opened(tmp_path / "a" / "run", config)
    run.write_json("report.json", {"x": 1})
    run.write_text("private/skipped.csv", "item\n")
    run.finish({"auroc": 0.5})
    assert not run.resumed
    assert (run.private.stat().st_mode & 0o777, (run.private / "skipped.csv").stat().st_mode & 0o777) == (0o700, 0o600)
    assert read_paths(run.folder)["labels"] == config.labels
    assert yaml.safe_load((run.folder / "config.yaml").read_text())["draws"] == 7
    shared = {name: data for name, data in everything(run.folder).items() if not name.startswith("private/")}
    assert set(shared) == {"config.yaml", "run.json", "report.json"}
    for word in ("CANARY", str(tmp_path), os.uname().nodename, str(Path.home())):
        assert not any(word.encode() in data for data in shared.values())


def test_a_run_may_log_elsewhere_and_never_says_where(tmp_path: Path) -> None:
    plain = PretrainConfig(data=tmp_path)
    tracked = replace(plain, logger="mlflow", tracking_uri="http://CANARY:5000")
    run = opened(tmp_path / "run", tracked, "pretrain")
    assert run.command_line == "medclr pretrain --data DATA"
    assert not [name for name, data in everything(run.folder).items() if b"CANARY" in data]
    os.close(run._lock)
    assert opened(tmp_path / "run", plain, "pretrain").resumed


def test_config_yaml_gives_the_settings_back(tmp_path: Path) -> None:
    stored = yaml.safe_load((opened(tmp_path / "run").folder / "config.yaml").read_text())
    assert EfficiencyConfig(labels=CONFIG.labels, **stored) == CONFIG


def test_without_out_each_run_is_fresh_and_under_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = Run.open("scan", ScanConfig(Path("d")), None), Run.open("scan", ScanConfig(Path("d")), None)
    assert first.folder != second.folder
    assert first.folder.parent == second.folder.parent == Path("runs")
    assert not second.resumed


def test_the_same_configuration_resumes_and_finds_what_was_done(tmp_path: Path) -> None:
    first = opened(tmp_path / "run")
    assert (first.complete, first.outcome) == (False, {})
    unfinished = opened(tmp_path / "run")
    assert unfinished.resumed
    assert not unfinished.complete
    unfinished.finish({"auroc": np.float64(0.75), "interval": (0.5, math_nan := float("nan"))})
    assert math_nan != unfinished.outcome["interval"][1]  # JSON has no NaN
    before = everything(tmp_path / "run")
    again = opened(tmp_path / "run")
    assert (again.resumed, again.complete, again.outcome) == (True, True, {"auroc": 0.75, "interval": [0.5, None]})
    assert everything(tmp_path / "run") == before


def test_a_run_keeps_when_it_started(tmp_path: Path) -> None:
    started = read_record(opened(tmp_path / "run").folder)["started"]
    run = opened(tmp_path / "run")
    run.finish({})
    record = read_record(run.folder)
    assert record["started"] == started < record["finished"]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (replace(CONFIG, draws=5), ["draws 7, not 5"]),
        (replace(CONFIG, seed=3, lr=0.5), ["seed 0, not 3; lr 0.001, not 0.5", "old settings"]),
        (replace(CONFIG, label=["lesion"]), ['label [], not ["lesion"]']),
        (replace(CONFIG, arms=["pca"]), ["arms", 'not ["pca"]']),
    ],
)
def test_another_configuration_is_refused_by_all_that_differs(
    tmp_path: Path, other: EfficiencyConfig, words: list[str]
) -> None:
    run = opened(tmp_path / "run")
    folder = run.write_text("curve.csv", "").parent
    before = everything(folder)
    with pytest.raises(UsageError) as error:
        opened(folder, other)
    assert all(word in one_line(error) for word in [*words, "another --out"])
    assert everything(folder) == before


def test_a_run_that_was_refused_may_be_begun_otherwise(tmp_path: Path) -> None:
    """Nothing was computed yet: the setting or the table that the refusal asked to mend is no other run's."""
    first = opened(tmp_path / "run")
    first.pin({"labels": "a"})
    first.write_text("private/unmatched.csv", "")
    del first
    again = opened(tmp_path / "run", replace(CONFIG, transductive=True))
    assert not again.resumed
    assert "transductive: true" in (again.folder / "config.yaml").read_text()
    again.pin({"labels": "b"})
    again.pin({"labels": "c"})
    again.write_text("private/features.npy", "")
    with pytest.raises(UsageError, match="have changed since"):
        again.pin({"labels": "d"})
    with pytest.raises(UsageError, match="transductive true, not false"):
        opened(tmp_path / "run")


def test_another_path_is_refused_without_telling_either(tmp_path: Path) -> None:
    opened(tmp_path / "run", replace(CONFIG, labels=Path("OLD.csv"))).write_text("curve.csv", "")
    with pytest.raises(UsageError, match="another --labels") as error:
        opened(tmp_path / "run", replace(CONFIG, labels=Path("NEW.csv")))
    assert "OLD" not in one_line(error)
    assert "NEW" not in one_line(error)


def test_spelling_of_a_path_workers_and_out_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    opened(Path("run"), replace(CONFIG, workers=1))
    out = tmp_path / "run"
    assert opened(out, replace(CONFIG, workers=2, out=out, labels=tmp_path / "x" / ".." / "labels.csv")).resumed


@settings(max_examples=30, deadline=None)
@example(lr=1.0, label="\x85")  # a line break to YAML, where it stands as it is
@example(lr=1.0, label="Ödem 肺")
@given(lr=st.floats(1e-12, 1e6), label=st.none() | st.text(max_size=8).filter(lambda t: "\x00" not in t))
def test_any_setting_survives_its_yaml(lr: float, label: str | None, tmp_path_factory: pytest.TempPathFactory) -> None:
    config = replace(CONFIG, lr=lr, label=label)
    out = tmp_path_factory.mktemp("run")
    with mock.patch.object(os, "fsync"):  # slow, and beside the point
        assert not opened(out, config).resumed
        assert opened(out, config).resumed


def test_another_command_in_the_folder_is_refused(tmp_path: Path) -> None:
    opened(tmp_path / "run")
    with pytest.raises(UsageError, match="holds a run of `medclr efficiency`"):
        opened(tmp_path / "run", ScanConfig(Path("d")), "scan")


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="not empty, and not a run of medclr"):
        opened(tmp_path)
    assert everything(tmp_path) == {"thesis.tex": b"x"}


def test_a_run_killed_while_it_was_made_starts_over(tmp_path: Path) -> None:
    folder = opened(tmp_path / "run").folder
    (folder / "run.json").unlink()
    (folder / ".run.json.partial").write_text("{")
    assert not opened(folder, replace(CONFIG, draws=5)).resumed
    assert not (folder / ".run.json.partial").exists()


def test_a_shared_run_without_private_can_be_taken_up(tmp_path: Path) -> None:
    folder = opened(tmp_path / "run").folder
    shutil.rmtree(folder / "private")
    assert read_paths(folder) == {}
    assert opened(folder).resumed


@pytest.mark.parametrize("text", ["{", "[]", "{}", "\x00"])
def test_a_damaged_record_is_one_line(tmp_path: Path, text: str) -> None:
    folder = opened(tmp_path / "run").folder
    (folder / "run.json").write_text(text)
    with pytest.raises(MedclrError, match=r"run\.json") as error:
        opened(folder)
    one_line(error)
    assert Run.newest("efficiency", tmp_path) is None


@pytest.mark.parametrize("text", ["- 1", "a: [", "!!python/object:os.system {}", None])
def test_a_damaged_or_missing_config_is_one_line(tmp_path: Path, text: str | None) -> None:
    folder = opened(tmp_path / "run").folder
    (folder / "config.yaml").unlink()
    if text is not None:
        (folder / "config.yaml").write_text(text)
    with pytest.raises(MedclrError, match=r"config\.yaml") as error:
        opened(folder)
    one_line(error)


def test_newest_is_the_last_complete_run_of_that_command(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    assert Run.newest("efficiency", root) is None
    for name in ("b", "a"):  # by time, not by name
        opened(root / name).finish({})
    opened(root / "c")
    opened(root / "d", ScanConfig(Path("d")), "scan").finish({})
    assert Run.newest("efficiency", root) == root / "a"
    assert Run.newest("scan", root) == root / "d"


def test_json_takes_numpy_and_never_writes_nan(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    path = run.write_json("x.json", {"a": np.arange(2), "b": [np.float32("nan"), np.inf], "c": np.int64(3), 4: "é"})
    assert json.loads(path.read_text()) == {"a": [0, 1], "b": [None, None], "c": 3, "4": "é"}
    with pytest.raises(TypeError):
        run.write_json("x.json", {"path": tmp_path})  # a path is no result


def test_no_text_of_a_csv_is_a_formula(tmp_path: Path) -> None:
    bad = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1"]
    frame = pd.DataFrame({"=head": bad, "number": np.arange(-4.0, 4.0), "kind": pd.Categorical(bad)})
    text = opened(tmp_path / "run").write_frame("t.csv", frame).read_bytes().decode()
    back = pd.read_csv(StringIO(text), lineterminator="\n")
    assert list(back.columns) == ["'=head", "number", "kind"]
    assert (back["number"] == frame["number"]).all()
    for name in ("'=head", "kind"):
        assert all(cell.startswith("'") for cell in back[name])
    assert list(frame["=head"]) == bad  # the caller's own is as it was


def test_empty_and_plain_tables_are_as_pandas_writes_them(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    frame = pd.DataFrame({"a": ["x", None, "a,b"], "b": [0.1, np.nan, -3.0]})
    assert run.write_frame("t.csv", frame).read_text() == frame.to_csv(index=False)
    assert run.write_frame("e.csv", frame.iloc[:0]).read_text() == "a,b\n"


def test_parquet_comes_back(tmp_path: Path) -> None:
    frame = pd.DataFrame({"source": [["a", "b"], []], "x": [1.5, np.nan]})
    back = pd.read_parquet(opened(tmp_path / "run").write_frame("private/manifest.parquet", frame))
    assert [list(cell) for cell in back["source"]] == [["a", "b"], []]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    run = opened(tmp_path / "run")
    run.write_text("a.txt", "old")

    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), full)
        with pytest.raises(MedclrError, match="no space left on the device of") as error:
            run.write_text("a.txt", "new")
    assert one_line(error).endswith(f"{run.folder}; free some or use another --out")
    assert (run.folder / "a.txt").read_text() == "old"
    assert not list(run.folder.glob(".*"))


def test_a_really_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no permission to mount")
    try:
        run = opened(disk / "run")
        run.write_bytes("a.bin", b"a" * 50_000)
        with pytest.raises(MedclrError, match="no space left on the device"):
            run.write_bytes("a.bin", b"b" * 100_000)
        assert (run.folder / "a.bin").read_bytes() == b"a" * 50_000
        run.write_text("small.txt", "still room once the partial file is gone")
        with pytest.raises(OSError, match="No space"):
            (disk / "filler").write_bytes(b"f" * 100_000)
        with pytest.raises(MedclrError, match="no space left on the device"):
            opened(disk / "other")
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)  # the locks are held to the end


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(MedclrError, match="a file stands where a folder is needed") as error:
            opened(out)
        one_line(error)


@pytest.mark.parametrize(
    ("code", "words"), [(errno.EACCES, "no permission"), (errno.EROFS, "read-only"), (errno.EIO, "cannot write")]
)
def test_no_permission_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code), "secret")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(MedclrError, match=words) as error:
        opened(tmp_path / "run")
    assert str(tmp_path / "run") in one_line(error)


def test_a_failed_write_takes_its_partial_file_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "a", b"x")
    assert not list(tmp_path.iterdir())


HOLDER = """
import os, sys, time
from pathlib import Path
from medclr.config import ScanConfig
from medclr.reporting.run import Run
run = Run.open("scan", ScanConfig(Path("d")), Path(sys.argv[1]))
child = os.fork()
if child == 0:
    time.sleep(60)  # a worker that outlives its parent
    os._exit(0)
print(child, flush=True)
time.sleep(60)
"""


def test_two_processes_do_not_write_one_run_and_a_killed_one_frees_it(tmp_path: Path) -> None:
    out, config = tmp_path / "run", ScanConfig(Path("d"))
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(out)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    worker = int(holder.stdout.readline())
    try:
        with pytest.raises(UsageError, match="another medclr is writing this run"):
            Run.open("scan", config, out)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        os.kill(worker, 0)  # it lives, and does not hold the run
        (out / "manifest.parquet").touch()
        with pytest.raises(UsageError, match="holds a run with another --data"):  # relative to another folder
            Run.open("scan", ScanConfig(Path("e")), out)
        assert Run.open("scan", config, out).resumed
    finally:
        holder.kill()
        os.kill(worker, signal.SIGKILL)
        holder.stdout.close()
        holder.wait()


def test_a_file_system_without_locks_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOSYS, "no locks")

    monkeypatch.setattr(module.fcntl, "lockf", unsupported)
    assert not opened(tmp_path / "run").resumed


def test_the_command_line_shows_what_is_not_default_and_no_path() -> None:
    config = replace(CONFIG, label=["it's"], fractions=[0.5], transductive=True, out=Path("o"), workers=1)
    text = command_line("efficiency", config)
    assert text == (
        "medclr efficiency --label 'it'\"'\"'s' --transductive true --labels LABELS --fractions 0.5 --draws 7"
    )


@dataclass(frozen=True)
class Odd:
    spec: Path | None = None
    names: list[str] = field(default_factory=list)


def test_the_name_of_a_shipped_spec_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(tmp_path / "run", Odd(Path("ct")))
    monkeypatch.chdir(tmp_path)
    assert opened(tmp_path / "run", Odd(Path("ct"))).resumed


def test_the_record_names_versions_and_hardware(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    run.finish({})
    record = read_record(run.folder)
    assert record["versions"]["numpy"] == np.__version__
    assert record["hardware"]["cores"] == os.cpu_count()
    assert set(record["hardware"]) <= {"system", "machine", "cores", "gpu", "gpus"}


def test_the_commit_is_that_of_a_checkout_and_of_no_other_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "repository" / "medclr"
    (package / "reporting").mkdir(parents=True)
    (package / "errors.py").write_text("x = 1\n")
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)

    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        words = ("git", *who, *words)
        return subprocess.run(words, cwd=package, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    git("commit", "--allow-empty", "-m", "of someone else")
    monkeypatch.setattr(module, "__file__", str(package / "reporting" / "run.py"))
    assert module._git() is None  # installed inside it, and no part of it
    git("add", ".")
    git("commit", "-m", "medclr")
    head = git("rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(tmp_path))  # as in a hook
    assert module._git() == {"commit": head, "dirty": False}
    (package / "errors.py").write_text("x = 2\n")
    assert module._git() == {"commit": head, "dirty": True}


def test_a_run_is_pinned_to_what_it_works_on(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    run.pin({"volumes": "a"})
    run.pin({"volumes": "a"})
    run.write_text("curve.csv", "")
    with pytest.raises(UsageError, match="have changed"):
        run.pin({"volumes": "b"})


def test_frames_become_row_groups_of_one_table_or_nothing(tmp_path):
    run = opened(tmp_path / "run")
    frames = [pd.DataFrame({"id": list("ab"), "f0": [1.0, 2.0]}), pd.DataFrame({"id": ["c"], "f0": [3.0]})]
    path = run.write_frames("t.parquet", iter(frames))
    pd.testing.assert_frame_equal(pd.read_parquet(path), pd.concat(frames, ignore_index=True))
    assert pq.ParquetFile(path).num_row_groups == 2

    def broken():
        yield frames[1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.write_frames("t.parquet", broken())
    with pytest.raises(KeyboardInterrupt):
        run.write_frames("u.parquet", broken())
    assert len(pd.read_parquet(path)) == 3
    assert [p.name for p in run.folder.iterdir() if "parquet" in p.name] == ["t.parquet"]


def test_what_a_run_found_is_there_for_those_that_go_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = opened(tmp_path / "run")
    assert read_paths(run.folder)["key_file"] is None
    run.found(key_file=Path("key"), data=None)
    paths = read_paths(run.folder)
    assert paths["key_file"] == tmp_path / "key"
    assert paths["data"] is None
    assert paths["labels"] == tmp_path / "labels.csv"
    assert opened(tmp_path / "run").resumed
