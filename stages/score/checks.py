"""Rows that contradict each other are refused with their count, before anything is averaged or trained on."""

import duckdb

from ...method.objectives.record import Answers, Objective
from ...method.objectives.registry import get, names
from ...store.errors import TableError
from ...store.layout import RoundDir

_INPUTS = {
    "trajectories with the same trajectory_id as another": (
        "SELECT count(*) - count(DISTINCT trajectory_id) FROM trajectories"
    ),
    "trajectories whose tokens and log-probs differ in number": (
        "SELECT count(*) FROM trajectories WHERE (len(response_ids) = len(logprobs)) IS NOT TRUE"
    ),
    "chunks with the same chunk_id as another": "SELECT count(*) - count(DISTINCT chunk_id) FROM chunks",
    "chunks of a trajectory that does not exist": (
        "SELECT count(*) FROM chunks ANTI JOIN trajectories USING (trajectory_id)"
    ),
    "chunks whose prior is not in (0, 1]": (
        # DuckDB sorts NaN above every number.
        "SELECT count(*) FROM chunks WHERE (prior > 0 AND prior <= 1) IS NOT TRUE"
    ),
    "chunks without a text": "SELECT count(*) FROM chunks WHERE chunk_text IS NULL",
    "rollouts of a chunk that does not exist": "SELECT count(*) FROM rollouts ANTI JOIN chunks USING (chunk_id)",
    "rollouts with the same chunk_id and rollout_index as another": (
        "SELECT coalesce(sum(rows - 1), 0) FROM"
        " (SELECT count(*) AS rows FROM rollouts GROUP BY chunk_id, rollout_index) WHERE rows > 1"
    ),
    "answered rollouts without a text": (
        "SELECT count(*) FROM rollouts WHERE status IN ('ok', 'empty') AND text IS NULL"
    ),
    "rollouts whose status is not one of ok, empty, refused, filtered, failed": (
        "SELECT count(*) FROM rollouts WHERE (status IN ('ok', 'empty', 'refused', 'filtered', 'failed')) IS NOT TRUE"
    ),
}

_SPANS = {
    "chunks that reach outside their response": (
        "SELECT count(*) FROM chunks JOIN trajectories USING (trajectory_id)"
        ' WHERE (0 <= start AND start < "end" AND "end" <= len(response_ids)) IS NOT TRUE'
    ),
    "chunks that overlap another": (
        'SELECT count(*) FROM (SELECT start < max("end") OVER (PARTITION BY trajectory_id ORDER BY start, "end"'
        " ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS clash FROM chunks) WHERE clash"
    ),
}
_WHOLE_ANSWERS = {
    "prompts without exactly one whole answer to ask for": (
        "SELECT count(*) FROM trajectories LEFT JOIN"
        ' (SELECT trajectory_id, count(*) AS rows, bool_and(start = 0 AND "end" = 0) AS whole'
        " FROM chunks GROUP BY trajectory_id) USING (trajectory_id)"
        " WHERE (rows = 1 AND whole) IS NOT TRUE"
    ),
}
_REFERENCES = {
    "trajectories without an answer to grade them against": "SELECT count(*) FROM trajectories WHERE answer IS NULL",
}

_PROMPT_FIRST = {
    "shards that do not begin with their prompt": (
        "SELECT count(*) FROM"
        " (SELECT trajectory_id, hash(input_ids[:list_position(response_mask, true) - 1]) AS ids FROM shards) AS s"
        " JOIN (SELECT trajectory_id, hash(prompt_ids) AS ids FROM trajectories) AS t USING (trajectory_id)"
        " WHERE (s.ids = t.ids) IS NOT TRUE"
    ),
}
_TRAJECTORY_SHARDS = {
    "trajectories without exactly one shard": (
        "SELECT count(*) FROM trajectories FULL JOIN"
        " (SELECT trajectory_id, count(*) AS rows FROM shards GROUP BY trajectory_id) USING (trajectory_id)"
        " WHERE prompt_ids IS NULL OR rows IS DISTINCT FROM 1"
    ),
    "shards whose ids disagree with their trajectory": (
        # Hashes, so that the join need not hold the ids.
        "SELECT count(*) FROM (SELECT trajectory_id, hash(input_ids) AS ids FROM shards) AS s"
        " JOIN (SELECT trajectory_id, hash(prompt_ids || response_ids) AS ids FROM trajectories) AS t"
        " USING (trajectory_id) WHERE s.ids <> t.ids"
    ),
}

_REWARDS = {
    "trajectories without exactly one reward": (
        "SELECT count(*) FROM trajectories FULL JOIN"
        " (SELECT trajectory_id, count(*) AS rows FROM rewards GROUP BY trajectory_id) USING (trajectory_id)"
        " WHERE prompt_ids IS NULL OR rows IS DISTINCT FROM 1"
    ),
}


def check_inputs(db: duckdb.DuckDBPyConnection, round_: RoundDir, objective: Objective) -> None:
    """Refuse trajectories, chunks and rollouts that would be averaged wrongly without anyone noticing.

    Raises:
        TableError: how many rows of which kind.
    """
    asked = {"chunks": _SPANS, "answers": _WHOLE_ANSWERS, "nobody": _no_chunks()}[objective.asks]
    checks = _INPUTS | asked | (_REFERENCES if objective.graded else {})
    _refuse(db, round_, checks, "Look at them with `omniopd sql`, and fix the table.")


def check_shards(db: duckdb.DuckDBPyConnection, round_: RoundDir, objective: Objective) -> None:
    """Refuse shards that are about other tokens than the trajectories, or than the teacher's answers.

    Raises:
        TableError: how many.
    """
    learns = objective.learns
    checks = _answer_shards(learns) | _PROMPT_FIRST if isinstance(learns, Answers) else _TRAJECTORY_SHARDS
    if objective.graded:
        _refuse(db, round_, _REWARDS, f"Delete {round_.rewards.folder} and run `omniopd score` again.")
    _refuse(db, round_, checks, f"Delete {round_.shards.folder} and run `omniopd score` again.")


def _no_chunks() -> dict[str, str]:
    *others, last = (name for name in names() if get(name).asks != "nobody")
    return {f"chunks, which only {', '.join(others)} and {last} have": "SELECT count(*) FROM chunks"}


def _answer_shards(answers: Answers) -> dict[str, str]:
    return {
        "answers without exactly one shard": (
            f"SELECT count(*) FROM (SELECT chunk_id, rollout_index, true AS answered FROM ({answers.sql}))"
            " FULL JOIN (SELECT chunk_id, rollout_index, count(*) AS rows FROM shards GROUP BY ALL) AS s"
            " USING (chunk_id, rollout_index) WHERE answered IS NULL OR rows IS DISTINCT FROM 1"
        ),
    }


def _refuse(db: duckdb.DuckDBPyConnection, round_: RoundDir, checks: dict[str, str], hint: str) -> None:
    for what, query in checks.items():
        ((count,),) = db.execute(query).fetchall()
        if count:
            raise TableError(f"{round_.path} has {count} {what}.", hint)
