# pyright: strict
"""What a stage's latest run came to: a small file beside its lock, which says who runs, since when, and how it ended.

Nothing depends on it but what people are shown: whether rows exist is the manifests' to say.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from . import files
from .errors import BudgetReached, OmniopdError, StorageError


class StageRun(BaseModel):
    """One run of a stage, or of one shard of it."""

    model_config = ConfigDict(frozen=True)

    pid: int
    host: str
    started_at: float
    """Unix time, s."""
    ended_at: float | None = None
    error: str | None = None
    """Why it failed; None where it did not, or where it had no chance to say so."""
    expected: int | None = None
    """Rows or steps that the stage comes to in all."""

    @property
    def state(self) -> Literal["running", "failed", "killed", "ended"]:
        """Of a run on another machine that did not say that it ended, it is believed that it runs."""
        if self.ended_at is not None:
            return "ended" if self.error is None else "failed"
        return "running" if self.host != socket.gethostname() or _alive(self.pid) else "killed"


class Waiting(BaseModel):
    """A stage that has begun, and for which the cluster has too few slots now."""

    model_config = ConfigDict(frozen=True)

    pid: int
    host: str
    have: int
    need: int

    def __str__(self) -> str:
        return f"waiting for {self.need - self.have} of {self.need} slots"


def write_waiting(path: Path, have: int, need: int) -> None:
    """Write down that a stage waits for slots, or that it does no longer: `have` is then `need` or more."""
    if have >= need:
        path.unlink(missing_ok=True)
    else:
        waiting = Waiting(pid=os.getpid(), host=socket.gethostname(), have=have, need=need)
        files.write_text(path, waiting.model_dump_json() + "\n")


def read_waiting(path: Path) -> Waiting | None:
    """What is recorded; None where nothing waits, or the process that did is gone."""
    try:
        waiting = Waiting.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return waiting if waiting.host != socket.gethostname() or _alive(waiting.pid) else None


@contextlib.contextmanager
def recorded(path: Path, content: Callable[[], object] = object) -> Generator[None]:
    """Write down that a run begins, and how it ends. Reaching a budget and Ctrl-C are no failures.

    Args:
        content: What the stage has written so far. A run that ends well and finds it as it was did nothing, and what is
            recorded stays that of the run that did the work.
    """
    before, found = read_stage_run(path), content()
    # What a stage comes to does not change, and a run that finds nothing to do does not say it again.
    expected = None if before is None else before.expected
    run = StageRun(pid=os.getpid(), host=socket.gethostname(), started_at=time.time(), expected=expected)
    _write(path, run)
    error: str | None = None
    try:
        yield
    except BudgetReached:
        raise
    except OmniopdError as failure:
        error = str(failure)
        raise
    except Exception as failure:
        # Only its kind: nobody has checked what such a message holds.
        error = type(failure).__name__
        raise
    finally:
        now = read_stage_run(path) or run
        if before is not None and before.state == "ended" and error is None and content() == found:
            now = before
        else:
            now = now.model_copy(update={"ended_at": time.time(), "error": error})
        # A full disk takes no line; what ended the stage is what to show.
        with contextlib.suppress(StorageError):
            _write(path, now)


def expect(path: Path, rows: int) -> None:
    """Write down what the run that is recorded at `path` comes to in all."""
    run = read_stage_run(path)
    assert run is not None, "expect() belongs inside recorded()"
    _write(path, run.model_copy(update={"expected": rows}))


def read_stage_run(path: Path) -> StageRun | None:
    """What is recorded; None where there is nothing, or nothing that this version can read."""
    try:
        return StageRun.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _write(path: Path, run: StageRun) -> None:
    files.write_text(path, run.model_dump_json() + "\n")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
