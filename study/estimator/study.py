"""`omniopd study`: a scored run in, what its estimator is worth out. Reads the tables; asks no paid teacher."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from ...method.similarity.metrics import METRICS, Metric, find_metric, make_encoder, similarities
from ...stages.progress import progress
from ...store.config import Config
from ...store.errors import InputError, without_credentials
from ...store.layout import RoundDir, RunDir
from ...store.model import resolve_model, weights_hash
from ...store.schema import ESTIMATOR_STUDY, TRUTH
from .alpha import Evidence, Optimum, optimum
from .compare import Comparison, Estimate, compare
from .echo_server import EchoServer
from .oracle import Oracle, Text
from .plot import plot

SERVER = "server"
"""In place of a model: the config's own teacher, if it returns log-probs."""
_BUDGETS = (1, 2, 5, 10, 20, 50, 100)
"""Rollouts a chunk at which the estimators are compared, as far as the run has that many."""
_CHUNKS_A_PART = 1024
_LEAST_TRAJECTORIES = 3


def study_estimator(run: RunDir, index: int, config: Config, teacher: str) -> str:
    """Table 3 on a run's own rollouts. Returns it as text; it is also kept as Parquet, and as a plot.

    Raises:
        InputError: the teacher cannot be used, or there are too few chunks with all their rollouts.
    """
    round_ = _require(run, index)
    truth = true_probabilities(run, round_, config, teacher)
    frame = _answers(round_).join(truth, on="chunk_id")
    n_max = config.teacher.most_rollouts
    full = frame.filter(pl.col("text").list.len() >= n_max).with_columns(pl.col("text").list.head(n_max))
    trajectory_C = _numbers(full["trajectory_id"])
    _require_enough(trajectory_C, f"chunks with all {n_max} rollouts")
    metrics = METRICS | ({} if config.score.phi in METRICS else {config.score.phi: find_metric(config.score)})
    rows: list[dict[str, Any]] = []
    for name, metric in metrics.items():
        phi_CR = _similarities(metric, full, config)
        for n in [n for n in _BUDGETS if n < n_max] + [n_max]:
            found = compare(
                phi_CR, full["prior"].to_numpy(), full["pi_true"].to_numpy(), trajectory_C,
                config.score.alpha, n, config.select.seed,
            )  # fmt: skip
            rows.append(_row(name, config, n, found))
    table = round_.study("estimator", ESTIMATOR_STUDY)
    table.replace([pa.Table.from_pylist(rows, schema=ESTIMATOR_STUDY.schema)], {"teacher": _identity(teacher, config)})
    head = (
        f"{len(full)} chunks of {trajectory_C.max() + 1} trajectories, {len(frame) - len(full)} excluded: fewer than"
        f" {n_max} rollouts, {truth['straddled'].sum()} cut inside a teacher token; unit {config.score.unit},"
        f" alpha {config.score.alpha:g}; 95 % intervals by bootstrap over trajectories\n"
        f"mean true probability {full['pi_true'].mean():.3f}, mean prior {full['prior'].mean():.3f}"
    )
    picture = plot(rows, table.folder / "estimator.png")
    return f"{head}\n\n{_table3(rows)}\n\n{table.folder}\n{picture}"


