# pyright: strict
"""A ledger that was lost, rebuilt from the rollouts: their tokens and dollars add up to the bills."""

import contextlib
import os
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

import duckdb

from . import ledger_file
from .batch_book import BatchBook
from .errors import TableError
from .layout import RunDir
from .ledger import NANO
from .ledger_file import Identity
from .ledger_read import read_totals
from .schema import ROLLOUTS
from .sql import create_view
from .table import Table

SOURCE = "rebuilt from the rollouts"
"""`price_source` of the requests that were added."""

_ROWS_AT_A_TIME = 16384

_BILLS = f"""
SELECT
    request_id, sum(prompt_tokens), sum(cached_tokens), sum(completion_tokens), sum(cache_write_tokens),
    sum(round(cost_usd * {NANO})::BIGINT)
FROM rollouts WHERE starts_with(request_id, $prefix) GROUP BY request_id
"""

_ADD = """
INSERT INTO requests (request_id, round, teacher, state, reserved_nusd, reserved_tokens, charged_nusd, charged_tokens,
    prompt_tokens, cached_tokens, completion_tokens, cache_write_tokens, price_source, reserved_at, closed_at)
VALUES (?1, ?2, ?3, ?4, ?9, ?5 + ?7, ?9, ?5 + ?7, ?5, ?6, ?7, ?8, ?10, ?11, ?11)
ON CONFLICT (request_id) DO UPDATE SET state = excluded.state, charged_nusd = excluded.charged_nusd,
    charged_tokens = excluded.charged_tokens, prompt_tokens = excluded.prompt_tokens,
    cached_tokens = excluded.cached_tokens, completion_tokens = excluded.completion_tokens,
    cache_write_tokens = excluded.cache_write_tokens, closed_at = excluded.closed_at
    WHERE state = 'reserved' AND excluded.state = 'settled'
"""
"""What an older copy still has as reserved was settled since."""


@dataclass(frozen=True)
class Rebuilt:
    """What became of a ledger. The amounts are those of the whole run, as it has them now."""

    added: int
    unbilled: int
    """Requests among them whose bill no row tells: counted as nothing."""
    nusd: int
    tokens: int
    set_aside: Path | None
    """Where the file is that was no ledger of this run."""

    def __str__(self) -> str:
        aside = f" What was there before is now {self.set_aside}." if self.set_aside else ""
        return (
            f"{self.added} requests added from the rollouts, {self.unbilled} of them without a known bill; the run has"
            f" now spent {self.tokens} tokens, ${self.nusd / NANO:.2f}. Lost is what left no rollout: requests whose"
            f" outcome was unknown, those of `omniopd check`, and batches that are still open.{aside}"
        )


def rebuild_ledger(run: RunDir) -> Rebuilt:
    """Add to a run's ledger the requests of its rollouts that it does not know. A file that is not this run's ledger is
    set aside and a new one begun.

    Raises:
        BusyError: an audit of the run is going on.
        TableError: a rollouts table is damaged.
    """
    path = run.ledger
    with ledger_file.held(path, f"rebuilding the ledger, process {os.getpid()}"), contextlib.ExitStack() as stack:
        beside = ledger_file.read_identity(path)
        own = _own_identity(path)
        set_aside = None
        if own is None or (beside is not None and own.run_id != beside.run_id):
            own, set_aside = None, _set_aside(path)
        db = stack.enter_context(contextlib.closing(ledger_file.connect(path)))
        db.executescript(ledger_file.SCHEMA)
        BatchBook(db)
        identity = max(filter(None, (beside, own)), key=lambda known: known.openings, default=Identity.new())
        # Without any word about whose the rows are, all count: better too much than too little.
        prefix = identity.run_id if identity.openings else ""
        tables = [(round_.index, table) for round_ in run.rounds() for table in round_.paid_rollouts]
        bills = [bill for index, table in tables for bill in _add(db, index, table, prefix)]
        ledger_file.note_opening(db, path, identity, [])
    totals = read_totals(path)
    return Rebuilt(len(bills), bills.count(False), totals.charged_nusd, totals.charged_tokens, set_aside)


def _own_identity(path: Path) -> Identity | None:
    """Whose ledger a file is; None where it is none, or none that can be read."""
    if not path.is_file():
        return None
    try:
        with contextlib.closing(ledger_file.connect(path)) as db:
            db.executescript(ledger_file.SCHEMA)
            return ledger_file.own_identity(db)
    except (TableError, sqlite3.DatabaseError):
        return None


def _set_aside(path: Path) -> Path | None:
    """Rename what is in the ledger's place, with the files that SQLite keeps beside it."""
    if not path.is_file():
        return None
    target = path.with_name(f"ledger-before-{time.time_ns()}.sqlite")
    for suffix in ("-wal", "-shm", ""):
        source = path.with_name(path.name + suffix)
        if source.is_file():
            source.rename(target.with_name(target.name + suffix))
    return target


def _add(db: sqlite3.Connection, round_index: int, table: Table, prefix: str) -> list[bool]:
    """Add the requests of a round's rollouts that are not there. Returns of each whether its bill is known."""
    now = time.time()
    teacher = str(table.manifest.made_with.get("teacher.model", ""))
    known: list[bool] = []
    with contextlib.closing(duckdb.connect()) as rows, db:
        create_view(rows, ROLLOUTS, table.files())
        result = rows.execute(_BILLS, {"prefix": prefix})
        while batch := result.fetchmany(_ROWS_AT_A_TIME):
            for request_id, *amounts in batch:
                is_billed = amounts[0] is not None
                state = "settled" if is_billed else "unknown"
                tokens = [int(amount or 0) for amount in amounts]
                values = (request_id, round_index, teacher, state, *tokens, SOURCE, now)
                if db.execute(_ADD, values).rowcount:
                    known.append(is_billed)
    return known
