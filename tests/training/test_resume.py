import os
import pickle
import resource
from pathlib import Path

import pytest
import torch

from medclr.errors import MedclrError
from medclr.training.resume import SafeCheckpointIO, checkpoint_name, checkpoints, intact, newest_checkpoint, prune

STATE = {"epoch": 3, "state_dict": {"weight": torch.arange(6.0)}, "names": ["a", None, 1.5]}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    SafeCheckpointIO().save_checkpoint(STATE, path)
    return path


def names(path):
    return [item.name for item in path.parent.iterdir()]


def test_round_trip(path):
    for where in (path, str(path)):
        state = SafeCheckpointIO().load_checkpoint(where)
        assert torch.equal(state["state_dict"].pop("weight"), STATE["state_dict"]["weight"])
        assert state == {"epoch": 3, "state_dict": {}, "names": ["a", None, 1.5]}
    assert names(path) == ["last.ckpt"]
    SafeCheckpointIO().remove_checkpoint(path)
    SafeCheckpointIO().remove_checkpoint(path)
    assert names(path) == []


@pytest.fixture
def full_disk():
    """No file may grow beyond 20 kB; Python ignores the signal, so that a write fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_last_checkpoint_whole(path, full_disk):
    before = path.read_bytes()
    with pytest.raises(MedclrError, match=r"cannot write the checkpoint .*; free some space and run again"):
        SafeCheckpointIO().save_checkpoint({"weight": torch.zeros(100_000)}, path)
    assert path.read_bytes() == before
    assert names(path) == ["last.ckpt"]


def test_killed_before_the_rename_the_last_one_is_there(path, monkeypatch):
    """What has the checkpoint's name is whole and synced at any moment."""
    seen = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (seen.append("sync"), fsync(descriptor)))

    def killed(source, target):
        assert source.parent == Path(target).parent
        seen.append("rename")
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        SafeCheckpointIO().save_checkpoint({"epoch": 4}, path)
    assert seen == ["sync", "rename"]
    assert path.read_bytes() == before


def test_what_does_not_read_back_gets_no_name(path, monkeypatch):
    """As on a disk that loses what it said it had written."""
    fsync = os.fsync

    def lose(descriptor):
        fsync(descriptor)
        os.pwrite(descriptor, b"?", os.fstat(descriptor).st_size - 200)

    monkeypatch.setattr(os, "fsync", lose)
    before = path.read_bytes()
    with pytest.raises(MedclrError, match="does not read back as it was written"):
        SafeCheckpointIO().save_checkpoint({"weight": torch.zeros(1000)}, path)
    assert path.read_bytes() == before
    assert names(path) == ["last.ckpt"]


class Evil:
    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


@pytest.mark.parametrize("old_format", [False, True])
def test_code_in_a_checkpoint_is_refused_and_does_not_run(path, tmp_path, old_format):
    proof = tmp_path / "proof"
    if old_format:
        path.write_bytes(pickle.dumps({"epoch": Evil(proof)}))
    else:
        SafeCheckpointIO().save_checkpoint({"epoch": Evil(proof)}, path)
    # Not even for a caller that asks for everything.
    with pytest.raises(MedclrError, match="damaged or was not written by medclr"):
        SafeCheckpointIO().load_checkpoint(path, weights_only=False)
    assert not proof.exists()


@pytest.mark.parametrize("kept", [0, 10, 300, -1])
def test_a_damaged_checkpoint_is_one_line_with_the_fix(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(MedclrError, match="delete it to train from the start") as raised:
        SafeCheckpointIO().load_checkpoint(path)
    assert "\n" not in str(raised.value)


def test_every_byte_counts(path):
    data = path.read_bytes()
    for place in [*range(60), *range(60, len(data), 97), len(data) - 1]:
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert not intact(path)
    path.write_bytes(data)
    assert intact(path)


@pytest.fixture
def run(tmp_path):
    """A run folder with three checkpoints, and what a killed writer left."""
    for place in ((9, 999999), (9, 1000000), (10, 2)):
        SafeCheckpointIO().save_checkpoint({"place": place}, tmp_path / "checkpoints" / checkpoint_name(*place))
    (tmp_path / "checkpoints" / ".epoch0010-step000003.ckpt.part").write_bytes(b"half")
    return tmp_path


def test_the_last_two_are_kept(run):
    prune(run)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "epoch0009-step1000000.ckpt",
        "epoch0010-step000002.ckpt",
    ]


@pytest.mark.parametrize(
    "how", [lambda data: data[:-1], lambda data: data[:5], lambda data: b"", lambda data: data + b"x"]
)
def test_the_newest_that_is_whole_is_taken(run, how):
    warnings = []
    newest, before, oldest = checkpoints(run)
    assert newest_checkpoint(run, warnings.append) == newest
    assert warnings == []
    newest.write_bytes(how(newest.read_bytes()))
    assert newest_checkpoint(run, warnings.append) == before
    assert len(warnings) == 1
    assert newest.name in warnings[0]
    assert before.name in warnings[0]
    assert newest.with_name(f"{newest.name}.damaged").exists()
    assert newest_checkpoint(run, warnings.append) == before
    assert len(warnings) == 1
    for path in (before, oldest):
        path.write_bytes(how(path.read_bytes()))
    with pytest.raises(MedclrError, match="delete them to train from the start") as raised:
        newest_checkpoint(run, warnings.append)
    assert before.name in str(raised.value)
    assert before.exists()


def test_a_run_without_checkpoints_begins(tmp_path):
    assert newest_checkpoint(tmp_path, print) is None


def test_what_cannot_be_read_is_not_called_damaged(run, monkeypatch):
    """A file system that is away for a moment must not cost a checkpoint."""

    def away(self, *args):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "open", away)
    with pytest.raises(MedclrError, match=r"cannot read the checkpoint .*Input/output error"):
        newest_checkpoint(run, print)
