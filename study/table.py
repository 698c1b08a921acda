# pyright: strict
"""A study's table: one line an arm, with its score, its distance from the reference arm, and what it cost. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..eval.estimate import Difference, Interval
from .arms import REFERENCE, Choice, Equal, Kind
from .results import BEFORE
from .statistics import SeedGain, paired_by_question, paired_by_seed, t_interval

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """One arm, over its seeds."""

    arm: str
    pass_at_1: Interval
    """Student's t over seeds."""
    by_seed: SeedGain | None
    """This arm minus the reference arm; None for the reference arm itself."""
    by_question: Difference | None
    teacher_tokens: float
    """Mean over seeds, as the following."""
    teacher_usd: float
    billed_tokens: float
    trajectories: float
    train_steps: float


def summarise(
    rows: Sequence[Row], means: Mapping[tuple[str, int], NDArray[np.float64]], before: Mapping[int, NDArray[np.float64]]
) -> list[Line]:
    """The lines, in the order of the arms, the initial student first.

    Args:
        rows: Of the study's table.
        means: Share of right responses to each question [Q], by arm and seed, after the last round.
        before: The same of the initial student, by seed.
    """
    seeds = sorted(before)
    answers_SQ = {BEFORE: np.stack([before[seed] for seed in seeds])}
    for arm in dict.fromkeys(arm for arm, _ in means):
        answers_SQ[arm] = np.stack([means[arm, seed] for seed in seeds])
    last = max(int(row["rounds"]) for row in rows)
    reference_SQ = answers_SQ[REFERENCE]
    lines: list[Line] = []
    for arm, arm_SQ in answers_SQ.items():
        of = [row for row in rows if row["arm"] == arm and (arm == BEFORE or row["rounds"] == last)]
        other = arm != REFERENCE
        lines.append(
            Line(
                arm,
                t_interval(arm_SQ.mean(axis=1)),
                paired_by_seed(arm_SQ.mean(axis=1), reference_SQ.mean(axis=1)) if other else None,
                paired_by_question(arm_SQ, reference_SQ) if other else None,
                _mean(of, "teacher_prompt_tokens") + _mean(of, "teacher_completion_tokens"),
                *(_mean(of, name) for name in ("teacher_usd", "billed_tokens", "trajectories", "train_steps")),
            )
        )
    return lines


def _mean(rows: Sequence[Row], column: str) -> float:
    return sum(float(row[column]) for row in rows) / len(rows)


def markdown(kind: Kind, lines: Sequence[Line], choice: Choice, rows: Sequence[Row], equal: Equal) -> str:
    """The table and how to read it, for a terminal as for a file."""
    priced = any(line.teacher_usd > 0 for line in lines)
    head = [
        "arm", "Pass@1 over seeds", f"minus {REFERENCE}, seeds", "p", f"minus {REFERENCE}, questions", "p",
        "teacher tokens", *(["USD"] if priced else []), "billed tokens", "trajectories", "steps",
    ]  # fmt: skip
    cells = [[*_scores(line), *_costs(line, priced)] for line in lines]
    arms, missing = choice
    one, last = rows[-1], max(int(row["rounds"]) for row in rows)
    seeds = len({row["seed"] for row in rows})
    out = [
        f"# {kind}: {one['benchmark']}, {one['questions']} questions x {one['samples']} samples, {seeds} seeds,"
        f" after {last} rounds",
        "",
        *_aligned(head, cells),
        "",
        "Percent, with 95 % intervals. Seeds: Student's t over seeds, holds for training again on these questions."
        " Questions: paired bootstrap, p by flipped signs, holds for other questions and these models. Neither is"
        " corrected for the number of arms. Teacher tokens and dollars are those of the arm alone, billed tokens what"
        " was asked here, since arms share rollouts; all are means over seeds.",
        "",
        *(f"- {arm.name}: {arm.note}" for arm in arms if arm.note),
        *(f"- {gone.name}: not run, {gone.reason}" for gone in missing),
    ]
    if any(arm.equal for arm in arms):
        out.append(f"- equal {equal} are a hard cap in each round, so the arm stays just below it")
    return "\n".join(out) + "\n"


def _scores(line: Line) -> list[str]:
    by_seed, by_question = line.by_seed, line.by_question
    return [
        line.arm,
        percent(line.pass_at_1),
        "" if by_seed is None else percent(by_seed.gain, sign="+"),
        "" if by_seed is None else _p(by_seed.p),
        "" if by_question is None else percent(by_question.gain, sign="+"),
        "" if by_question is None else _p(by_question.p),
    ]


def _costs(line: Line, priced: bool) -> list[str]:
    return [
        f"{line.teacher_tokens:,.0f}",
        *([f"{line.teacher_usd:.4g}"] if priced else []),
        *(f"{value:,.0f}" for value in (line.billed_tokens, line.trajectories, line.train_steps)),
    ]


def percent(interval: Interval, sign: str = "") -> str:
    """62.1 [60.0, 64.2]; without bounds where there are none."""
    value, low, high = (f"{100 * number:{sign}.1f}" for number in (interval.value, interval.low, interval.high))
    return value if math.isnan(interval.low) else f"{value} [{low}, {high}]"


def _p(p: float) -> str:
    if math.isnan(p):
        return ""
    return "<0.0001" if p < 0.0001 else f"{p:.2g}"


def _aligned(head: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table whose columns are aligned for people who read it as text."""
    widths = [max(len(row[i]) for row in [head, *cells]) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        padded = [
            row[0].ljust(widths[0]),
            *(text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)),
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return [line(head), line(rule), *map(line, cells)]
