# pyright: strict
"""Rollouts that the teacher refused, until an answer shows that it refuses the prompt and not everyone."""

import time
from dataclasses import dataclass

from ...store.ledger import Settlement
from .rows import Receipt, unbilled


@dataclass(frozen=True)
class _Refusal:
    since: float
    receipt: Receipt
    indices: tuple[int, ...]
    problem: str

    @property
    def rows(self) -> Settlement:
        return unbilled(self.receipt, known=True, failed=self.indices, problem=self.problem)


class HeldRefusals:
    """What is held back is not in the table: a later audit asks for it again. Only a request that was sent after the
    refusal, and was answered, tells: one that was under way may have been let in before an account was closed."""

    def __init__(self) -> None:
        self._refusals: list[_Refusal] = []

    def hold(self, receipt: Receipt, indices: tuple[int, ...], problem: str) -> None:
        self._refusals.append(_Refusal(time.monotonic(), receipt, indices, problem))

    def answered(self, sent: float) -> list[tuple[Settlement, int]]:
        """A request sent at this time was answered. Returns what is to be recorded, each with its number of rows."""
        if not self._refusals:
            return []
        shown = [refusal for refusal in self._refusals if refusal.since < sent]
        self._refusals = [refusal for refusal in self._refusals if refusal.since >= sent]
        return [(refusal.rows, len(refusal.indices)) for refusal in shown]

    @property
    def chunk_ids(self) -> set[str]:
        return {refusal.receipt.chunk_id for refusal in self._refusals}

    def holds(self, chunk_id: str, index: int) -> bool:
        return any(r.receipt.chunk_id == chunk_id and index in r.indices for r in self._refusals)

    @property
    def said(self) -> str:
        """A line for a person; "" where nothing is held back."""
        if not self._refusals:
            return ""
        rollouts = sum(len(refusal.indices) for refusal in self._refusals)
        return (
            f"{rollouts} rollouts were refused ({self._refusals[-1].problem}) and nothing was answered after them: they"
            " are not recorded, and the same command asks for them again"
        )