def study_alpha(run: RunDir, index: int, config: Config, teacher: str | None) -> str:
    """The best prior strength for a round's scores (Theorem 4.1(c)), and against the true probability where a white-box
    teacher is given. Returns a table.

    Raises:
        InputError: the round is not scored, or too few chunks have two rollouts.
    """
    round_ = _require(run, index)
    scores = pl.DataFrame(round_.scores_of(config.score).require(f"omniopd score {run.path} --round {index}").read())
    chunks = pl.DataFrame(round_.chunks.read(["chunk_id", "trajectory_id"]))
    frame = scores.filter(pl.col("n") >= 2).join(chunks, on="chunk_id").sort("chunk_id")
    targets: dict[str, pl.DataFrame] = {"the expected similarity (Theorem 4.1c)": frame}
    if teacher is not None:
        truth = true_probabilities(run, round_, config, teacher)
        targets["the teacher's true probability (Table 3)"] = frame.join(truth, on="chunk_id").sort("chunk_id")
    n = config.teacher.most_rollouts
    lines = [
        f"{len(frame)} of {len(scores)} chunks have two rollouts or more; {config.score.phi} over {config.score.unit}"
        f" units, N = {n}; 95 % intervals by bootstrap over trajectories",
        f"{'target':<42}{'best alpha':>26}{'MSE at 0':>12}{f'at {config.score.alpha:g}':>12}{'at best':>12}",
    ]
    for name, rows in targets.items():
        trajectory_C = _numbers(rows["trajectory_id"])
        _require_enough(trajectory_C, "chunks with two rollouts")
        freq_C, var_C, n_C, prior_C = (rows[name].to_numpy() for name in ("pi_freq", "phi_var", "n", "prior"))
        evidence = Evidence(freq_C, var_C, n_C, prior_C, trajectory_C)
        target_C = rows["pi_true"].to_numpy() if "pi_true" in rows.columns else None
        lines.append(_optimum_line(name, optimum(evidence, target_C, n, config.score.alpha, config.select.seed)))
    return "\n".join(lines)


def true_probabilities(run: RunDir, round_: RoundDir, config: Config, teacher: str) -> pl.DataFrame:
    """The teacher's probability of every chunk: chunk_id, pi_true, straddled. Kept beside the round, so that a second
    study of the same teacher costs nothing and an interrupted run resumes."""
    table = round_.study("truth", TRUTH)
    made_with = {
        "teacher": _identity(teacher, config),
        "chunks": [part.sha256 for part in round_.chunks.manifest.parts],
    }
    if dict(table.manifest.made_with) != made_with:
        table.replace([], made_with)
    table.begin(made_with)
    chunks = pl.DataFrame(round_.chunks.read(["chunk_id", "trajectory_id", "prefix_text", "chunk_text"]))
    prompts = pl.DataFrame(round_.trajectories.read(["trajectory_id", "prompt_text"]))
    present = [key for (key,) in table.existing_keys()]
    missing = (
        chunks.join(prompts, on="trajectory_id")
        .filter(~pl.col("chunk_id").is_in(present) & (pl.col("chunk_text").str.len_bytes() > 0))
        .sort("chunk_id")
    )
    if len(missing):
        oracle = _oracle(teacher, config)
        with progress("truth", len(missing) + len(present), len(present)) as advance:
            for part in missing.iter_slices(_CHUNKS_A_PART):
                before = part["prompt_text"] + part["prefix_text"]
                texts = [Text(*pair) for pair in zip(before, part["chunk_text"], strict=True)]
                table.append(
                    [
                        {"chunk_id": chunk_id, "logprob": found.logprob, "tokens": found.tokens,
                         "straddled": found.straddled, "pi_true": float(np.exp(found.logprob / found.tokens))}
                        for chunk_id, found in zip(part["chunk_id"], oracle.truths(texts), strict=True)
                        if found.tokens
                    ]
                )  # fmt: skip
                advance(len(part), "")
    table.finish()
    return pl.DataFrame(table.read(["chunk_id", "pi_true", "straddled"]))


def _oracle(teacher: str, config: Config) -> Oracle:
    if teacher == SERVER:
        return EchoServer(config.teacher)
    from .white_box import WhiteBox

    return WhiteBox(resolve_model(teacher), config.student.dtype)


def _identity(teacher: str, config: Config) -> str:
    if teacher == SERVER:
        return without_credentials(f"{config.teacher.model} at {config.teacher.base_url}")
    return weights_hash(resolve_model(teacher))


