"""What a command says while it runs: lines, and progress as a bar on a terminal or plain lines off it."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 10.0


def say(line: str = "") -> None:
    """One line of plain text on standard output, at once; what a header says cannot rewrite what the terminal shows."""
    print("".join(char if char.isprintable() else "?" for char in line), flush=True)


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show how far something is; what is yielded takes the number done and the number in all."""
    if sys.stdout.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(), transient=True) as bar:
            task = bar.add_task(label, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    last = time.monotonic()

    def line(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(f"{label}: {done:,} of {total:,}")

    yield line


def counted(n: int, noun: str) -> str:
    """A number and its noun: 1 volume, 5,856 volumes."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
