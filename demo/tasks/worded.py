# pyright: strict
"""The harder task: sums told in words, which student and teacher write out each in a way of their own.

A question is a short tale such as ``Has 27, gets 58, lends 14, wins 35.``. The student answers in words, with synonyms
as they come to it, and without saying the running total again::

    27 plus 58 is 85, then minus 14 makes 71, so plus 35 is 106
    Answer: 106

The teacher, left to itself, writes equations::

    27+58=85; 85-14=71; 71+35=106
    #### 106

Everything here is pure and needs the standard library only. As in sums.py a question is held out when its own hash
says so.

The student's weakness is of several kinds, each at a rate of its own (``Habits``); a result that follows a mistake is
right for what was written. Its synonyms are peaks of entropy that have nothing to do with mistakes.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from .sums import MIN_CARRIES, STEPS, TERM_RANGE, TOTAL_RANGE, Split, carries, distinct, last_number, split_of

PROMPT_TEMPLATE = "{question}\n"
"""How a question becomes a prompt; the answer follows directly."""

MAX_NEW_TOKENS = 44
"""Student tokens: enough for the longest answer in words and its stop token."""

MAX_NEW_BYTES = 96
"""The same in the teacher's tokens, whichever way it writes."""

GAINS = ("gets", "wins", "finds", "borrows")
LOSSES = ("sells", "loses", "gives", "lends")
CONFUSED = ("borrows", "lends")
"""The words that the student takes for each other."""

HARD_DIGITS = (7, 8, 9)
"""A borrow for such a last digit is what the student forgets most."""

WRITTEN_RANGE = (0, 199)
"""Bounds of every running total that is written, mistakes included."""

_ANSWER = re.compile(r"^(?:####|Answer:) (\d+)$", re.MULTILINE)
_QUESTION = re.compile(r"Has (\d+)((?:, [a-z]+ \d+)+)\.")

