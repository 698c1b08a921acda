# pyright: strict
"""What of a run is told to a tracker: points on axes, and for each round a table of chunks. Read from the run's files,
so that it does not matter which process, or which machine, did the work."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import duckdb

from ...store.files import read_json_lines
from ...store.layout import RunDir
from ..report import figures
from ..status import Status

AXES = {
    "generate": "round",
    "audit": "round",
    "score": "round",
    "eval": "eval/rounds",
    "teacher": "teacher/requests",
    "train": "train/step",
}
"""By the first word of a value's name: what it is drawn over."""

CHUNK_COLUMNS = (
    "chunk_id", "weight", "similarity", "prior", "anchor_entropy", "draft_tokens", "accepted", "before", "chunk",
    "teacher", "failed", "cost_usd",
)  # fmt: skip

_EXTREMES = 50
_CONTEXT = 160
_ANSWERS = 3


@dataclass(frozen=True)
class Point:
    """Values at one place of an axis."""

    group: str
    """A key of AXES, and the first word of each value's name."""
    at: int
    values: dict[str, float]

    @property
    def axis(self) -> str:
        return AXES[self.group]


@dataclass(frozen=True)
class ChunkTable:
    """The chunks of a round with the lowest weight and the highest, in CHUNK_COLUMNS."""

    round: int
    rows: list[list[Any]]


def live_points(run: RunDir, status: Status) -> list[Point]:
    """What changes while a stage works: the teacher's bill as it is now, and every optimizer step."""
    spend = status.spend
    points = [_point("train", at, step) for at, step in enumerate(_steps(run))]
    if spend.requests:
        bill = {
            "usd": spend.usd if spend.priced else None, "tokens": spend.tokens, "prompt_tokens": spend.prompt_tokens,
            "completion_tokens": spend.completion_tokens, "cached_share": spend.cache_share,
            "unknown_requests": spend.unknown_requests,
            **{f"rollouts_{outcome}": count for outcome, count in status.outcomes.items()},
        }  # fmt: skip
        points.append(_point("teacher", spend.requests, bill))
    return points


def settled(run: RunDir, status: Status) -> list[str]:
    """What `round_points` and `chunk_tables` are about: another list, and they have something new to say."""
    done = [f"{r.round}/{stage.stage}" for r in status.rounds for stage in r.stages if stage.state == "done"]
    scored = [str(round_.shards.manifest.made_with) for round_ in run.rounds()]
    return [*done, *scored, *(f"{one.rounds}/{one.benchmark}/{one.pass_at_1}" for one in status.evaluations)]


def round_points(db: duckdb.DuckDBPyConnection, status: Status) -> list[Point]:
    """What each finished stage of each round came to, and every whole evaluation."""
    finished = {
        (round_.round, stage.stage): stage
        for round_ in status.rounds
        for stage in round_.stages
        if stage.state == "done"
    }
    outcomes = {round_.round: round_.outcomes for round_ in status.rounds}
    students, audits, rewards = figures.students(db), figures.audits(db), figures.rewards(db)
    of_stages = [
        *(("generate", row, ("trajectories", "length", "entropy", "repetition", "cut_off")) for row in students),
        *(("audit", row, ("chunks", "rollouts", "answered", "prompt_tokens", "completion_tokens", "cost_usd"))
          for row in audits),
        *(("score", row, ("phi", "weight", "prior", "accepted")) for row in audits),
        *(("score", row, ("reward", "signal")) for row in rewards),
    ]  # fmt: skip
    points: dict[tuple[str, int], dict[str, Any]] = {}
    for group, row, names in of_stages:
        stage = finished.get((row["round"], group))
        if stage is not None:
            values = points.setdefault((group, row["round"]), {"seconds": stage.seconds})
            values.update({name: row[name] for name in names})
            if group == "audit":
                values.update({f"rollouts_{outcome}": n for outcome, n in outcomes[row["round"]].items()})
    return [
        *(_point(group, at, values) for (group, at), values in points.items()),
        *_evaluations(status),
    ]


def chunk_tables(db: duckdb.DuckDBPyConnection, status: Status) -> list[ChunkTable]:
    """A table for each round that was scored, if it has chunks of the student's."""
    scored = [r.round for r in status.rounds for stage in r.stages if (stage.stage, stage.state) == ("score", "done")]
    found = {round_: figures.rows(db, _EXTREME_CHUNKS, [round_]) for round_ in scored}
    return [ChunkTable(round_, [_chunk_row(row) for row in rows]) for round_, rows in found.items() if rows]


_EXTREME_CHUNKS = f"""
    WITH own AS (
        SELECT *, coalesce(pi_teacher, accepted / draft_tokens) AS rank_by
        FROM chunks_scored WHERE round = ? AND start < "end"
    ),
    ranked AS (
        SELECT *, row_number() OVER (ORDER BY rank_by, chunk_id) AS place, count(*) OVER () AS count
        FROM own WHERE rank_by IS NOT NULL
    ),
    extremes AS (SELECT * FROM ranked WHERE place <= {_EXTREMES} OR place > count - {_EXTREMES}),
    said AS (
        SELECT chunk_id, list(text ORDER BY times DESC, text)[:{_ANSWERS}] AS answers
        FROM (
            SELECT chunk_id, text, count(*) AS times FROM rollouts
            WHERE text IS NOT NULL AND chunk_id IN (SELECT chunk_id FROM extremes) GROUP BY ALL
        )
        GROUP BY chunk_id
    )
    SELECT extremes.*, answers FROM extremes LEFT JOIN said USING (chunk_id) ORDER BY place
"""


def _chunk_row(row: figures.Row) -> list[Any]:
    return [
        row["chunk_id"], row["pi_teacher"], row["pi_freq"], row["prior"], row["anchor_entropy"], row["draft_tokens"],
        row["accepted"], row["prefix_text"][-_CONTEXT:], row["chunk_text"], "\n---\n".join(row["answers"] or []),
        row["failed"], row["cost_usd"],
    ]  # fmt: skip


def _steps(run: RunDir) -> Iterable[dict[str, Any]]:
    for round_ in run.rounds():
        yield from read_json_lines(run.train_steps(round_.index))


def _evaluations(status: Status) -> list[Point]:
    at: dict[int, dict[str, Any]] = {}
    for one in status.evaluations:
        # A benchmark that is a file of the user's is named by it; a name must not look like a path.
        name = one.benchmark.replace("/", "-")
        values = {"pass_at_1": one.pass_at_1, "pass_at_1_low": one.low, "pass_at_1_high": one.high}
        at.setdefault(one.rounds, {}).update({f"{name}/{key}": value for key, value in values.items()})
    return [_point("eval", rounds, values) for rounds, values in at.items()]


def _point(group: str, at: int, values: dict[str, Any]) -> Point:
    """What has no value, or is the place itself, is left out."""
    told = {f"{group}/{name}": float(value) for name, value in values.items() if value is not None}
    told.pop(AXES[group], None)
    return Point(group, at, told)
