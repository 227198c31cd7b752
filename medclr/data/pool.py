"""The processes that read and prepare: they leave signals to their parent, and end when it does."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from medclr.errors import DataError


@contextmanager
def worker_pool(n_workers: int, doing: str) -> Iterator[Executor]:
    """Processes to hand work to.

    Args:
        n_workers: how many.
        doing: what they do, for the error: "reads headers".

    Raises:
        DataError: one of them died.
    """
    # Neither threads nor open files of this process go into a forkserver's children.
    pool = ProcessPoolExecutor(n_workers, multiprocessing.get_context("forkserver"), _attend_to_parent)
    try:
        yield pool
    except BrokenProcessPool:
        raise DataError(
            f"a process that {doing} died; out of memory? Run again with fewer --workers, and in a script call medclr "
            "under `if __name__ == '__main__':`"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _attend_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # killed, it could not say goodbye, and would leave its workers waiting for ever
