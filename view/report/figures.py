"""The figures of a report, out of the run's views: small tables of plain values, whatever the size of the run."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq

from ...eval.results import results_of_run
from ...store.errors import TableError
from ...store.layout import RunDir
from ...store.reader import columns
from ..status import ANSWERED

Row = dict[str, Any]

BINS = 25
_MOST_REASONS = 20
_METRICS = ("chunk_loss", "kl_mean", "audited_nll", "audited_entropy", "mean_weight")
DECODE_TO_PREFILL = 8.3
"""What an output token costs beside an input token, as the paper's Table 8 counts effort."""
_CHUNKS = 'chunks_scored WHERE start < "end"'
"""Those that the student wrote: the others stand for whole answers (sft)."""


@dataclass(frozen=True)
class Histogram:
    """How a value is distributed, in the first round and in the last."""

    name: str
    values: list[Row]
    """round, low, high (edges of the bin), share (of the round's items)."""


def rows(db: duckdb.DuckDBPyConnection, query: str, values: list[Any] | None = None) -> list[Row]:
    """A query's answer as plain values."""
    return db.sql(query, params=values or []).to_arrow_table().to_pylist()


def training(db: duckdb.DuckDBPyConnection) -> list[Row]:
    """One row an optimizer step, counted over all rounds from 1, as Fig. 3 does; [] before any training."""
    present = {name for name, *_ in columns(db, "train_metrics")}
    if not present:
        return []
    # A version that measured less, or more, may have written some of the rounds.
    metrics = ", ".join(name if name in present else f"NULL::DOUBLE AS {name}" for name in _METRICS)
    order = "ORDER BY round, step"
    return rows(db, f"SELECT row_number() OVER ({order}) AS step, round, {metrics} FROM train_metrics {order}")


def students(db: duckdb.DuckDBPyConnection) -> list[Row]:
    """What the student of each round writes: length, entropy, repetition, cut off."""
    return rows(
        db,
        """
        SELECT
            round, count(*) AS trajectories, avg(tokens) AS length, quantile_cont(tokens, 0.1) AS length_low,
            quantile_cont(tokens, 0.9) AS length_high, sum(mean_entropy * tokens) / sum(tokens) AS entropy,
            avg(repetition) AS repetition, avg((finish_reason = 'length')::INTEGER) AS cut_off,
            avg(len(prompt_ids)) AS prompt_length
        FROM (SELECT * EXCLUDE (prompt_text, question, response_text) FROM trajectories_scored WHERE tokens > 0)
        GROUP BY round ORDER BY round
        """,
    )


def audits(db: duckdb.DuckDBPyConnection) -> list[Row]:
    """What the audit of each round asked for, got, and found."""
    return rows(
        db,
        """
        SELECT
            chunks.round, count(*) AS chunks, avg(pi_freq) AS phi, avg(pi_teacher) AS weight, avg(prior) AS prior,
            avg("end" - start) AS chunk_tokens, sum(bill.prompt_tokens)::BIGINT AS prompt_tokens,
            sum(bill.completion_tokens)::BIGINT AS completion_tokens, sum(bill.rollouts)::BIGINT AS rollouts,
            sum(bill.answered)::BIGINT AS answered, sum(bill.cost_usd) AS cost_usd,
            sum(accepted) / sum(draft_tokens) AS accepted
        FROM chunks_scored AS chunks
        LEFT JOIN (
            SELECT
                chunk_id, count(*) AS rollouts, count(*) FILTER (status IN ('ok', 'empty')) AS answered,
                sum(prompt_tokens) AS prompt_tokens, sum(completion_tokens) AS completion_tokens,
                sum(cost_usd) AS cost_usd
            FROM rollouts GROUP BY chunk_id
        ) AS bill USING (chunk_id)
        GROUP BY chunks.round ORDER BY chunks.round
        """,
    )


