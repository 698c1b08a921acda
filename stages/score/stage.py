"""`omniopd score`: what the teacher said, or a grader, in; the shards table out. DuckDB runs score.sql.

Check the inputs, fill the table that weights come from, build the training sequences, check them. What the sequences
are made of is said by the objective: method/objectives/.
"""

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from duckdb.func import ARROW, SPECIAL
from duckdb.sqltypes import DOUBLE, VARCHAR

from ...graders.find import make_grader
from ...method.objectives.record import Answers
from ...method.objectives.registry import objective_of
from ...method.similarity.metrics import find_metric, make_encoder, similarities
from ...store.config import Config, made_with
from ...store.errors import InputError
from ...store.layout import RoundDir, RunDir
from ...store.model import end_of_turn, load_tokenizer, resolve_model
from ...store.sql import connect, create_view, limit
from ...store.table import Table
from .answers import answer_shards
from .checks import check_inputs, check_shards
from .drafts import fill_drafts, refuse_none_accepted
from .rewards import reward_parts
from .sql import parts, statements, values_of
from .summary import summary
from .trajectories import trajectory_shards

_SCORES_A_PART = 1 << 18


def score(run: RunDir, index: int, config: Config) -> str:
    """Build a round's training sequences. Returns a line about them.

    The teacher is not asked. Scores under another phi, unit or alpha stay beside the new ones; the shards are replaced
    and so always those of the present config.

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
    objective = objective_of(config)
    with round_.lock("score"), contextlib.closing(connect([round_])) as db:
        limit(db, config.score.memory_gb, config.score.threads, run.spill)
        check_inputs(db, round_, objective)
        settings = made_with(config, "shards") | content | _weigh(db, run, index, config, content)
        if not _is_current(round_.shards, settings):
            if isinstance(objective.learns, Answers):
                folder = resolve_model(run.policy_for(index, config))
                tokenizer = load_tokenizer(folder)
                stop_id = end_of_turn(folder, tokenizer, config)
                sequences = answer_shards(db, objective.learns, tokenizer, stop_id)
            else:
                sequences = trajectory_shards(db, objective.learns, config.score)
            round_.shards.replace(sequences, settings)
            create_view(db, round_.shards.spec, round_.shards.files())
        check_shards(db, round_, objective)
        _drop_outdated(round_, content)
        return summary(db, round_, config)


def _weigh(
    db: duckdb.DuckDBPyConnection, run: RunDir, index: int, config: Config, content: dict[str, Any]
) -> dict[str, Any]:
    """Fill the table that the weights come from, where the objective has one. Returns what names its content."""
    match objective_of(config).weights_from:
        case None:
            return {}
        case "scores":
            return _scored(db, run.round(index), config, content)
        case "rewards":
            return _graded(db, run.round(index), config, content)
        case "drafts":
            folder = resolve_model(run.policy_for(index, config))
            return _drafted(db, run.round(index).drafts, folder, config, content)


def _scored(db: duckdb.DuckDBPyConnection, round_: RoundDir, config: Config, content: dict[str, Any]) -> dict[str, Any]:
    scores = round_.scores_of(config.score)
    if not _is_current(scores, settings := made_with(config, "scores") | content):
        _write_scores(db, scores, config, settings)
    create_view(db, scores.spec, scores.files())
    return {"scores": scores.folder.name}


def _graded(db: duckdb.DuckDBPyConnection, round_: RoundDir, config: Config, content: dict[str, Any]) -> dict[str, Any]:
    rewards = round_.rewards
    with contextlib.closing(make_grader(config.score.grader)) as grader:
        settings = made_with(config, "rewards") | content | {f"grader.{k}": v for k, v in grader.settings.items()}
        if not _is_current(rewards, settings):
            rewards.replace(reward_parts(db, grader), settings)
    create_view(db, rewards.spec, rewards.files())
    return {"rewards": [part.sha256 for part in rewards.manifest.parts]}


def _drafted(
    db: duckdb.DuckDBPyConnection, drafts: Table, folder: Path, config: Config, content: dict[str, Any]
) -> dict[str, Any]:
    if not _is_current(drafts, settings := made_with(config, "drafts") | content):
        fill_drafts(db, drafts, folder, config, settings)
    create_view(db, drafts.spec, drafts.files())
    refuse_none_accepted(db, config)
    return {"drafts": [part.sha256 for part in drafts.manifest.parts]}


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
    values = values_of(sql["scores"], config.score)
    try:
        scores.replace(parts(db, sql["scores"], values, _SCORES_A_PART), settings)
    except duckdb.Error:
        if problems:
            raise problems[0] from None
        raise


def beta_quantile(p: pa.ChunkedArray, a: pa.ChunkedArray, b: pa.ChunkedArray) -> pa.Array:
    """Quantiles of Beta(a, b). Without any evidence on one side (a or b is 0) all mass is at the other end; without any
    at all there is no distribution, and the answer is null."""
    from scipy.special import betaincinv

    p_C, a_C, b_C = (column.to_numpy() for column in (p, a, b))
    quantile_C = betaincinv(a_C, b_C, p_C)
    quantile_C = np.where(b_C == 0, 1.0, np.where(a_C == 0, 0.0, quantile_C))
    return pa.array(quantile_C, mask=(a_C == 0) & (b_C == 0))


def _drop_outdated(round_: RoundDir, content: Mapping[str, Any]) -> None:
    """Scores of other settings that were made before more rollouts came: beside the new ones they would mislead."""
    for table in round_.all_scores:
        made = table.manifest.made_with
        if any(made.get(name) != value for name, value in content.items()):
            shutil.rmtree(table.folder)
