"""`omniopd inspect`: rows as a person reads them; a trajectory with its chunks marked and the rollouts below."""

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import duckdb

from ..store.config import Config
from ..store.errors import UsageError
from ..store.layout import RunDir
from ..store.reader import columns, open_reader, views
from ..store.schema import TABLES
from .decoder import find_decoder
from .render import fork, record, trajectory
from .sql import objection

if TYPE_CHECKING:
    from rich.console import RenderableType

_SOURCES = {"trajectories": "trajectories_scored", "chunks": "chunks_scored"}
"""What is shown, and filtered by, in place of a table."""


@dataclass(frozen=True)
class Selection:
    """Which rows, and in which order."""

    where: str = "true"
    """A SQL condition over the view's columns."""
    sort: str = ""
    """SQL: columns with ASC or DESC; "" is the key."""
    limit: int = 3
    offset: int = 0
    sample: int | None = None
    """Only this many rows, drawn at random."""
    seed: int = 0
    """Of the sample."""


@dataclass(frozen=True)
class Found:
    """The rows that were asked for. A trajectory has its `chunks`, and a chunk its `rollouts`, equal ones together."""

    view: str
    rows: list[dict[str, Any]]
    total: int
    """Rows that there are to page through."""


def inspect(run: RunDir, config: Config, table: str, selection: Selection) -> Iterator["RenderableType"]:
    """Blocks for the console, one a row, and a last line that says which rows they are.

    Raises:
        UsageError: no such table, or what is asked for is not SQL over its columns.
    """
    found, decode = find(run, table, selection), find_decoder(run, config)
    for row in found.rows:
        if found.view == "trajectories_scored":
            rollouts = {chunk["chunk_id"]: chunk["rollouts"] for chunk in row["chunks"]}
            yield trajectory(row, row["chunks"], rollouts, decode)
        elif found.view == "chunks_scored":
            yield fork(row, row["rollouts"], decode)
        else:
            yield record(row)
    yield _footer(table, len(found.rows), found.total, selection)


def find(run: RunDir, table: str, selection: Selection) -> Found:
    """The rows as plain values.

    Raises:
        UsageError: no such table, or what is asked for is not SQL over its columns.
    """
    with contextlib.closing(open_reader(run)) as db:
        known = [name for name, _ in views(db)]
        if table not in known:
            raise UsageError(f"There is no table {table!r}.", f"The tables are {', '.join(known)}.")
        view = _SOURCES.get(table, table)
        try:
            rows, total = _select(db, view, selection)
        except duckdb.Error as error:
            names = ", ".join(name for name, *_ in columns(db, view))
            raise UsageError(objection(error), f"Columns of {view}: {names}.") from error
        chunks = rows if view == "chunks_scored" else []
        if view == "trajectories_scored":
            own = _chunks_of(db, [row["trajectory_id"] for row in rows])
            for row in rows:
                # In place of their number.
                row["chunks"] = own[row["trajectory_id"]]
            chunks = [chunk for row in rows for chunk in row["chunks"]]
        rollouts = _rollouts_of(db, [chunk["chunk_id"] for chunk in chunks])
        for chunk in chunks:
            chunk["rollouts"] = rollouts[chunk["chunk_id"]]
        return Found(view, rows, total)


def _select(db: duckdb.DuckDBPyConnection, view: str, wanted: Selection) -> tuple[list[dict[str, Any]], int]:
    """The rows, and how many there are to page through."""
    key = ", ".join(_key(db, view))
    source = f"SELECT * FROM {view} WHERE ({wanted.where}\n)"
    if wanted.sample is not None:
        source += f" ORDER BY md5(concat_ws('|', {wanted.seed}, {key})) LIMIT {wanted.sample}"
    ((total,),) = db.execute(f"SELECT count(*) FROM ({source})").fetchall()
    order = ", ".join(part for part in (wanted.sort, key) if part)
    page = f"SELECT * FROM ({source}) ORDER BY {order} LIMIT {wanted.limit} OFFSET {wanted.offset}"
    return _rows(db, page), total


def _key(db: duckdb.DuckDBPyConnection, view: str) -> Sequence[str]:
    """Columns that put the rows of a view into one order."""
    spec = next((spec for name, spec in TABLES.items() if _SOURCES.get(name, name) == view), None)
    if spec is None:
        return [f'"{name}"' for name, type_, _ in columns(db, view) if not type_.endswith("[]")]
    # A trajectory's chunks as they stand in it.
    return ("trajectory_id", "start") if view == "chunks_scored" else spec.key


def _rows(db: duckdb.DuckDBPyConnection, query: str, values: list[Any] | None = None) -> list[dict[str, Any]]:
    return db.sql(query, params=values or []).to_arrow_table().to_pylist()


def _chunks_of(db: duckdb.DuckDBPyConnection, trajectory_ids: list[str]) -> dict[str, list[dict[str, Any]]]:
    query = "SELECT * FROM chunks_scored WHERE list_contains(?, trajectory_id) ORDER BY trajectory_id, start"
    out: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in _rows(db, query, [trajectory_ids]):
        out[row["trajectory_id"]].append(row)
    return out


def _rollouts_of(db: duckdb.DuckDBPyConnection, chunk_ids: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Rollouts of each chunk, equal ones together, the most frequent first and those without an answer last."""
    query = (
        "SELECT chunk_id, text, status, CASE WHEN text IS NULL THEN finish_reason END AS why, ids, accepted,"
        " count(*) AS times"
        " FROM rollouts LEFT JOIN drafts USING (chunk_id, rollout_index)"
        " WHERE list_contains(?, chunk_id) GROUP BY ALL"
    )
    out: dict[str, list[dict[str, Any]]] = defaultdict(list)
    rows = _rows(db, query, [chunk_ids])
    for row in sorted(rows, key=lambda row: (row["text"] is None, -row["times"], row["text"] or row["why"] or "")):
        out[row["chunk_id"]].append(row)
    return out


def _footer(table: str, shown: int, total: int, wanted: Selection) -> "RenderableType":
    from rich.text import Text

    last = wanted.offset + shown
    more = f"; --offset {last} shows more" if last < total else ""
    sampled = "" if wanted.sample is None else f" drawn at random (--seed {wanted.seed})"
    rows = f"{wanted.offset + 1}-{last} of {total:,}" if shown else f"none of {total:,}"
    return Text(f"{table}: {rows}{sampled}{more}", "dim")