def rewards(db: duckdb.DuckDBPyConnection) -> list[Row]:
    """What the grader said in each round, and how many prompts have samples of different rewards; [] without grpo."""
    return rows(
        db,
        """
        SELECT round, avg(reward) AS reward, avg((low < high)::INTEGER) AS signal
        FROM (
            SELECT trajectories.round, avg(reward) AS reward, min(reward) AS low, max(reward) AS high
            FROM rewards JOIN (SELECT trajectory_id, round, prompt_id FROM trajectories) AS trajectories
                USING (trajectory_id)
            GROUP BY trajectories.round, prompt_id
        )
        GROUP BY round ORDER BY round
        """,
    )


def distributions(db: duckdb.DuckDBPyConnection) -> dict[str, Histogram]:
    """Histograms by name, of the first round and the last that have been scored."""
    return {
        "phi": _histogram(db, "phi", "chunks_scored", "pi_freq", unit_interval=True),
        "weight": _histogram(db, "weight", "chunks_scored", "pi_teacher", unit_interval=True),
        "prior": _histogram(db, "prior", _CHUNKS, "prior", unit_interval=True),
        "anchor_entropy": _histogram(db, "anchor_entropy", _CHUNKS, "anchor_entropy"),
        "length": _histogram(db, "length", "trajectories_scored WHERE tokens > 0", "tokens"),
        "repetition": _histogram(db, "repetition", "trajectories_scored", "repetition", unit_interval=True),
    }


def _histogram(
    db: duckdb.DuckDBPyConnection, name: str, view: str, column: str, *, unit_interval: bool = False
) -> Histogram:
    source = f"(SELECT round, {column} FROM {view})"
    ends = f"SELECT min(round), max(round), min({column}), max({column}) FROM {source} WHERE {column} IS NOT NULL"
    first, last, low, high = db.execute(ends).fetchall()[0]
    if first is None:
        return Histogram(name, [])
    low, high = (0.0, 1.0) if unit_interval else (float(low), float(high))
    width = (high - low) / BINS or 1.0
    query = f"""
        SELECT round, least(floor(({column} - ?) / ?), ?)::INTEGER AS bin, count(*) AS count
        FROM {source} WHERE {column} IS NOT NULL AND round IN (?, ?) GROUP BY ALL
    """
    counts = {(r["round"], r["bin"]): r["count"] for r in rows(db, query, [low, width, BINS - 1, first, last])}
    totals = {r: sum(count for (round_, _), count in counts.items() if round_ == r) for r in (first, last)}
    return Histogram(
        name,
        [
            {"round": r, "low": low + b * width, "high": low + (b + 1) * width,
             "share": counts.get((r, b), 0) / totals[r]}
            for r in sorted({first, last})
            for b in range(BINS)
        ],
    )  # fmt: skip


def accuracy(run: RunDir) -> list[Row]:
    """Pass@1 of each benchmark and grader after each number of rounds; [] where nothing was evaluated to its end.

    A row: rounds, benchmark, grader, accuracy (mean over the samples of all questions), low and high (of its 95 %
    interval), answers (how many those are).
    """
    return [
        {"rounds": result.rounds, "benchmark": result.benchmark, "grader": grader.grader,
         "accuracy": grader.pass_at_1.value, "low": grader.pass_at_1.low, "high": grader.pass_at_1.high,
         "answers": result.questions * result.samples}
        for result in results_of_run(run)
        for grader in result.graders
    ]  # fmt: skip


def main_benchmark(accuracy: list[Row]) -> tuple[str, str]:
    """The benchmark and grader with the most answers, the first of equals."""
    answers: dict[tuple[str, str], int] = {}
    for row in accuracy:
        key = row["benchmark"], row["grader"]
        answers[key] = answers.get(key, 0) + row["answers"]
    return max(sorted(answers), key=lambda key: (answers[key], key[1] != "dapo_regex"))


@dataclass(frozen=True)
class Cost:
    """Teacher tokens of an average trajectory, by the paper's formula and as billed (Table 8)."""

    label: str
    chunks: float
    """M, as selected on average."""
    input_predicted: float
    """M (P + L/2), tokens of the student."""
    input_billed: float
    output_predicted: float
    """M N C, tokens of the student."""
    output_billed: float
    effort_predicted: float
    effort_billed: float
    """Relative to a teacher that writes the whole response once: (P, L)."""
    usd: float


