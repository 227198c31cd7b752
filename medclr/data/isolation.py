"""Calls that may crash, hang or ask for all memory: made in another process, which is the most that they can end."""

import multiprocessing
import os
import resource
import signal
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from medclr.data.pool import forkserver
from medclr.errors import DataError, Unreadable

_IDLE_S = 60.0  # after which a process that nobody calls ends; on a cluster no one is there to end it
_ATTEMPTS = 3  # at a call whose process was killed from outside, which need not be the call's fault


def isolated(function: Callable[..., Any], *args: Any, seconds: float, memory: int) -> Any:
    """Call a function in another process; it is kept for the next call, unless this one ends it.

    Safe from several threads, each of which has a process to itself.

    Args:
        function: a function of a module.
        args: what it takes; like its result, anything that can be pickled.
        seconds: how long it may take.
        memory: bytes that it may allocate (Linux alone holds it to that).

    Returns:
        What the function returns.

    Raises:
        Unreadable: the process ended; or whatever the function raises.
    """
    code = 0
    for _ in range(_ATTEMPTS):
        worker = _hired()
        try:
            result, error = worker.call(function, args, seconds, memory)
        except (EOFError, ConnectionError):
            code = worker.end()
            if worker.dismissed:
                raise CancelledError from None
            # 0: it had waited too long.
            if code in (0, -signal.SIGKILL, -signal.SIGTERM):
                continue
            break
        except BaseException:
            worker.dismiss()
            worker.end()
            raise
        _idle.append(worker)
        if error is not None:
            raise error
        return result
    raise _verdict(code, seconds)


def dismiss() -> None:
    """End the processes of `isolated`; calls that are under way raise CancelledError."""
    for worker in list(_workers):
        worker.dismiss()
    while _idle:
        _idle.pop().end()


class _Worker:
    """A process that makes one call after the other."""

    def __init__(self) -> None:
        self.dismissed = False
        self._connection, theirs = multiprocessing.Pipe()
        with theirs, _lock:
            # Dask's workers are daemons, which may have no children; these end by themselves.
            if multiprocessing.current_process().daemon:
                multiprocessing.current_process().daemon = False
            self._process = forkserver().Process(target=_serve, args=(theirs, _IDLE_S), daemon=True)
            self._process.start()
        _workers.add(self)
        try:
            self._connection.recv()
        except EOFError:
            code = self.end()
            if self.dismissed:
                raise CancelledError from None
            raise DataError(
                f"a process that decodes cannot start (exit code {code}); out of memory? Run again with fewer "
                "--workers, and in a script call medclr under `if __name__ == '__main__':`"
            ) from None

    def call(self, *task: Any) -> Any:
        self._connection.send(task)
        return self._connection.recv()

    def dismiss(self) -> None:
        self.dismissed = True
        self._process.kill()

    def end(self) -> int:
        """Once it is dead, or about to be: its exit code, or minus the signal that ended it."""
        self._connection.close()
        with _lock:
            self._process.join()
        _workers.discard(self)
        assert self._process.exitcode is not None
        return self._process.exitcode


_workers: set[_Worker] = set()
_idle: list[_Worker] = []
# Starting a process asks all others whether they have ended, and an exit code can be read once.
_lock = threading.Lock()


def _hired() -> _Worker:
    try:
        return _idle.pop()
    except IndexError:
        return _Worker()


def _serve(connection: Connection, idle_s: float) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would be full of scans
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silence, stream)  # decoders complain in their own words, and may quote a header
    connection.send(None)
    while connection.poll(idle_s):
        try:
            function, args, seconds, memory = connection.recv()
        except EOFError:  # the caller is gone
            return
        error = result = None
        _limit_memory(memory)
        # No handler: the kernel ends this process, even where compiled code never returns.
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            result = function(*args)
        except Exception as raised:
            error = raised
        signal.setitimer(signal.ITIMER_REAL, 0)
        _limit_memory(None)
        try:
            connection.send((result, error))
        except ConnectionError:
            return


def _limit_memory(allowed: int | None) -> None:
    """Let this process allocate so many bytes more than it has; None lifts that."""
    counts = Path("/proc/self/statm")
    if not counts.exists():
        return
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    soft = most
    if allowed is not None:
        soft = int(counts.read_text().split()[5]) * resource.getpagesize() + allowed
        soft = soft if most == resource.RLIM_INFINITY else min(soft, most)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, most))


def _verdict(code: int, seconds: float) -> Unreadable:
    if code == -signal.SIGALRM:
        return Unreadable("DECODE", f"not decoded after {seconds:,.0f} s; given up")
    if code == -signal.SIGKILL:
        return Unreadable("TOO_LARGE", f"its process was killed {_ATTEMPTS} times; out of memory? Use fewer --workers")
    if code < 0:
        return Unreadable("DECODE", f"the decoder crashed ({signal.Signals(-code).name})")
    return Unreadable("DECODE", f"the decoder ended its process (exit code {code})")
