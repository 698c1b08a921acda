"""`omniopd score`: chunks and rollouts in, the scores and shards tables out. DuckDB runs score.sql."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from duckdb.func import ARROW, SPECIAL
from duckdb.sqltypes import DOUBLE, VARCHAR

from ...store.config import Config, made_with
from ...store.errors import InputError
from ...store.layout import RoundDir, RunDir
from ...store.sql import connect, create_view, limit
from ...store.table import Table
from ..similarity.metrics import find_metric, make_encoder, similarities
from .checks import check_inputs, check_shards

_SCORES_A_PART = 1 << 18
_TOKENS_A_PART = 1 << 22
"""Bounds the shards that are built and written together; each is a few lists as long as its trajectory."""
_SHARDS_A_PART = 8192
_BATCH_ROWS = 512


def score(run: RunDir, index: int, config: Config) -> str:
    """Weigh a round's chunks and build its training sequences. Returns a line about them.

    The teacher is not asked. Scores under another phi, unit or alpha stay beside the new ones; the shards are replaced
    and so always those of the config in force.

    Raises:
        TableError: the rollouts are not complete, or rows of the tables contradict each other.
        InputError: the metric or its model cannot be used.
    """
    round_ = run.round(index)
    inputs = (
        round_.trajectories.require(f"omniopd generate {run.path} --round {index}"),
        round_.chunks.require(f"omniopd audit {run.path} --round {index}"),
        round_.rollouts.require(f"omniopd audit {run.path} --round {index}"),
    )
    content = {f"input.{t.spec.name}": [part.sha256 for part in t.manifest.parts] for t in inputs}
    with round_.lock("score"), contextlib.closing(connect([round_])) as db:
        limit(db, config.score.memory_gb, config.score.threads, run.path / ".spill")
        check_inputs(db, round_)
        scores = round_.scores_of(config.score)
        if not _is_current(scores, settings := made_with(config, "scores") | content):
            _write_scores(db, scores, config, settings)
        if not _is_current(round_.shards, settings := _shard_settings(config, scores, content)):
            _write_shards(db, scores, round_.shards, config, settings)
        check_shards(db, round_)
        _drop_outdated(round_, content)
        return summary(db, round_, config)


def _is_current(table: Table, settings: Mapping[str, Any]) -> bool:
    manifest = table.manifest
    return manifest.complete and dict(manifest.made_with) == settings


def _shard_settings(config: Config, scores: Table, content: Mapping[str, Any]) -> dict[str, Any]:
    return {**made_with(config, "shards"), **content, "scores": scores.folder.name}


def _write_scores(db: duckdb.DuckDBPyConnection, scores: Table, config: Config, settings: Mapping[str, Any]) -> None:
    sql = statements()
    metric, encoder = find_metric(config.score), make_encoder(config)
    problems: list[InputError] = []

    def phi(chunk_text: pa.ChunkedArray, text: pa.ChunkedArray) -> pa.Array:
        try:
            return similarities(metric, encoder, chunk_text, text)
        except InputError as error:
            problems.append(error)  # DuckDB passes on its text alone
            raise

    # SPECIAL: both may answer null.
    db.create_function("phi", phi, [VARCHAR, VARCHAR], DOUBLE, type=ARROW, null_handling=SPECIAL)
    db.create_function(
        "beta_quantile", beta_quantile, [DOUBLE, DOUBLE, DOUBLE], DOUBLE, type=ARROW, null_handling=SPECIAL
    )
    db.execute(sql["similarities"])
    values = _only(config, "phi", "unit", "alpha")
    try:
        scores.replace(_parts(db, sql["scores"], values, _SCORES_A_PART), settings)
    except duckdb.Error:
        if problems:
            raise problems[0] from None
        raise


def _write_shards(
    db: duckdb.DuckDBPyConnection, scores: Table, shards: Table, config: Config, settings: Mapping[str, Any]
) -> None:
    sql = statements()
    create_view(db, scores.spec, scores.files())
    db.execute(sql["runs"], _only(config, "min_rollouts", "weights"))
    db.execute("CREATE MACRO filled(value, n) AS list_resize([value], n, value)")
    shards.replace(_shard_parts(db, sql), settings)
    create_view(db, shards.spec, shards.files())


def _shard_parts(db: duckdb.DuckDBPyConnection, sql: Mapping[str, str]) -> Iterator[pa.Table]:
    longest = "SELECT coalesce(max(len(prompt_ids) + len(response_ids)), 1) FROM trajectories"
    ((tokens,),) = db.execute(longest).fetchall()
    rows = max(1, min(_SHARDS_A_PART, _TOKENS_A_PART // max(tokens, 1)))
    with contextlib.closing(db.cursor()) as cursor:
        for batch in _parts(db, sql["trajectories"], {}, rows):
            # DuckDB computes one record batch a thread.
            cursor.register("batch", pa.Table.from_batches(batch.combine_chunks().to_batches(_BATCH_ROWS)))
            yield cursor.sql(sql["shards"]).to_arrow_table()


def beta_quantile(p: pa.ChunkedArray, a: pa.ChunkedArray, b: pa.ChunkedArray) -> pa.Array:
    """Quantiles of Beta(a, b). Without any evidence on one side (a or b is 0) all mass is at the other end; without any
    at all there is no distribution, and the answer is null."""
    from scipy.special import betaincinv

    p_C, a_C, b_C = (column.to_numpy() for column in (p, a, b))
    quantile_C = betaincinv(a_C, b_C, p_C)
    quantile_C = np.where(b_C == 0, 1.0, np.where(a_C == 0, 0.0, quantile_C))
    return pa.array(quantile_C, mask=(a_C == 0) & (b_C == 0))


def statements() -> dict[str, str]:
    """The named statements of score.sql."""
    text = Path(__file__).with_name("score.sql").read_text(encoding="utf-8")
    named = (part.partition("\n") for part in text.split("-- name: ")[1:])
    return {name.strip(): body for name, _, body in named}


def _only(config: Config, *names: str) -> Mapping[str, Any]:
    values = config.score.model_dump()
    return {name: values[name] for name in names}


def _parts(db: duckdb.DuckDBPyConnection, query: str, values: Mapping[str, Any], rows: int) -> Iterator[pa.Table]:
    for batch in db.sql(query, params=values).to_arrow_reader(rows):
        yield pa.Table.from_batches([batch])


def _drop_outdated(round_: RoundDir, content: Mapping[str, Any]) -> None:
    """Scores of other settings that were made before more rollouts came: beside the new ones they would mislead."""
    for table in round_.all_scores:
        made = table.manifest.made_with
        if any(made.get(name) != value for name, value in content.items()):
            shutil.rmtree(table.folder)


def summary(db: duckdb.DuckDBPyConnection, round_: RoundDir, config: Config) -> str:
    """One line about a round's weights."""
    create_view(db, round_.scores.spec, round_.scores.files())
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
    return f"{usable} of {chunks} chunks weighed{rest}{means}; {round_.shards.manifest.rows} training sequences"
