# pyright: strict
"""What a grader says, and what a grader is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Verdict:
    """On one response."""

    correct: bool
    reason: str
    """right | wrong | no_answer | timeout | memory | output | threads | error"""
    extracted: str = ""
    """The answer as the grader read it."""
    detail: str = ""
    """What a person wants to know of a failure."""


class Grader(Protocol):
    """Grades responses; several threads may ask at once."""

    name: str

    @property
    def settings(self) -> Mapping[str, Any]:
        """What its verdicts depend on: versions and limits."""
        ...

    def grade(self, response: str, reference: str) -> Verdict: ...

    def close(self) -> None:
        """End the processes that it started."""
        ...