Manner = Literal["words", "equations"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A tale: what there is at first, and what comes and goes."""

    start: int
    events: tuple[tuple[str, int], ...]
    """Word and amount of each."""

    @property
    def question(self) -> str:
        """The tale as text."""
        return f"Has {self.start}, " + ", ".join(f"{word} {amount}" for word, amount in self.events) + "."

    @property
    def prompt(self) -> str:
        """The question as the models see it."""
        return PROMPT_TEMPLATE.format(question=self.question)

    @property
    def terms(self) -> tuple[int, ...]:
        """The signed amounts."""
        return tuple(amount if word in GAINS else -amount for word, amount in self.events)

    @property
    def answer(self) -> int:
        """The correct result."""
        return self.start + sum(self.terms)

    @property
    def split(self) -> Split:
        """The split that this question belongs to, by its own hash."""
        return split_of(self.question)


@dataclass(frozen=True, slots=True)
class Habits:
    """How often each kind of mistake is made where it can be made."""

    hard_borrow: float = 0.0
    """Forgets the borrow at a step that takes away a number ending in one of HARD_DIGITS."""
    carry: float = 0.0
    """Forgets any other carry or borrow."""
    confuses: float = 0.0
    """Takes ``lends`` for ``borrows`` or the other way round."""
    swaps: float = 0.0
    """Copies an amount with its digits swapped."""
    skips: float = 0.0
    """Leaves out a step: at most one of an answer, and never the last."""


STUDENT_HABITS = Habits(hard_borrow=0.6, carry=0.12, confuses=0.3, swaps=0.04, skips=0.02)
"""Only the hard borrow is above one half, so greedy decoding makes that mistake and no other."""


@dataclass(frozen=True, slots=True)
class Step:
    """``before`` and the signed ``term`` as written give ``result``; the flags say what of it is a mistake."""

    before: int
    term: int
    result: int
    wrong_sign: bool = False
    wrong_term: bool = False
    """Copied wrongly."""
    out_of_turn: bool = False
    """A step before it was left out."""
    wrong_result: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a written answer."""

    text: str
    exemplary: bool = True
    """False where nobody should learn to write this: a mistake, or the choice of words over equations."""
    taste: bool = False
    """True where a synonym was chosen."""


@dataclass(frozen=True, slots=True)
class Wording:
    """How likely each synonym is when somebody writes in words."""

    plus: tuple[float, float]
    minus: tuple[float, float]
    equals: tuple[float, float, float]
    link: tuple[float, float]


_PLUS, _MINUS, _EQUALS, _LINK = ("plus", "add"), ("minus", "less"), ("is", "makes", "gives"), ("then", "so")
STUDENT_WORDING = Wording(plus=(0.9, 0.1), minus=(0.9, 0.1), equals=(0.7, 0.2, 0.1), link=(0.85, 0.15))
TEACHER_WORDING = Wording(plus=(0.5, 0.5), minus=(0.5, 0.5), equals=(0.34, 0.33, 0.33), link=(0.5, 0.5))
"""The teacher's taste when it continues in words: none."""


def parse_question(question: str) -> Problem:
    """Read a question back; the inverse of :attr:`Problem.question`."""
    found = _QUESTION.fullmatch(question)
    if not found:
        raise ValueError(f"not a question of this task: {question!r}")
    events = re.findall(r"([a-z]+) (\d+)", found[2])
    return Problem(int(found[1]), tuple((word, int(amount)) for word, amount in events))


def solve(problem: Problem, habits: Habits, rng: random.Random) -> list[Step]:
    """The steps of an answer by somebody of these habits; totals that leave WRITTEN_RANGE are drawn again."""
    while True:
        steps = _attempt(problem, habits, rng)
        if all(WRITTEN_RANGE[0] <= step.result <= WRITTEN_RANGE[1] for step in steps):
            return steps


def right_steps(problem: Problem) -> list[Step]:
    """The steps of the right answer."""
    return _attempt(problem, Habits(), random.Random(0))


def _attempt(problem: Problem, habits: Habits, rng: random.Random) -> list[Step]:
    total, skipped = problem.start, -1
    steps: list[Step] = []
    for i, ((word, amount), right) in enumerate(zip(problem.events, problem.terms, strict=True)):
        if skipped < 0 and i < STEPS - 1 and rng.random() < habits.skips:
            skipped = i
            continue
        wrong_sign = word in CONFUSED and rng.random() < habits.confuses
        wrong_term = amount % 10 not in (0, amount // 10) and rng.random() < habits.swaps
        written = amount % 10 * 10 + amount // 10 if wrong_term else amount
        term = written if (right > 0) != wrong_sign else -written
        hard = term < 0 and written % 10 in HARD_DIGITS
        wrong_result = carries(total, term) and rng.random() < (habits.hard_borrow if hard else habits.carry)
        result = total + term + (0 if not wrong_result else -10 if term > 0 else 10)
        out_of_turn = 0 <= skipped == i - 1
        steps.append(Step(total, term, result, wrong_sign, wrong_term, out_of_turn, wrong_result))
        total = result
    return steps


def in_words(steps: Sequence[Step], wording: Wording, rng: random.Random) -> list[Piece]:
    """The answer in words; everything is drawn from ``rng``."""
    return pieces(steps, _throughout("words", steps), wording, rng)


def in_equations(steps: Sequence[Step]) -> list[Piece]:
    """The answer in equations."""
    return pieces(steps, _throughout("equations", steps), TEACHER_WORDING, random.Random(0))


def pieces(steps: Sequence[Step], manners: Sequence[Manner], wording: Wording, rng: random.Random) -> list[Piece]:
    """The answer, each step and then the last line in the manner that is given for it."""
    parts = [Piece(f"{steps[0].before}")]
    for i, (step, manner) in enumerate(zip(steps, manners, strict=False)):
        parts += _in_words(step, i == 0, wording, rng) if manner == "words" else _in_equation(step, i == 0)
    return [*parts, Piece("\nAnswer:" if manners[-1] == "words" else "\n####"), Piece(f" {steps[-1].result}")]


def _throughout(manner: Manner, steps: Sequence[Step]) -> list[Manner]:
    return [manner for _ in range(len(steps) + 1)]


def _in_words(step: Step, first: bool, wording: Wording, rng: random.Random) -> Iterator[Piece]:
    if first:
        yield Piece(" ", exemplary=False)
    else:
        yield Piece(",")
        yield Piece(f" {_one(_LINK, wording.link, rng)}", taste=True)
        yield Piece(" ")
    operation = _one(_PLUS, wording.plus, rng) if step.term > 0 else _one(_MINUS, wording.minus, rng)
    yield Piece(operation, exemplary=not (step.wrong_sign or step.out_of_turn))
    yield Piece(f" {abs(step.term)}", exemplary=not (step.wrong_term or step.out_of_turn))
    yield Piece(f" {_one(_EQUALS, wording.equals, rng)}", taste=True)
    yield Piece(f" {step.result}", exemplary=not step.wrong_result)


def _in_equation(step: Step, first: bool) -> Iterator[Piece]:
    if not first:
        yield Piece(f"; {step.before}")
    yield Piece("+" if step.term > 0 else "-", exemplary=not (step.wrong_sign or step.out_of_turn))
    yield Piece(f"{abs(step.term)}", exemplary=not (step.wrong_term or step.out_of_turn))
    yield Piece("=")
    yield Piece(f"{step.result}", exemplary=not step.wrong_result)


def _one(words: Sequence[str], weights: Sequence[float], rng: random.Random) -> str:
    return rng.choices(words, weights)[0]


def text_of(parts: Sequence[Piece]) -> str:
    """The written answer."""
    return "".join(part.text for part in parts)


def grade(response: str, answer: int) -> bool:
    """Whether the response's final answer is the expected one."""
    return last_number(_ANSWER, response) == answer


def generate(seed: int, split: Split) -> Iterator[Problem]:
    """An endless, seeded stream of a split's problems, without repeats."""
    return distinct(_draw, random.Random(f"worded:{split}:{seed}"), split)


def problems(count: int, *, seed: int, split: Split) -> list[Problem]:
    """The first ``count`` distinct problems of a seeded stream."""
    return list(islice(generate(seed, split), count))


def _draw(rng: random.Random) -> Problem:
    """Draw until every running total lies in range and enough steps carry."""
    low, high = TERM_RANGE
    while True:
        events = tuple((rng.choice(rng.choice((GAINS, LOSSES))), rng.randint(low, high)) for _ in range(STEPS))
        problem = Problem(rng.randint(low, high), events)
        totals = [problem.start + sum(problem.terms[:i]) for i in range(STEPS + 1)]
        carrying = sum(map(carries, totals, problem.terms))
        if carrying >= MIN_CARRIES and all(TOTAL_RANGE[0] <= total <= TOTAL_RANGE[1] for total in totals):
            return problem
