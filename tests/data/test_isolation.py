"""Calls that crash, hang or eat all memory end their process, and cost their item alone."""

import ctypes
import itertools
import os
import re
import signal
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from medclr.data import isolation
from medclr.data import prepare as module
from medclr.data.discover import discover
from medclr.data.identity import Pseudonymiser
from medclr.data.isolation import dismiss, isolated
from medclr.data.manifest import build_manifest
from medclr.data.prepare import prepare, processes
from medclr.data.spec import DataSpec
from medclr.data.store import Store
from medclr.errors import Unreadable

LIMITS = {"seconds": 60.0, "memory": 1 << 30}
MR = DataSpec("mr", ("MR", ""), 3, "zscore", "spacing", 64, "mr", spacing_mm=(2.0, 1.0, 1.0), patch=(8, 8, 8))

WILD = """
import ctypes, os
from pathlib import Path
from medclr.data import nifti

def read(root, candidate):
    kind = candidate.paths[0].split(".")[0].rpartition("-")[2]
    if kind == "abort":
        os.abort()
    if kind == "segv":
        ctypes.string_at(0)
    if kind == "hang":
        ctypes.PyDLL(None).pause()  # in C, and Python's own lock is held
    if kind == "eat":
        eaten = []
        while True:
            eaten.append(bytearray(1 << 24))
    if kind == "libc":
        malloc = ctypes.CDLL(None).malloc
        malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        while True:
            ctypes.memset(malloc(1 << 24), 1, 1 << 24)
    return nifti.read(root, candidate)

def die_once(marker):
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), 9)
    return "alive"
"""


@pytest.fixture(autouse=True)
def _alone():
    dismiss()
    yield
    dismiss()


@pytest.fixture
def wild(tmp_path, monkeypatch):
    """A module of bad readers that the processes can import."""
    (tmp_path / "wild").mkdir()
    (tmp_path / "wild" / "wild_readers.py").write_text(WILD)
    monkeypatch.syspath_prepend(tmp_path / "wild")
    import wild_readers

    return wild_readers


def test_results_and_errors_come_back_from_one_process():
    assert isolated(divmod, 7, 2, **LIMITS) == (3, 1)
    first = isolated(os.getpid, **LIMITS)
    with pytest.raises(ValueError, match="invalid literal"):
        isolated(int, "x", **LIMITS)
    assert isolated(os.getpid, **LIMITS) == first != os.getpid()


@pytest.mark.parametrize(
    ("call", "reason", "message"),
    [
        ((os.abort,), "DECODE", r"the decoder crashed \(SIGABRT\)"),
        ((ctypes.string_at, 0), "DECODE", r"the decoder crashed \(SIGSEGV\)"),
        ((os._exit, 3), "DECODE", r"the decoder ended its process \(exit code 3\)"),
        ((re.match, "(a+)+$", "a" * 60 + "b"), "DECODE", "not decoded after 1 s; given up"),
        ((time.sleep, 60), "DECODE", "not decoded after 1 s; given up"),
        ((signal.raise_signal, signal.SIGKILL), "TOO_LARGE", "its process was killed 3 times; out of memory?"),
    ],
)
def test_a_call_that_ends_its_process_says_how(call, reason, message):
    with pytest.raises(Unreadable, match=message) as raised:
        isolated(*call, seconds=0.6, memory=1 << 30)
    assert raised.value.reason == reason
    assert isolated(divmod, 7, 2, **LIMITS) == (3, 1)


def test_memory_is_limited_for_each_call_by_itself():
    first = isolated(os.getpid, **LIMITS)
    with pytest.raises(MemoryError):
        isolated(list, itertools.count(), seconds=60.0, memory=1 << 26)
    assert len(isolated(bytes, 1 << 27, seconds=60.0, memory=1 << 28)) == 1 << 27
    assert isolated(os.getpid, **LIMITS) == first


def test_the_time_between_calls_counts_for_none():
    first = isolated(os.getpid, seconds=0.3, memory=1 << 30)
    time.sleep(0.5)
    assert isolated(os.getpid, seconds=0.3, memory=1 << 30) == first


def test_a_process_killed_from_outside_is_no_fault_of_the_call(wild, tmp_path):
    assert isolated(wild.die_once, tmp_path / "marker", **LIMITS) == "alive"
    assert (tmp_path / "marker").exists()