def costs(student_rows: list[Row], audit_rows: list[Row], rollouts: int) -> list[Cost]:
    """Table 8 for each round that was audited, and for all of them together."""
    audited = {row["round"]: row for row in audit_rows if row["rollouts"] and row["chunk_tokens"]}
    pairs = [(student, audited[student["round"]]) for student in student_rows if student["round"] in audited]
    out = [_cost(f"round {audit['round']}", [(student, audit)], rollouts) for student, audit in pairs]
    return [*out, _cost("all rounds", pairs, rollouts)] if len(out) > 1 else out


def _cost(label: str, pairs: list[tuple[Row, Row]], rollouts: int) -> Cost:
    n = sum(student["trajectories"] for student, _ in pairs)

    def mean(column: str) -> float:
        return sum(student[column] * student["trajectories"] for student, _ in pairs) / n

    prompt, length = mean("prompt_length"), mean("length")
    chunks = sum(audit["chunks"] for _, audit in pairs) / n
    chunk_tokens = sum(audit["chunk_tokens"] * audit["chunks"] for _, audit in pairs) / (chunks * n)
    predicted = chunks * (prompt + length / 2), chunks * rollouts * chunk_tokens
    billed = tuple(sum(audit[name] or 0 for _, audit in pairs) / n for name in ("prompt_tokens", "completion_tokens"))
    whole = prompt + DECODE_TO_PREFILL * length
    efforts = [(input_ + DECODE_TO_PREFILL * output) / whole for input_, output in (predicted, billed)]
    return Cost(
        label, chunks, predicted[0], billed[0], predicted[1], billed[1], efforts[0], efforts[1],
        sum(audit["cost_usd"] or 0.0 for _, audit in pairs),
    )  # fmt: skip


def extreme_chunks(db: duckdb.DuckDBPyConnection, count: int, *, best: bool) -> list[Row]:
    """The chunks of the lowest weight, or of the highest; of weights that look equal those of the highest entropy."""
    order = "DESC" if best else "ASC"
    return rows(
        db,
        "SELECT * FROM chunks_scored WHERE pi_teacher IS NOT NULL"
        f" ORDER BY round(pi_teacher, 2) {order}, anchor_entropy DESC, chunk_id LIMIT {count}",
    )


def newest_chunks(run: RunDir, db: duckdb.DuckDBPyConnection, count: int) -> list[Row]:
    """The chunks of the rollouts that were stored last."""
    for round_ in reversed(run.rounds()):
        parts: list[Path] = []
        with contextlib.suppress(TableError):  # damaged, as the page says
            parts = round_.rollouts.files()
        if parts:
            # A part's name begins with the time of its writing.
            ids = pq.read_table(max(parts, key=lambda part: part.name), columns=["chunk_id"])["chunk_id"].to_pylist()
            newest = list(dict.fromkeys(reversed(ids)))[:count]
            found = rows(db, "SELECT * FROM chunks_scored WHERE list_contains(?, chunk_id)", [newest])
            return sorted(found, key=lambda row: newest.index(row["chunk_id"]))
    return []


def failures(db: duckdb.DuckDBPyConnection) -> list[Row]:
    """Rollouts without an answer by status and reason, the most frequent first, with their share of all rollouts."""
    return rows(
        db,
        f"""
        SELECT
            status, finish_reason AS reason, count(*) AS rollouts,
            count(*) / (SELECT count(*) FROM rollouts) AS share, max(chunks.round) AS last_round
        FROM rollouts LEFT JOIN (SELECT chunk_id, round FROM chunks) AS chunks USING (chunk_id)
        WHERE status NOT IN {ANSWERED} GROUP BY ALL ORDER BY rollouts DESC, status, reason LIMIT {_MOST_REASONS}
        """,
    )


def bundle_name(path: Path) -> str:
    """The run's name as a title: its last two folders tell runs of one project apart."""
    return "/".join(path.resolve().parts[-2:])