def _require(run: RunDir, index: int) -> RoundDir:
    round_ = run.round(index)
    round_.trajectories.require(f"omniopd generate {run.path} --round {index}")
    round_.chunks.require(f"omniopd audit {run.path} --round {index}")
    round_.rollouts.require(f"omniopd audit {run.path} --round {index}")
    return round_


def _require_enough(trajectory_C: NDArray[np.int64], what: str) -> None:
    trajectories = len(np.unique(trajectory_C))
    if trajectories < _LEAST_TRAJECTORIES:
        raise InputError(
            f"Only {trajectories} trajectories have {what}: too few for an interval.",
            "Audit more, or set teacher.rollouts to what the run has.",
        )


def _answers(round_: RoundDir) -> pl.DataFrame:
    """Chunks with the texts of their usable rollouts, in order of their index."""
    rollouts = pl.LazyFrame(round_.rollouts.read(["chunk_id", "rollout_index", "text", "status"]))
    chunks = pl.LazyFrame(round_.chunks.read(["chunk_id", "trajectory_id", "chunk_text", "prior"]))
    usable = rollouts.filter(pl.col("status").is_in(["ok", "empty"])).sort("chunk_id", "rollout_index")
    return usable.group_by("chunk_id").agg("text").join(chunks, on="chunk_id").sort("chunk_id").collect()


def _similarities(metric: Metric, frame: pl.DataFrame, config: Config) -> NDArray[np.float64]:
    """φ of each chunk and each of its rollouts [C, R]; 0 where the chunk has no unit."""
    pairs = frame.select("chunk_text", "text").explode("text")
    chunks, texts = (pa.chunked_array([pairs[name].to_arrow().cast(pa.string())]) for name in pairs.columns)
    phi = similarities(metric, make_encoder(config), chunks, texts)
    return np.nan_to_num(phi.to_numpy(zero_copy_only=False)).reshape(len(frame), -1)


def _numbers(ids: pl.Series) -> NDArray[np.int64]:
    return ids.rank("dense").to_numpy().astype(np.int64) - 1


def _row(phi: str, config: Config, n: int, found: Comparison) -> dict[str, Any]:
    row: dict[str, Any] = {"phi": phi, "unit": config.score.unit, "alpha": config.score.alpha, "n": n}
    for name, value in vars(found).items():
        row |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
    return row


def _table3(rows: Sequence[dict[str, Any]]) -> str:
    """Table 3 with intervals; + where Bayes is better, - where it is worse, and neither where the interval holds 0."""
    columns = ("mse_freq", "mse_bayes", "corr_freq", "corr_bayes")
    lines = [f"{'phi':<10}{'N':>4}" + "".join(f"{name:>24}" for name in columns) + "   MSE corr"]
    for row in rows:
        cells = "".join(f"{_cell(row, name):>24}" for name in columns)
        lines.append(f"{row['phi']:<10}{row['n']:>4}{cells}   {_sign(row, 'mse_gain'):^3} {_sign(row, 'corr_gain'):^4}")
    return "\n".join([*lines, "+ Bayes is better, - it is worse, = the interval of the difference holds 0"])


def _cell(row: dict[str, Any], name: str) -> str:
    value, low, high = (row[name + end] for end in ("", "_low", "_high"))
    return "not defined" if np.isnan(value) else f"{value:.4f} [{low:.4f}, {high:.4f}]"


def _sign(row: dict[str, Any], name: str) -> str:
    return "+" if row[f"{name}_low"] > 0 else "-" if row[f"{name}_high"] < 0 else "="


def _optimum_line(name: str, found: Optimum) -> str:
    errors = "".join(f"{mse:>12.5f}" for mse in (found.mse_at_zero, found.mse_at_config, found.mse_at_optimum))
    return f"{name:<42}{_alpha(found.alpha):>26}{errors}"


def _alpha(estimate: Estimate) -> str:
    return f"{estimate.value:.3g} [{estimate.low:.3g}, {estimate.high:.3g}]"