def test_a_process_that_nobody_calls_ends_and_is_replaced(monkeypatch):
    monkeypatch.setattr(isolation, "_IDLE_S", 0.05)
    first = isolated(os.getpid, **LIMITS)
    (worker,) = isolation._idle
    worker._process.join(20)
    assert worker._process.exitcode == 0
    assert isolated(os.getpid, **LIMITS) != first


def test_each_thread_has_a_process_and_dismissed_calls_end_at_once():
    ended = []

    def call():
        try:
            isolated(time.sleep, 60, **LIMITS)
        except CancelledError:
            ended.append(1)

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    while len(isolation._workers) < 2 or isolation._idle:
        time.sleep(0.01)
    pids = {worker._process.pid for worker in isolation._workers}
    assert len(pids) == 2
    dismiss()
    for thread in threads:
        thread.join(20)
    assert ended == [1, 1]
    assert not isolation._workers
    assert not any(Path("/proc", str(pid)).exists() for pid in pids)


@pytest.fixture
def scans(tmp_path):
    """Good NIfTI volumes, and some whose names say what the wild reader does to them."""
    root = tmp_path / "scans"
    root.mkdir()
    rng = np.random.default_rng(0)
    for number, kind in enumerate(["", "abort", "", "hang", "", "eat", "", "segv", "libc", ""]):
        values = rng.integers(1, 900, (10, 9, 8)).astype(np.int16)
        nib.save(nib.Nifti1Image(values, np.eye(4)), root / f"{number}-{kind}.nii")
    candidates, _ = discover(root, workers=0)
    return root, build_manifest(candidates, Pseudonymiser(b"k" * 32))[0]


@pytest.mark.parametrize("n_threads", [0, 2])
def test_bad_volumes_cost_themselves_among_good_ones(n_threads, wild, scans, tmp_path, monkeypatch):
    root, manifest = scans
    expected, _ = prepare(manifest, root, MR, Store(tmp_path / "expected"))
    monkeypatch.setitem(module.READERS, "nifti", wild.read)
    monkeypatch.setattr(module, "_SECONDS", -6.0)
    monkeypatch.setattr(module, "_SECONDS_PER_FILE", 9.0)
    monkeypatch.setattr(module, "_MEMORY", 1 << 27)
    pool = ThreadPoolExecutor(n_threads) if n_threads else None
    prepared, skipped = prepare(manifest, root, MR, Store(tmp_path / "store"), pool)
    if pool:
        pool.shutdown()
    good = [not source[0].split("-")[1].split(".")[0] for source in expected["source"]]
    pd.testing.assert_frame_equal(prepared, expected[good].reset_index(drop=True))
    found = {one.item.partition("-")[2]: (one.reason, one.message) for one in skipped}
    assert found == {
        "abort.nii": ("DECODE", "the decoder crashed (SIGABRT)"),
        "hang.nii": ("DECODE", "not decoded after 3 s; given up"),
        "eat.nii": ("TOO_LARGE", "not enough memory to prepare the volume"),
        "segv.nii": ("DECODE", "the decoder crashed (SIGSEGV)"),
        "libc.nii": ("DECODE", "the decoder crashed (SIGSEGV)"),
    }


def test_two_processes_give_what_one_does(scans, tmp_path):
    root, manifest = scans
    (root / "1-abort.nii").write_bytes(b"")
    one, skipped = prepare(manifest, root, MR, Store(tmp_path / "one"))
    with processes(2, 64) as pool:
        assert isinstance(pool, ThreadPoolExecutor)
        two, also = prepare(manifest, root, MR, Store(tmp_path / "two"), pool)
    pd.testing.assert_frame_equal(one, two)
    assert skipped == also
    assert len(skipped) == 1
    assert [contents(tmp_path / "one")] == [contents(tmp_path / "two")]
    assert len(contents(tmp_path / "one")) == 9


def contents(root):
    return {path.name: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_an_error_in_the_middle_leaves_no_process(scans, tmp_path):
    root, manifest = scans

    def stop(done, total):
        raise KeyboardInterrupt

    with processes(2, 64) as pool, pytest.raises(KeyboardInterrupt):
        prepare(manifest, root, MR, Store(tmp_path / "store"), pool, stop)
    assert not isolation._workers
