"""Who does the work: processes that end with their parent, or a Dask cluster."""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext
from typing import Any

from medclr.errors import DataError, Interrupted, UsageError

_CONNECT_S = 10.0


@contextmanager
def worker_pool(
    n_workers: int,
    doing: str,
    begin: Callable[[], None] | None = None,
    again: str = "Run again with fewer --workers",
) -> Iterator[Executor]:
    """Processes to hand work to.

    Args:
        n_workers: how many.
        doing: what they do, for the error: "reads headers".
        begin: called in each of them first.
        again: what to do where one died.

    Raises:
        DataError: one of them died.
    """
    pool = _Processes(n_workers, forkserver(), _begin, (begin,))
    try:
        yield pool
    except BrokenProcessPool:
        raise DataError(
            f"a process that {doing} died; out of memory? {again}, and in a script call medclr under "
            "`if __name__ == '__main__':`"
        ) from None
    except Interrupted:
        pool.terminate()  # what they are at may take minutes more, and the next run begins it anew
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def dask_cluster(address: str) -> Iterator[Executor]:
    """The workers of a Dask cluster, as an executor.

    Args:
        address: of its scheduler, as `dask scheduler` prints it.

    Raises:
        UsageError: Dask is not installed, or no scheduler answers.
        DataError: the scheduler went away.
    """
    try:
        from distributed import Client
    except ImportError:
        raise UsageError("--scheduler: Dask is not installed; pip install medclr[dask]") from None
    try:
        client = Client(address, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError, AssertionError):  # the last for a host that has no address
        raise UsageError(
            f"--scheduler {address}: no Dask scheduler answers there; start one with `dask scheduler`, and give the "
            "address that it prints"
        ) from None
    logger = logging.getLogger("distributed.client")
    before = logger.level
    logger.setLevel(logging.CRITICAL)  # pages, where our one line will do
    try:
        with client, _DaskExecutor(client) as executor:
            try:
                yield executor
            except Exception as error:
                if client.status == "running" and not isinstance(error, CancelledError):
                    raise
                raise DataError(
                    f"--scheduler {address}: the scheduler went away; start it again, and run the same command"
                ) from None
    finally:
        logger.setLevel(before)


def n_cores() -> int:
    """Cores that this process may use: a cluster may lend it but some of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def forkserver() -> ForkServerContext:
    """How processes are started: neither threads nor open files of this one go into them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "medclr.data.prepare"])  # seconds, spent once and not by each
    return context


class _Processes(ProcessPoolExecutor):
    """As it is, but that one which dies before it has begun is as dead as one that dies later."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        try:
            return super().submit(function, *args, **kwargs)
        except (ConnectionError, EOFError):
            raise BrokenProcessPool from None

    def terminate(self) -> None:
        for process in list(self._processes.values()):
            process.terminate()


class _DaskExecutor(Executor):
    """Dask's own executor, some of whose futures would wait for ever once the scheduler is gone."""

    def __init__(self, client: Any) -> None:
        self._client = client
        # Not pure: what a task finds on the disk is no function of its arguments.
        self._executor = client.get_executor(pure=False)
        self._waiting: set[Future[Any]] = set()
        self._over = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = self._executor.submit(function, *args, **kwargs)
        self._waiting.add(future)
        future.add_done_callback(self._waiting.discard)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(1.0):
            if self._client.status in ("closing", "closed"):
                for future in self._waiting.copy():
                    future.cancel()


def _begin(begin: Callable[[], None] | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if begin:
        begin()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # killed, it could not say goodbye, and would leave its workers waiting for ever
