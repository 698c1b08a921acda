"""One line about what a round is trained on."""

import duckdb

from ...store.config import Config
from ...store.layout import RoundDir
from .sql import statements


def summary(db: duckdb.DuckDBPyConnection, round_: RoundDir, config: Config) -> str:
    """What the weights of a round's training sequences rest on, and how many sequences there are."""
    about = {"omniopd": _weights, "sft": _answers, "opd": _responses, "grpo": _rewards}[config.train.objective]
    return f"{about(db, config)}; {round_.shards.manifest.rows} training sequences"


def _weights(db: duckdb.DuckDBPyConnection, config: Config) -> str:
    ((chunks, usable, unanswered, phi, weight),) = db.execute(
        "SELECT count(*), count(*) FILTER (n >= ?), count(*) FILTER (n = 0), avg(pi_freq), avg(pi_teacher) FROM scores",
        [config.score.min_rollouts],
    ).fetchall()
    means = "" if phi is None else f", mean {config.score.phi} similarity {phi:.3f}, mean weight {weight:.3f}"
    rest = (
        f" ({chunks - usable} left un-audited, {unanswered} of them without a usable rollout)"
        if usable < chunks
        else ""
    )
    return f"{usable} of {chunks} chunks weighed{rest}{means}"


def _answers(db: duckdb.DuckDBPyConnection, config: Config) -> str:
    query = f"SELECT count(*), avg(ended::INTEGER) FROM ({statements()['answers'].strip().rstrip(';')})"
    ((answers, ended),) = db.execute(query).fetchall()
    ((rollouts,),) = db.execute("SELECT count(*) FROM rollouts").fetchall()
    rest = f" ({rollouts - answers} of {rollouts} without a text left out)" if answers < rollouts else ""
    return f"{answers:,} answers{rest}" + ("" if ended is None else f", {ended:.0%} ended by themselves")


def _responses(db: duckdb.DuckDBPyConnection, config: Config) -> str:
    ((tokens,),) = db.execute("SELECT sum(len(response_ids))::BIGINT FROM trajectories").fetchall()
    return f"{tokens or 0:,} tokens of the student's to be held against the teacher's distribution"


def _rewards(db: duckdb.DuckDBPyConnection, config: Config) -> str:
    query = """
    SELECT avg(reward), avg((low < high)::INTEGER), count(*)
    FROM (SELECT avg(reward) AS reward, min(reward) AS low, max(reward) AS high
          FROM rewards JOIN trajectories USING (trajectory_id) GROUP BY prompt_id)
    """
    ((reward, signal, groups),) = db.execute(query).fetchall()
    return f"mean reward {reward:.3f} by {config.score.grader}, {signal:.0%} of {groups:,} groups carry signal"
