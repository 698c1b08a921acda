"""DuckDB for people: the tables of a run as views that can be read and nothing else.

The database has no access to files at all. Its views read Arrow data sets that were opened beforehand, so no statement,
however it is written, can change the run or read another file (docs/decisions/0013).
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from .errors import TableError
from .evals import evals_of_run
from .files import read_json_lines
from .layout import RoundDir, RunDir
from .schema import ALL_SCORES, EVAL_RESPONSES, EVAL_VERDICTS, TABLES, TableSpec
from .sql import comment, connect, create_view, doc_and_unit, quoted
from .table import Table

_DERIVED = {
    "chunks_scored": (
        "a chunk, its weight under the settings of the shards (none if too few rollouts came), and its rollouts",
        """
        SELECT
            chunks.*, row_number() OVER (PARTITION BY chunks.trajectory_id ORDER BY chunks.start)::INTEGER AS fork,
            scores.phi, scores.unit, scores.alpha, scores.n, scores.k_sem, scores.pi_freq,
            CASE WHEN scores.n >= needed THEN scores.pi_teacher END AS pi_teacher, scores.phi_var,
            CASE WHEN scores.n >= needed THEN scores.pi_low END AS pi_low,
            CASE WHEN scores.n >= needed THEN scores.pi_high END AS pi_high,
            coalesce(answers.rollouts, 0) AS rollouts, coalesce(answers.failed, 0) AS failed,
            answers.teacher_tokens, answers.cost_usd, read.draft_tokens, read.accepted, read.consensus
        FROM chunks
        LEFT JOIN scores USING (chunk_id)
        LEFT JOIN _needed USING (round)
        LEFT JOIN (
            SELECT
                chunk_id, count(*) AS rollouts, count(*) FILTER (status NOT IN ('ok', 'empty')) AS failed,
                sum(prompt_tokens + completion_tokens)::BIGINT AS teacher_tokens, sum(cost_usd) AS cost_usd
            FROM rollouts GROUP BY chunk_id
        ) AS answers USING (chunk_id)
        LEFT JOIN (
            SELECT
                chunk_id, sum(len(ids))::INTEGER AS draft_tokens, sum(accepted)::INTEGER AS accepted,
                avg(consensus) AS consensus
            FROM drafts GROUP BY chunk_id
        ) AS read USING (chunk_id)
        """,
        {
            "fork": ("which chunk of the trajectory it is, by position, from 1", ""),
            "rollouts": ("rollouts that are there, failed ones too", ""),
            "failed": ("of these, without an answer: refused, filtered or failed", ""),
            "teacher_tokens": ("prompt and completion tokens of the chunk's rollouts", "teacher tokens"),
            "cost_usd": ("price of the chunk's rollouts", "USD"),
            "draft_tokens": ("of the drafts that go on from here (draft)", "tokens"),
            "accepted": ("of these, before the first that the policy rejects", "tokens"),
            "consensus": ("mean of the drafts' consensus", ""),
        },
    ),
    "trajectories_scored": (
        "a trajectory and the figures of its chunks",
        """
        SELECT
            trajectories.*, len(response_ids)::INTEGER AS tokens, list_avg(entropies) AS mean_entropy,
            list_max(entropies) AS max_entropy, coalesce(audit.chunks, 0) AS chunks, audit.mean_weight,
            audit.min_weight, audit.teacher_tokens, audit.cost_usd
        FROM trajectories
        LEFT JOIN (
            SELECT
                trajectory_id, count(*) AS chunks, avg(pi_teacher) AS mean_weight, min(pi_teacher) AS min_weight,
                sum(teacher_tokens)::BIGINT AS teacher_tokens, sum(cost_usd) AS cost_usd
            FROM chunks_scored GROUP BY trajectory_id
        ) AS audit USING (trajectory_id)
        """,
        {
            "tokens": ("length of the response, stop token included", "tokens"),
            "mean_entropy": ("mean entropy of the response's tokens", "nats"),
            "max_entropy": ("highest entropy of the response's tokens", "nats"),
            "chunks": ("audited chunks", ""),
            "mean_weight": ("mean pi_teacher of the chunks", ""),
            "min_weight": ("lowest pi_teacher of the chunks", ""),
            "teacher_tokens": ("prompt and completion tokens of all rollouts", "teacher tokens"),
            "cost_usd": ("price of all rollouts", "USD"),
        },
    ),
}
"""Joins that everybody writes: doc, query, and docs and units of the columns that no table has."""


def open_reader(
    run: RunDir, *, allow_files: bool = False, left_out: list[TableError] | None = None
) -> duckdb.DuckDBPyConnection:
    """An in-memory database with a view for each table of a run, derived ones included.

    Args:
        allow_files: Give the database its usual access to files and extensions: for users who ask for it.
        left_out: Takes what is wrong with tables that are damaged, and they are left out; None: that is raised.

    Raises:
        TableError: a file is missing or damaged.
    """
    rounds = run.rounds()
    db = connect(rounds) if allow_files else duckdb.connect()
    if not allow_files:
        db.execute("SET preserve_insertion_order = false")
        for spec in TABLES.values():
            tables = [table for round_ in rounds for table in round_.tables if table.spec is spec]
            _arrow_view(db, spec, _files(tables, left_out))
        _arrow_view(db, ALL_SCORES, _files([table for round_ in rounds for table in round_.all_scores], left_out))
    _needed_rollouts(db, rounds)
    # Where two tables have a column of one name, the first says what it is.
    known = {field.name: doc_and_unit(field) for spec in reversed(TABLES.values()) for field in spec.schema}
    for name, (doc, query, added) in _DERIVED.items():
        db.execute(f"CREATE VIEW {name} AS {query}")
        comment(db, name, doc, [(column, *(known | added)[column]) for column in _columns(db, name)])
    _train_metrics(db, run)
    _evaluations(db, run, left_out)
    if not allow_files:
        # python_enable_replacements: a query could otherwise name any variable of this program as its table.
        db.execute("SET python_enable_replacements = false")
        db.execute("SET enable_external_access = false")
        db.execute("SET lock_configuration = true")
    return db


def views(db: duckdb.DuckDBPyConnection) -> list[tuple[str, str]]:
    """Name and doc of each view that a user may ask for."""
    query = "SELECT view_name, comment FROM duckdb_views() WHERE NOT internal AND comment IS NOT NULL ORDER BY view_oid"
    return db.execute(query).fetchall()


def columns(db: duckdb.DuckDBPyConnection, view: str) -> list[tuple[str, str, str]]:
    """Name, type, and doc with unit of each column of a view."""
    query = (
        "SELECT column_name, data_type, coalesce(comment, '') FROM duckdb_columns()"
        " WHERE table_name = ? AND NOT internal ORDER BY column_index"
    )
    return db.execute(query, [view]).fetchall()


def _columns(db: duckdb.DuckDBPyConnection, view: str) -> list[str]:
    return [name for name, *_ in columns(db, view)]


def _files(tables: Sequence[Table], left_out: list[TableError] | None) -> list[Path]:
    paths: list[Path] = []
    for table in tables:
        try:
            paths += table.files()
        except TableError as error:
            if left_out is None:
                raise
            left_out.append(error)
    return paths


def _needed_rollouts(db: duckdb.DuckDBPyConnection, rounds: Sequence[RoundDir]) -> None:
    """How many rollouts with an answer a chunk of each round needed, for `score` to give it a weight."""
    db.execute("CREATE TABLE _needed (round INTEGER, needed INTEGER)")
    for round_ in rounds:
        with contextlib.suppress(TableError):
            needed = round_.shards.manifest.made_with.get("score.min_rollouts", 1)
            db.execute("INSERT INTO _needed VALUES (?, ?)", [round_.index, needed])


def _arrow_view(db: duckdb.DuckDBPyConnection, spec: TableSpec, paths: Sequence[Path]) -> None:
    if not paths:
        create_view(db, spec, [])
        return
    import pyarrow.dataset as ds  # brings in pandas

    # Rows come as the schema says, whatever an older version has left out.
    db.register(f"_{spec.name}", ds.dataset(list(paths), schema=spec.schema, format="parquet"))
    db.execute(f"CREATE VIEW {spec.name} AS SELECT * FROM _{spec.name}")
    comment(db, spec.name, spec.doc, [(field.name, *doc_and_unit(field)) for field in spec.schema])


def _train_metrics(db: duckdb.DuckDBPyConnection, run: RunDir) -> None:
    """The trainer's metrics of all rounds: small, so they are read at once."""
    tables = [_metrics_of(run, round_.index) for round_ in run.rounds()]
    tables = [table for table in tables if table is not None and table.num_rows]
    if not tables:
        return
    rows = pa.concat_tables(tables, promote_options="permissive")
    db.register("_train_metrics", rows)
    db.execute("CREATE VIEW train_metrics AS SELECT * FROM _train_metrics")
    docs = [(field.name, *doc_and_unit(field)) for table in tables for field in table.schema if field.metadata]
    comment(db, "train_metrics", "one row an optimizer step", docs)


