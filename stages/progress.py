"""Progress of a long job: a bar on a terminal, a line every 30 s elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Generator

from ..store.repeat import repeated

Advance = Callable[[int, str], None]
"""Call with how many are newly done and a short note about the state (or "")."""

_SECONDS_BETWEEN_LINES = 30.0


@contextlib.contextmanager
def progress(title: str, total: int | None, done: int = 0) -> Generator[Advance]:
    """Show how far a job of `total` items (None: nobody knows yet) is, from `done` on."""
    if sys.stderr.isatty():
        yield from _bar(title, total, done)
    else:
        yield from _lines(title, total, done)


def _bar(title: str, total: int | None, done: int) -> Generator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()),
        *(TimeRemainingColumn(), TextColumn("{task.fields[note]}")),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total, completed=done, note="")
        yield lambda count, note: bar.update(task, advance=count, note=note)


def _lines(title: str, total: int | None, done: int) -> Generator[Advance]:
    start, begun, note = time.monotonic(), done, ""

    def advance(count: int, text: str) -> None:
        nonlocal done, note
        done += count
        note = text

    def line() -> str:
        rate = (done - begun) / (time.monotonic() - start)
        left = f", {(total - done) / rate:.0f} s left" if rate > 0 and total is not None else ""
        of = "" if total is None else f"/{total}"
        return f"{title}: {done}{of}{left}{'  ' + note if note else ''}\n"

    # By the clock, not by what is done: a log in which nothing comes for minutes looks like a job that hangs.
    with repeated(lambda: sys.stderr.write(line()), _SECONDS_BETWEEN_LINES, "progress"):
        yield advance
