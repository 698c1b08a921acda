"""The figures of one arm and seed, read from its run directory: nothing is counted on the way, so a study that was
stopped and resumed shows the same ones."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ..eval.results import matrix, result
from ..method.objectives.registry import objective_of
from ..store.evals import EvalDir
from ..store.layout import RoundDir, RunDir
from ..store.ledger import NANO
from ..store.ledger_read import read_totals
from .arms import Arm

BEFORE = "student before"
"""Name of the initial student's rows."""


@dataclass(frozen=True)
class Spent:
    """What a round asked of the teacher, as if it had been alone."""

    prompt_tokens: int
    completion_tokens: int
    usd: float

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


def spent(round_: RoundDir) -> Spent:
    """Sums over a round's rollouts, borrowed ones too."""
    frame = pl.DataFrame(round_.rollouts.read(["prompt_tokens", "completion_tokens", "cost_usd"]))
    prompt, completion, usd = (frame[name].sum() or 0 for name in frame.columns)
    return Spent(int(prompt), int(completion), float(usd))


def row(study: Path, run: RunDir, arm: Arm, seed: int, rounds: int, folder: EvalDir, grader: str) -> dict[str, Any]:
    """One row of the study's table.

    Args:
        rounds: After how many rounds `folder` evaluated the arm.

    Raises:
        ConfigError: the run's config.toml is missing or wrong.
        InputError: the evaluation is not whole.
        TableError: a file is missing or damaged.
    """
    found = result(folder)
    verdicts_QS = matrix(folder, grader).verdicts_QS
    rounds_ = [run.round(index) for index in range(rounds)]
    costs = [spent(round_) for round_ in rounds_]
    bills = [read_totals(run.ledger, index) for index in range(rounds)]
    return {
        "arm": arm.name if rounds else BEFORE,
        "changes": json.dumps(dict(arm.changes)),
        "folder": str(run.path.relative_to(study)),
        "seed": seed,
        "rounds": rounds,
        "benchmark": found.benchmark,
        "grader": grader,
        "questions": found.questions,
        "samples": found.samples,
        "pass_at_1": float(verdicts_QS.mean()),
        "response_tokens": found.mean_tokens,
        "truncated": found.truncated,
        "repetition": found.mean_repetition,
        "teacher_prompt_tokens": sum(cost.prompt_tokens for cost in costs),
        "teacher_completion_tokens": sum(cost.completion_tokens for cost in costs),
        "teacher_usd": sum(cost.usd for cost in costs),
        "billed_tokens": sum(bill.charged_tokens for bill in bills),
        "billed_usd": sum(bill.charged_nusd for bill in bills) / NANO,
        "trajectories": _rows(rounds_, "trajectories") if objective_of(run.config()).samples_student else 0,
        "sequences": _rows(rounds_, "shards"),
        "train_steps": sum(_steps(run, round_.index) for round_ in rounds_),
        "similarity": _mean(rounds_[-1], "scores", pl.col("k_sem") / pl.col("n")) if rounds else None,
        "reward": _mean(rounds_[-1], "rewards", pl.col("reward")) if rounds else None,
        **{f"{stage}_s": _seconds(rounds_, stage) for stage in ("generate", "audit", "score", "train")},
    }


def means_by_question(folder: EvalDir, grader: str) -> NDArray[np.float64]:
    """Share of right responses to each question [Q], in the order of their ids."""
    return matrix(folder, grader).verdicts_QS.mean(axis=1)


def _rows(rounds: Sequence[RoundDir], table: str) -> int:
    return sum(getattr(round_, table).manifest.rows for round_ in rounds)


def _steps(run: RunDir, index: int) -> int:
    path = run.train_steps(index)
    return len(path.read_bytes().splitlines()) if path.is_file() else 0


def _mean(round_: RoundDir, table: str, value: pl.Expr) -> float | None:
    rows = getattr(round_, table)
    if rows.manifest.rows == 0:
        return None
    mean = pl.DataFrame(rows.read()).select(value.fill_nan(None).mean()).item()
    return None if mean is None else float(mean)


def _seconds(rounds: Sequence[RoundDir], stage: str) -> float:
    """Of the latest run of a stage in each round."""
    ended = [stage_run for round_ in rounds for stage_run in round_.stage_runs(stage) if stage_run.ended_at is not None]
    return sum((stage_run.ended_at or 0.0) - stage_run.started_at for stage_run in ended)