def _evaluations(db: duckdb.DuckDBPyConnection, run: RunDir, left_out: list[TableError] | None) -> None:
    """The verdicts of all evaluations of the run's policies, each with its response."""
    import pyarrow.dataset as ds

    found: list[tuple[int | None, str, Any, Any]] = []
    for folder in evals_of_run(run):
        responses = _files([folder.responses()], left_out)
        verdicts = _files([folder.verdicts(grader) for grader in folder.graders], left_out)
        if responses and verdicts:
            read = (
                ds.dataset(paths, schema=spec.schema, format="parquet")
                for paths, spec in ((responses, EVAL_RESPONSES), (verdicts, EVAL_VERDICTS))
            )
            found.append((folder.rounds, folder.path.name, *read))
    nothing = (None, "", EVAL_RESPONSES.schema.empty_table(), EVAL_VERDICTS.schema.empty_table())
    selects: list[str] = []
    for number, (rounds, benchmark, responses, verdicts) in enumerate(found or [nothing]):
        db.register(f"_responses_{number}", responses)
        db.register(f"_verdicts_{number}", verdicts)
        selects.append(
            f"SELECT {'NULL' if rounds is None else rounds}::INTEGER AS rounds, {quoted(benchmark)} AS benchmark, *"
            f" FROM _responses_{number} JOIN _verdicts_{number} USING (question_id, sample_index)"
        )
    db.execute(f"CREATE VIEW evaluations AS {' UNION ALL '.join(selects)}")
    docs = {field.name: doc_and_unit(field) for spec in (EVAL_RESPONSES, EVAL_VERDICTS) for field in spec.schema} | {
        "rounds": ("rounds that the policy was trained for; 0 is the initial student", ""),
        "benchmark": ("name of the benchmark", ""),
    }
    doc = "a grader's verdict on a response of the policy to a question of a benchmark (omniopd eval)"
    comment(db, "evaluations", doc, [(column, *docs[column]) for column in _columns(db, "evaluations")])


def _metrics_of(run: RunDir, index: int) -> pa.Table | None:
    """A round's steps, with a column for the round: the table of a finished round, else the lines so far."""
    parts = list(run.train_metrics(index).glob("*.parquet"))
    if parts:
        rows = pa.concat_tables([pq.read_table(part) for part in parts], promote_options="permissive")
    else:
        lines = read_json_lines(run.train_steps(index))
        if not lines:
            return None
        rows = pa.Table.from_pylist(lines)
    round_ = pa.field("round", pa.int32(), metadata={"doc": "round of the run, from 0"})
    rest = rows.drop_columns([name for name in rows.column_names if name == "round"])
    return rest.add_column(0, round_, pa.array([index] * rows.num_rows, pa.int32()))
