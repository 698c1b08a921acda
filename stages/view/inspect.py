"""`omniopd inspect`: rows as a person reads them; a trajectory with its chunks marked and the rollouts below."""

import contextlib
from collections.abc import Iterator
from typing import Any

import duckdb

from ...store.errors import UsageError
from ...store.layout import RunDir
from ...store.schema import TABLES
from ...store.sql import connect


def inspect(run: RunDir, table: str, where: str, limit: int) -> Iterator[str]:
    """Text blocks, one a row.

    Raises:
        UsageError: no such table, or the condition is not SQL over its columns.
    """
    if table not in TABLES:
        raise UsageError(f"There is no table {table!r}.", f"The tables are {', '.join(TABLES)}.")
    with contextlib.closing(connect(run.rounds())) as db:
        key = ", ".join(TABLES[table].key)
        try:
            rows = _rows(db, f"SELECT * FROM {table} WHERE {where} ORDER BY {key} LIMIT {limit}")
        except duckdb.Error as error:
            columns = ", ".join(TABLES[table].schema.names)
            raise UsageError(str(error).splitlines()[0], f"Columns of {table}: {columns}.") from error
        for row in rows:
            yield _trajectory(db, row) if table == "trajectories" else _record(row)


def _rows(db: duckdb.DuckDBPyConnection, query: str, values: list[Any] | None = None) -> list[dict[str, Any]]:
    return db.sql(query, params=values or []).to_arrow_table().to_pylist()


def _record(row: dict[str, Any]) -> str:
    width = max(len(name) for name in row)
    return "\n".join(f"{name:>{width}}  {_short(value)}" for name, value in row.items())


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 12:
        return f"[{', '.join(_short(item) for item in value[:12])}, ... {len(value)} in all]"
    if isinstance(value, list):
        return f"[{', '.join(_short(item) for item in value)}]"
    return f"{value:.4f}" if isinstance(value, float) else repr(value) if isinstance(value, str) else str(value)


def _trajectory(db: duckdb.DuckDBPyConnection, row: dict[str, Any]) -> str:
    chunks = _rows(
        db,
        "SELECT chunks.*, n, k_sem, pi_teacher FROM chunks LEFT JOIN scores USING (chunk_id)"
        " WHERE trajectory_id = ? ORDER BY start",
        [row["trajectory_id"]],
    )
    lines = [
        f"trajectory {row['trajectory_id']}  round {row['round']}  sample {row['sample_index']}"
        f"  {len(row['response_ids'])} tokens  {row['finish_reason']}",
        f"  prompt    {row['prompt_text']!r}",
        f"  response  {_marked(row['response_text'], chunks)!r}",
    ]
    for number, chunk in enumerate(chunks):
        lines += _chunk(db, number, chunk)
    return "\n".join(lines)


def _marked(text: str, chunks: list[dict[str, Any]]) -> str:
    """The response with each chunk in numbered brackets."""
    out, done = "", 0
    for number, chunk in enumerate(chunks):
        start = len(chunk["prefix_text"])
        end = start + len(chunk["chunk_text"])
        out += f"{text[done:start]}⟦{number}: {text[start:end]}⟧"
        done = end
    return out + text[done:]


def _chunk(db: duckdb.DuckDBPyConnection, number: int, chunk: dict[str, Any]) -> list[str]:
    weight = (
        "not scored" if chunk["pi_teacher"] is None else f"weight {chunk['pi_teacher']:.3f} from {chunk['n']} rollouts"
    )
    lines = [
        f"  ⟦{number}⟧ {chunk['chunk_text']!r}  tokens {chunk['start']}-{chunk['end']}  rank {chunk['rank']}"
        f"  entropy {chunk['anchor_entropy']:.3f} nats  prior {chunk['prior']:.3f}  {weight}"
    ]
    rollouts = _rows(
        db,
        "SELECT text, status, count(*) AS times FROM rollouts WHERE chunk_id = ?"
        " GROUP BY ALL ORDER BY times DESC, text",
        [chunk["chunk_id"]],
    )
    return lines + [
        f"      {r['times']:>3}x {r['text']!r}{'' if r['status'] == 'ok' else ' ' + r['status']}" for r in rollouts
    ]
