"""`omniopd score`: what the teacher said, or a grader, in; the shards table out. DuckDB runs score.sql.

omniopd weighs chunks (the scores table); the baselines make their training sequences of the teacher's whole answers
(sft), of the trajectories alone (opd), or of graded trajectories (the rewards table, grpo). docs/baselines.md.
"""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from duckdb.func import ARROW, SPECIAL
from duckdb.sqltypes import DOUBLE, VARCHAR

from ...graders.find import make_grader
from ...method.similarity.metrics import find_metric, make_encoder, similarities
from ...store.config import Config, made_with
from ...store.errors import InputError
from ...store.layout import RoundDir, RunDir
from ...store.model import end_of_turn, load_tokenizer, resolve_model
from ...store.sql import connect, create_view, limit
from ...store.table import Table
from .answers import answer_shards
from .checks import check_inputs, check_shards
from .rewards import reward_parts
from .sql import SHARDS_A_PART, TOKENS_A_PART, parts, statements
from .summary import summary

_SCORES_A_PART = 1 << 18
_BATCH_ROWS = 512


def score(run: RunDir, index: int, config: Config) -> str:
    """Build a round's training sequences. Returns a line about them.

    The teacher is not asked. Scores under another phi, unit or alpha stay beside the new ones; the shards are replaced
    and so always those of the config in force.

    Raises:
        TableError: the rollouts are not complete, or rows of the tables contradict each other.
        InputError: the metric, its model or the grader cannot be used.
    """
    round_ = run.round(index)
    inputs = (
        round_.trajectories.require(f"omniopd generate {run.path} --round {index}"),
        round_.chunks.require(f"omniopd audit {run.path} --round {index}"),
        round_.rollouts.require(f"omniopd audit {run.path} --round {index}"),
    )
    content = {f"input.{t.spec.name}": [part.sha256 for part in t.manifest.parts] for t in inputs}
    objective = config.train.objective
    with round_.lock("score"), contextlib.closing(connect([round_])) as db:
        limit(db, config.score.memory_gb, config.score.threads, run.spill)
        check_inputs(db, round_, objective)
        settings = made_with(config, "shards") | content | _weigh(db, round_, config, content)
        if not _is_current(round_.shards, settings):
            if objective == "sft":
                folder = resolve_model(run.policy_for(index, config))
                tokenizer = load_tokenizer(folder)
                sequences = answer_shards(db, tokenizer, end_of_turn(folder, tokenizer, config))
            else:
                _write_runs(db, config)
                sequences = _shard_parts(db)
            round_.shards.replace(sequences, settings)
            create_view(db, round_.shards.spec, round_.shards.files())
        check_shards(db, round_, objective)
        _drop_outdated(round_, content)
        return summary(db, round_, config)


def _weigh(db: duckdb.DuckDBPyConnection, round_: RoundDir, config: Config, content: dict[str, Any]) -> dict[str, Any]:
    """Fill the table that the weights come from, where the objective has one. Returns what names its content."""
    if config.train.objective == "omniopd":
        scores = round_.scores_of(config.score)
        if not _is_current(scores, settings := made_with(config, "scores") | content):
            _write_scores(db, scores, config, settings)
        create_view(db, scores.spec, scores.files())
        return {"scores": scores.folder.name}
    if config.train.objective != "grpo":
        return {}
    rewards = round_.rewards
    with contextlib.closing(make_grader(config.score.grader)) as grader:
        settings = made_with(config, "rewards") | content | {f"grader.{k}": v for k, v in grader.settings.items()}
        if not _is_current(rewards, settings):
            rewards.replace(reward_parts(db, grader), settings)
    create_view(db, rewards.spec, rewards.files())
    return {"rewards": [part.sha256 for part in rewards.manifest.parts]}


def _is_current(table: Table, settings: Mapping[str, Any]) -> bool:
    manifest = table.manifest
    return manifest.complete and dict(manifest.made_with) == settings


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
        scores.replace(parts(db, sql["scores"], values, _SCORES_A_PART), settings)
    except duckdb.Error:
        if problems:
            raise problems[0] from None
        raise


def _write_runs(db: duckdb.DuckDBPyConnection, config: Config) -> None:
    """The table of weighed spans that the trajectories' shards are made of."""
    sql = statements()
    if config.train.objective == "omniopd":
        db.execute(sql["runs"], _only(config, "min_rollouts", "weights"))
    else:
        db.execute(sql["rewarded runs" if config.train.objective == "grpo" else "no runs"])


def _shard_parts(db: duckdb.DuckDBPyConnection) -> Iterator[pa.Table]:
    sql = statements()
    db.execute("CREATE MACRO filled(value, n) AS list_resize([value], n, value)")
    longest = "SELECT coalesce(max(len(prompt_ids) + len(response_ids)), 1) FROM trajectories"
    ((tokens,),) = db.execute(longest).fetchall()
    rows = max(1, min(SHARDS_A_PART, TOKENS_A_PART // max(tokens, 1)))
    with contextlib.closing(db.cursor()) as cursor:
        for batch in parts(db, sql["trajectories"], {}, rows):
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


def _only(config: Config, *names: str) -> Mapping[str, Any]:
    values = config.score.model_dump()
    return {name: values[name] for name in names}


def _drop_outdated(round_: RoundDir, content: Mapping[str, Any]) -> None:
    """Scores of other settings that were made before more rollouts came: beside the new ones they would mislead."""
    for table in round_.all_scores:
        made = table.manifest.made_with
        if any(made.get(name) != value for name, value in content.items()):
            shutil.rmtree(table.folder)
