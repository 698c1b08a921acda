# pyright: strict
"""What a ledger says, to whoever does not spend: another process may be writing it (ledger.py)."""

import contextlib
import json
import sqlite3
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import ledger_file
from .batch_book import BatchBook, BatchOverview


@dataclass(frozen=True)
class Totals:
    """Sums over requests."""

    requests: int
    charged_nusd: int
    charged_tokens: int
    reserved_nusd: int
    reserved_tokens: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cache_write_tokens: int
    unknown: int
    checks: int
    """Of the requests: those of `omniopd check`."""

    @property
    def spoken_for_nusd(self) -> int:
        return self.charged_nusd + self.reserved_nusd

    @property
    def spoken_for_tokens(self) -> int:
        return self.charged_tokens + self.reserved_tokens


def read_totals(path: Path, round_index: int | None = None) -> Totals:
    """Sums of a ledger that another process may be writing; zeros where there is none yet."""
    with _reading(path) as db:
        return Totals(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0) if db is None else totals_of(db, round_index)


def read_forecast(path: Path, round_index: int) -> dict[str, Any] | None:
    """What was predicted of a round; None where nothing was."""
    with _reading(path) as db:
        query = "SELECT payload FROM forecasts WHERE round = ?"
        row = None if db is None else db.execute(query, (round_index,)).fetchone()
    return None if row is None else json.loads(row[0])


def read_batches(path: Path) -> list[BatchOverview]:
    """The batches of a ledger that another process may be writing, oldest first."""
    with _reading(path) as db:
        return [] if db is None else BatchBook(db).overview()


def read_outbox_size(path: Path, round_index: int) -> int:
    """Answers of a round that are not known to be in the rollouts table."""
    with _reading(path) as db:
        query = "SELECT count(*) FROM outbox WHERE round = ?"
        return 0 if db is None else int(db.execute(query, (round_index,)).fetchone()[0])


def read_answered(path: Path, round_index: int, since: float) -> tuple[int, float]:
    """Tokens of a round's requests that were answered since a time, and when the last of them was (Unix time, s)."""
    query = """
        SELECT coalesce(sum(prompt_tokens + completion_tokens), 0), coalesce(max(closed_at), ?) FROM requests
        WHERE round = ? AND kind = 'rollouts' AND state = 'settled' AND closed_at >= ?
    """
    with _reading(path) as db:
        return (0, since) if db is None else db.execute(query, (since, round_index, since)).fetchone()


def read_price_sources(path: Path) -> list[str]:
    """Whose prices the requests of a ledger were counted at."""
    query = "SELECT DISTINCT price_source FROM requests WHERE price_source <> '' ORDER BY 1"
    with _reading(path) as db:
        return [] if db is None else [str(source) for (source,) in db.execute(query)]


def totals_of(db: sqlite3.Connection, round_index: int | None = None, teacher: str | None = None) -> Totals:
    """Sums over a round, over a teacher, or over the run."""
    wanted = {"round": round_index, "teacher": teacher}
    values = tuple(value for value in wanted.values() if value is not None)
    where = " AND ".join(["true", *(f"{name} = ?" for name, value in wanted.items() if value is not None)])
    reserved = "FILTER (WHERE state = 'reserved')"
    sums = (
        *(
            "sum(charged_nusd)",
            "sum(charged_tokens)",
            f"sum(reserved_nusd) {reserved}",
            f"sum(reserved_tokens) {reserved}",
        ),
        *("sum(prompt_tokens)", "sum(cached_tokens)", "sum(completion_tokens)", "sum(cache_write_tokens)"),
        "sum(state = 'unknown')",
        "sum(kind = 'check')",
    )
    columns = ", ".join(f"coalesce({expression}, 0)" for expression in sums)
    row = db.execute(f"SELECT count(*), {columns} FROM requests WHERE {where}", values).fetchone()
    return Totals(*(int(value) for value in row))


@contextlib.contextmanager
def _reading(path: Path) -> Generator[sqlite3.Connection | None]:
    """A ledger that another process may be writing; None where there is none yet, where it was emptied, or where the
    disk was full before it was whole."""
    if not path.is_file() or path.stat().st_size == 0:
        yield None
        return
    with ledger_file.to_read(path) as db:
        yield db if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'lessons'").fetchone() else None
