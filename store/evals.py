"""Where the results of evaluations are, and what they consist of."""

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

from . import commits, files
from .layout import RunDir
from .schema import EVAL_RESPONSES, EVAL_VERDICTS
from .table import Table
from .worker import ALONE, Worker


@dataclass(frozen=True)
class EvalDir:
    """One model on one benchmark: its responses, and the verdicts of each grader on them.

    RUN/eval/after=003/math500/ for what a run's policy is after three rounds (after=000 is the initial student), and
    anywhere else for other models.
    """

    path: Path

    def responses(self, worker: Worker = ALONE) -> Table:
        """What the model answered, to be written as one shard of it."""
        return Table(self.path / "responses", EVAL_RESPONSES, worker)

    def verdicts(self, grader: str) -> Table:
        """What a grader says of the responses."""
        return Table(self.path / "verdicts" / grader, EVAL_VERDICTS)

    @property
    def graders(self) -> list[str]:
        """Graders that have said something, by name."""
        return [folder.name for folder in commits.tables_in(self.path / "verdicts")]

    @property
    def rounds(self) -> int | None:
        """Rounds that the model was trained for, where it is a run's policy."""
        match = re.fullmatch(r"after=(\d{3,})", self.path.parent.name)
        return None if match is None else int(match[1])

    def lock(self, what: str, worker: Worker = ALONE) -> contextlib.AbstractContextManager[None]:
        """Keep a second process from doing the same."""
        return files.exclusive(self.path / f".{what}{worker.suffix}.lock", f"`eval` into {self.path}")


def eval_of_run(run: RunDir, rounds: int, benchmark: str) -> EvalDir:
    """Where a run's policy after some rounds is evaluated on a benchmark."""
    return EvalDir(run.path / "eval" / f"after={rounds:03d}" / benchmark)


def evals_of_run(run: RunDir) -> list[EvalDir]:
    """All that were begun in a run, by rounds and benchmark."""
    return [EvalDir(path.parent) for path in sorted((run.path / "eval").glob("after=*/*/responses"))]
