import os
import pickle
import resource
from pathlib import Path

import pytest
import torch

from medclr.errors import MedclrError
from medclr.training.resume import SafeCheckpointIO

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
        torch.save({"epoch": Evil(proof)}, path)
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
