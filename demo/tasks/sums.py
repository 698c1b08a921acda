"""The demo's task: three-step sums with the steps written out.

A question is a chain such as ``27+58-14+35``; a full answer is::

    27+58=85
    85-14=71
    71+35=106
    #### 106

Everything here is pure and needs the standard library only. A question belongs to the held-out split when its own
hash says so, so no seed and no sample size can make the two splits overlap. (Single steps, such as ``27+58=85``, do
occur in both: what is held out is the question, not arithmetic.)

The student's bad habit is also defined here, because the training script and the documentation both need it: at a step
where the ones column carries (or borrows), it may forget to, and is then off by exactly ten (``27+58=75``).
"""

import hashlib
import random
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, Protocol, TypeVar

Split = Literal["train", "heldout"]


class _Drawn(Hashable, Protocol):
    @property
    def split(self) -> Split: ...


P = TypeVar("P", bound=_Drawn)

STEPS = 3
TERM_RANGE = (10, 99)
TOTAL_RANGE = (30, 169)
"""Bounds of every correct running total; three forgotten carries keep a wrong one inside [0, 199]."""

PROMPT_TEMPLATE = "{question}\n"
"""How a question becomes a prompt; the answer follows directly."""

MAX_NEW_TOKENS = 56
"""Enough for the longest answer and its stop token (the tokenizer has one token a character)."""

MIN_CARRIES = 2
"""The least number of a question's steps that carry or borrow: the part of the task that is worth distilling."""

_HELDOUT_OF_TEN = 1
_ANSWER = re.compile(r"^#### (\d+)$", re.MULTILINE)
_QUESTION = re.compile(r"\d+(?:[+-]\d+)+")


def split_of(question: str) -> Split:
    """The split of a question, by its own hash."""
    digest = hashlib.sha256(question.encode()).digest()
    return "heldout" if digest[0] % 10 < _HELDOUT_OF_TEN else "train"


@dataclass(frozen=True, slots=True)
class Problem:
    """A chain of signed terms; the first is the starting total."""

    terms: tuple[int, ...]

    @property
    def question(self) -> str:
        """The chain as text, for example ``27+58-14+35``."""
        first, *rest = self.terms
        return f"{first}" + "".join(f"{term:+d}" for term in rest)

    @property
    def prompt(self) -> str:
        """The question as the models see it."""
        return PROMPT_TEMPLATE.format(question=self.question)

    @property
    def answer(self) -> int:
        """The correct result."""
        return sum(self.terms)

    @property
    def split(self) -> Split:
        """The split that this question belongs to, by its own hash."""
        return split_of(self.question)


@dataclass(frozen=True, slots=True)
class Step:
    """One written line, ``before`` and ``term`` giving ``result``; ``slipped`` when the carry was forgotten."""

    before: int
    term: int
    result: int
    slipped: bool

    @property
    def text(self) -> str:
        """The line without its newline."""
        return f"{self.before}{self.term:+d}={self.result}"


def parse_question(question: str) -> Problem:
    """Read a question back; the inverse of :attr:`Problem.question`."""
    if not _QUESTION.fullmatch(question):
        raise ValueError(f"not a question of this task: {question!r} (expected for example '27+58-14+35')")
    return Problem(tuple(int(term) for term in re.findall(r"[+-]?\d+", question)))


def carries(total: int, term: int) -> bool:
    """Whether adding the signed ``term`` carries or borrows out of the ones column."""
    ones = total % 10
    return ones + term % 10 >= 10 if term >= 0 else ones < -term % 10


def solve(problem: Problem, slips: Callable[[], bool] = lambda: False) -> list[Step]:
    """The steps of an answer. ``slips()`` is asked at each step that carries; True forgets that carry."""
    total = problem.terms[0]
    steps: list[Step] = []
    for term in problem.terms[1:]:
        slipped = carries(total, term) and slips()
        error = (-10 if term > 0 else 10) if slipped else 0
        steps.append(Step(total, term, total + term + error, slipped))
        total = steps[-1].result
    return steps


def write(steps: Sequence[Step]) -> str:
    """The answer's text: one line a step, then ``#### result``, with no newline at the end."""
    return "\n".join([*(step.text for step in steps), f"#### {steps[-1].result}"])


def grade(response: str, answer: int) -> bool:
    """Whether the response's final answer is the expected one."""
    return last_number(_ANSWER, response) == answer


def last_number(line: re.Pattern[str], response: str) -> int | None:
    """The number on the last line of a form, or None when there is none."""
    found = line.findall(response)
    return int(found[-1]) if found else None


def generate(seed: int, split: Split) -> Iterator[Problem]:
    """An endless, seeded stream of a split's problems, without repeats."""
    return distinct(_draw, random.Random(f"{split}:{seed}"), split)


def distinct(draw: Callable[[random.Random], P], rng: random.Random, split: Split) -> Iterator[P]:
    """What is drawn of a split, endlessly and without repeats."""
    seen: set[P] = set()
    while True:
        problem = draw(rng)
        if problem.split == split and problem not in seen:
            seen.add(problem)
            yield problem


def problems(count: int, *, seed: int, split: Split) -> list[Problem]:
    """The first ``count`` distinct problems of a seeded stream."""
    return list(islice(generate(seed, split), count))


def _draw(rng: random.Random) -> Problem:
    """Draw terms until every running total lies in range and enough steps carry."""
    low, high = TERM_RANGE
    while True:
        signs = [1, *(rng.choice((1, -1)) for _ in range(STEPS))]
        terms = tuple(sign * rng.randint(low, high) for sign in signs)
        totals = [sum(terms[: i + 1]) for i in range(len(terms))]
        carrying = sum(map(carries, totals, terms[1:]))
        if carrying >= MIN_CARRIES and all(TOTAL_RANGE[0] <= total <= TOTAL_RANGE[1] for total in totals):
            return Problem(terms)
