"""Worker processes: a death is told, and they end with their parent, however it ends."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from medclr.data.pool import worker_pool
from medclr.errors import DataError, Interrupted


def test_a_dead_worker_is_told():
    with (
        pytest.raises(DataError, match=r"a process that counts died; .*fewer --workers"),
        worker_pool(2, "counts") as pool,
    ):
        pool.submit(os._exit, 1).result()


def test_a_worker_that_dies_before_it_has_begun_is_told_too(monkeypatch):
    def broken(process):
        raise BrokenPipeError

    monkeypatch.setattr(ForkServerProcess, "start", broken)
    with (
        pytest.raises(DataError, match=r"^a process that counts died; out of memory\? Count again, and in a script"),
        worker_pool(2, "counts", again="Count again") as pool,
    ):
        pool.submit(os.getpid).result()


def test_who_is_interrupted_does_not_wait_for_what_workers_are_at():
    started = []

    def interrupted():
        with worker_pool(1, "waits") as pool:
            started.append(pool.submit(os.getpid).result())
            started.append(pool.submit(time.sleep, 60))
            raise Interrupted(signal.SIGTERM)

    with pytest.raises(Interrupted):
        interrupted()
    pid, waiting = started
    assert waiting.cancelled() or isinstance(waiting.exception(), BrokenProcessPool), "it was not waited for"
    assert not Path("/proc", str(pid)).exists()


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, time\n"
        "from medclr.data.pool import worker_pool\n"
        "if __name__ == '__main__':\n"
        "    with worker_pool(2, 'waits') as pool:\n"
        "        print(*{pool.submit(os.getpid).result() for _ in range(9)}, flush=True)\n"
        "        time.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        workers = parent.stdout.readline().split()
        assert workers
        assert all(Path("/proc", pid).exists() for pid in workers)
        parent.send_signal(signal.SIGKILL)
    for _ in range(100):
        if not any(Path("/proc", pid).exists() for pid in workers):
            return
        time.sleep(0.1)
    pytest.fail(f"workers {workers} outlive their parent")
