"""`omniopd score`: chunks and rollouts in, the scores and shards tables out. DuckDB runs score.sql."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from duckdb.func import ARROW, SPECIAL
from duckdb.sqltypes import DOUBLE, VARCHAR

from ...store.config import Config, made_with
from ...store.errors import TableError
from ...store.layout import RoundDir, RunDir
from ...store.sql import connect
from ...store.table import Table
from .similarity import METRICS

_PART_ROWS = 65536


def score(run: RunDir, index: int, config: Config) -> str:
    """Weigh a round's chunks and build its training sequences. Returns a line about them.

    Both tables can be derived again at any time, so other settings or more rollouts simply replace them; the teacher
    is not asked.

    Raises:
        TableError: the rollouts are not complete, or rows of the inputs contradict each other.
    """
    round_ = run.round(index)
    inputs = (
        round_.trajectories.require(f"omniopd generate {run.path} --round {index}"),
        round_.chunks.require(f"omniopd audit {run.path} --round {index}"),
        round_.rollouts.require(f"omniopd audit {run.path} --round {index}"),
    )
    content = {f"input.{t.spec.name}": [part.sha256 for part in t.manifest.parts] for t in inputs}
    with round_.lock("score"):
        settings = made_with(config, "scores") | content
        if not all(_is_current(table, settings) for table in (round_.scores, round_.shards)):
            _score(run, round_, config, settings)
    return summary(round_, config)


def _is_current(table: Table, settings: Mapping[str, Any]) -> bool:
    manifest = table.manifest
    return manifest.complete and dict(manifest.made_with) == settings


def _score(run: RunDir, round_: RoundDir, config: Config, settings: Mapping[str, Any]) -> None:
    sql = statements()
    values = config.score.model_dump()
    metric, unit = METRICS[config.score.phi], config.score.unit

    def phi(chunk_text: pa.ChunkedArray, text: pa.ChunkedArray) -> pa.DoubleArray:
        return metric(chunk_text, text, unit)

    with contextlib.closing(connect([round_], spill=run.path / ".spill")) as db:
        _check(db, round_)
        db.create_function("phi", phi, [VARCHAR, VARCHAR], DOUBLE, type=ARROW, null_handling=SPECIAL)
        db.execute("CREATE MACRO filled(value, n) AS list_resize([value], n, value)")
        db.execute(sql["similarities"])
        round_.scores.replace(_parts(db, sql["scores"], _only(values, "phi", "unit", "alpha")), settings)
        # The views were made before the scores existed.
        db.execute("DROP VIEW scores")
        db.register("scores", round_.scores.read(["chunk_id", "n", "pi_teacher"]))
        round_.shards.replace(_parts(db, sql["shards"], _only(values, "min_rollouts", "weights")), settings)


def statements() -> dict[str, str]:
    """The named statements of score.sql."""
    text = Path(__file__).with_name("score.sql").read_text(encoding="utf-8")
    named = (part.partition("\n") for part in text.split("-- name: ")[1:])
    return {name.strip(): body for name, _, body in named}


def _only(values: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    return {name: values[name] for name in names}


def _parts(db: duckdb.DuckDBPyConnection, query: str, values: Mapping[str, Any]) -> Iterator[pa.Table]:
    for batch in db.sql(query, params=values).to_arrow_reader(_PART_ROWS):
        yield pa.Table.from_batches([batch])


def _check(db: duckdb.DuckDBPyConnection, round_: RoundDir) -> None:
    """Refuse rows that would be averaged wrongly without anyone noticing."""
    checks = {
        "rollouts of a chunk that does not exist": "SELECT count(*) FROM rollouts ANTI JOIN chunks USING (chunk_id)",
        "rollouts with the same chunk_id and rollout_index": (
            "SELECT count(*) - count(DISTINCT (chunk_id, rollout_index)) FROM rollouts"
        ),
        "answered rollouts without a text": (
            "SELECT count(*) FROM rollouts WHERE status IN ('ok', 'empty') AND text IS NULL"
        ),
        "chunks whose prior is not in (0, 1]": (
            "SELECT count(*) FROM chunks WHERE (prior > 0 AND prior <= 1) IS NOT TRUE"
        ),
        "chunks of a trajectory that does not exist": (
            "SELECT count(*) FROM chunks ANTI JOIN trajectories USING (trajectory_id)"
        ),
    }
    for what, query in checks.items():
        ((count,),) = db.execute(query).fetchall()
        if count:
            raise TableError(
                f"{round_.path} has {count} {what}.", "Look at them with `omniopd sql`, and mend the table."
            )


def summary(round_: RoundDir, config: Config) -> str:
    """One line about a round's weights."""
    with contextlib.closing(connect([round_])) as db:
        ((chunks, usable, phi, weight),) = db.execute(
            "SELECT count(*), count(*) FILTER (n >= ?), avg(k_sem / nullif(n, 0)), avg(pi_teacher) FROM scores",
            [config.score.min_rollouts],
        ).fetchall()
    means = "" if phi is None else f", mean {config.score.phi} similarity {phi:.3f}, mean weight {weight:.3f}"
    return f"{usable} of {chunks} chunks weighed{means}; {round_.shards.manifest.rows} training sequences"
