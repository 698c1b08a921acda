# pyright: strict
"""What a study needs to know of a teacher whose probabilities can be seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Text:
    """A chunk and all that stood before it."""

    before: str
    chunk: str


@dataclass(frozen=True)
class Truth:
    """A chunk's log-probability under the teacher, over the teacher's own tokens."""

    logprob: float
    """nats, summed"""
    tokens: int
    straddled: bool
    """The teacher would have written the chunk's beginning in one token with the end of what stood before it."""


class Oracle(Protocol):
    """A teacher whose probabilities can be seen."""

    def truths(self, texts: Sequence[Text]) -> list[Truth]:
        """Log-probabilities of the chunks, each given what stood before it."""
        ...
