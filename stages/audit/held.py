# pyright: strict
"""Rollouts that were refused, or not answered to the last attempt, until an answer to a later request shows that the
prompt is the reason and not the teacher."""

import time
from dataclasses import dataclass

from ...store.ledger import Settlement
from .rows import Receipt, unbilled


@dataclass(frozen=True)
class _Failure:
    since: float
    receipt: Receipt
    indices: tuple[int, ...]
    problem: str

    @property
    def rows(self) -> Settlement:
        return unbilled(self.receipt, known=True, failed=self.indices, problem=self.problem)


class HeldFailures:
    """What is held is not in the table: a later audit asks for it again. Only a request that was sent after the
    failure, and was answered, tells: one that was under way may have been let in before an account was closed or a
    server went away."""

    def __init__(self) -> None:
        self._failures: list[_Failure] = []
        self._given_up: set[tuple[str, int]] = set()
        """Rollouts that are held or were recorded since: a list of missing work may be older than either."""

    def hold(self, receipt: Receipt, indices: tuple[int, ...], problem: str) -> None:
        self._failures.append(_Failure(time.monotonic(), receipt, indices, problem))
        self._given_up.update((receipt.chunk_id, index) for index in indices)

    def answered(self, sent: float) -> list[tuple[Settlement, int]]:
        """A request sent at this time was answered. Returns what is to be recorded, each with its number of rows."""
        if not self._failures:
            return []
        shown = [failure for failure in self._failures if failure.since < sent]
        self._failures = [failure for failure in self._failures if failure.since >= sent]
        return [(failure.rows, len(failure.indices)) for failure in shown]

    @property
    def chunk_ids(self) -> set[str]:
        return {failure.receipt.chunk_id for failure in self._failures}

    def gave_up(self, chunk_id: str, index: int) -> bool:
        """Whether a rollout is not to be asked for once more in this audit."""
        return (chunk_id, index) in self._given_up

    @property
    def said(self) -> str:
        """A line for a person; "" where nothing is held."""
        if not self._failures:
            return ""
        rollouts = sum(len(failure.indices) for failure in self._failures)
        return (
            f"{rollouts} rollouts were refused or not answered ({self._failures[-1].problem}), and nothing was answered"
            " after them: they are not recorded, and the same command asks for them again"
        )
