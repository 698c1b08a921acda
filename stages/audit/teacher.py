# pyright: strict
"""What a dialect of teacher API must do: write a request, read an answer. Pure; sending is client.py's part."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ...store.config import Config
from ...store.ledger import Usage

Continuation = Literal["completion", "prefill"]


@dataclass(frozen=True)
class Ask:
    """Continue a prefix `n` times."""

    question: str
    """The user message."""
    prompt_text: str
    """The prompt as the student read it."""
    prefix: str
    """The student's response up to the chunk."""
    n: int
    max_tokens: int
    seed: int | None = None


@dataclass(frozen=True)
class HttpRequest:
    """A POST with a JSON body."""

    path: str
    """Under the base URL."""
    body: Mapping[str, Any]


@dataclass(frozen=True)
class Rollout:
    """One continuation, or the typed reason why there is none."""

    status: Literal["ok", "refused", "filtered", "empty", "failed"]
    text: str | None
    finish_reason: str | None


@dataclass(frozen=True)
class Answer:
    """What came back for one Ask; there may be fewer rollouts than asked for."""

    model: str
    rollouts: list[Rollout]
    usage: Usage | None
    """None where the server said nothing about it."""


@dataclass(frozen=True)
class WorstCase:
    """An upper bound of what a request can be billed for, in teacher tokens."""

    prompt_tokens: int
    completion_tokens: int


class Teacher(Protocol):
    """One dialect, for one model, with one way to continue a prefix."""

    continuation: Continuation
    base_url: str
    headers: Mapping[str, str]

    def request(self, ask: Ask) -> HttpRequest: ...

    def parse(self, body: Any) -> Answer:
        """Read the decoded JSON of a 200 answer.

        Raises:
            ValueError: it is not of the dialect's form.
        """
        ...

    def worst_case(self, ask: Ask) -> WorstCase: ...


def max_tokens_for(config: Config, chunk_tokens: int) -> int:
    """Teacher tokens to ask for: tokenizers differ, so a chunk of C student tokens may be longer in the teacher's.
    What is too long is cut to the chunk's length when it is scored."""
    return config.teacher.max_tokens or chunk_tokens + chunk_tokens // 2 + 8
