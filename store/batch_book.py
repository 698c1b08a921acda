# pyright: strict
"""Batches that a provider works on, in the ledger's file.

A batch is written down before the provider hears of it, and again before and after it is created; its rows are
requests of the ledger. So after a crash the next start knows which batches there may be, and what their rows were to
bring.
"""

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

_SCHEMA = """
CREATE TABLE IF NOT EXISTS batches (
    batch_key         TEXT PRIMARY KEY,
    round             INTEGER NOT NULL,
    state             TEXT NOT NULL CHECK (state IN ('intended', 'creating', 'created', 'closed')),
    remote_id         TEXT,
    newest_before     TEXT NOT NULL DEFAULT '',
    results_seen      INTEGER,
    begun_at          REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS batch_rows (
    request_id        TEXT PRIMARY KEY,
    batch_key         TEXT NOT NULL,
    chunk_id          TEXT NOT NULL,
    indices           TEXT NOT NULL,
    attempt           INTEGER NOT NULL,
    continuation      TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS batch_rows_of ON batch_rows (batch_key);
"""

_RELEASE_UNSENT = """
UPDATE requests SET state = 'released', closed_at = ? WHERE state = 'reserved' AND request_id IN
    (SELECT request_id FROM batch_rows JOIN batches USING (batch_key) WHERE batches.state = 'intended')
"""
"""The provider never heard of a batch that was only intended."""

_FORGET_ROWS = "DELETE FROM batch_rows WHERE batch_key "

_OVERVIEW = """
SELECT batch_key, batches.round, batches.state, remote_id, count(*), sum(requests.state = 'reserved'),
    sum(requests.state = 'settled'), sum(CASE WHEN requests.state = 'reserved' THEN reserved_nusd ELSE 0 END),
    sum(charged_nusd), begun_at
FROM batches JOIN batch_rows USING (batch_key) JOIN requests USING (request_id)
GROUP BY batch_key ORDER BY begun_at, batches.rowid
"""


@dataclass(frozen=True)
class BatchRow:
    """A request of a batch, and the rollouts that it is to bring."""

    request_id: str
    chunk_id: str
    indices: tuple[int, ...]
    attempt: int
    continuation: str
    """How it makes the teacher continue, as in the rollouts table."""


@dataclass(frozen=True)
class Batch:
    """A batch that is not closed. `creating`: the provider may have it; `created`: it has."""

    key: str
    state: Literal["intended", "creating", "created"]
    remote_id: str | None
    newest_before: str
    """The provider's id of the newest batch that it listed before this one was created; "" where it listed none."""
    results_seen: int | None
    """How many answers an earlier start could read where the provider counts more; None where all could be read."""
    begun_at: float
    """When it was written down, then when its creation was asked for: seconds since 1970 by this machine's clock,
    which is compared with this machine's only."""


@dataclass(frozen=True)
class BatchOverview:
    """A batch as a person wants to see it."""

    key: str
    round: int
    state: Literal["intended", "creating", "created", "closed"]
    remote_id: str | None
    requests: int
    waiting: int
    """Requests without a result so far."""
    answered: int
    """Requests that were answered and billed."""
    reserved_nusd: int
    charged_nusd: int
    begun_at: float


class BatchBook:
    """The batches of one run. What it does is durable when it returns; `intend` and `release_unsent` are parts of a
    transaction of the ledger."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        db.executescript(_SCHEMA)

    def release_unsent(self) -> None:
        """Undo what was intended only, in the transaction of a ledger that is being opened."""
        self._db.execute(_RELEASE_UNSENT, (time.time(),))
        self._db.execute(_FORGET_ROWS + "IN (SELECT batch_key FROM batches WHERE state = 'intended')")
        self._db.execute("UPDATE batches SET state = 'closed' WHERE state = 'intended'")

    def intend(self, key: str, round_: int, rows: Mapping[str, BatchRow], granted: Sequence[str], now: float) -> None:
        """Write down a batch in the transaction that reserves its rows."""
        if not granted:
            return
        self._db.execute(
            "INSERT INTO batches (batch_key, round, state, begun_at) VALUES (?, ?, 'intended', ?)", (key, round_, now)
        )
        self._db.executemany(
            "INSERT INTO batch_rows VALUES (?, ?, ?, ?, ?, ?)",
            [
                (r, key, rows[r].chunk_id, json.dumps(rows[r].indices), rows[r].attempt, rows[r].continuation)
                for r in granted
            ],
        )

    def begin(self, key: str, newest_before: str) -> None:
        """Write down that the provider is about to be asked to create a batch."""
        with self._db:
            self._db.execute(
                "UPDATE batches SET state = 'creating', newest_before = ?, begun_at = ? WHERE batch_key = ?",
                (newest_before, time.time(), key),
            )

    def mark(self, key: str, state: Literal["created", "closed"], remote_id: str | None = None) -> None:
        """Write down how far a batch is, before the next step is taken."""
        with self._db:
            self._db.execute(
                "UPDATE batches SET state = ?, remote_id = coalesce(?, remote_id) WHERE batch_key = ?",
                (state, remote_id, key),
            )

    def note_results(self, key: str, seen: int) -> None:
        """Write down how many answers could be read where the provider counts more."""
        with self._db:
            self._db.execute("UPDATE batches SET results_seen = ? WHERE batch_key = ?", (seen, key))

    def drop(self, key: str) -> None:
        """Close a batch of which the provider has done nothing: it counts as no attempt."""
        with self._db:
            self._db.execute(_FORGET_ROWS + "= ?", (key,))
            self._db.execute("UPDATE batches SET state = 'closed' WHERE batch_key = ?", (key,))

    def open(self, round_index: int) -> list[Batch]:
        """Batches of a round that are not closed, oldest first."""
        query = (
            "SELECT batch_key, state, remote_id, newest_before, results_seen, begun_at FROM batches"
            " WHERE round = ? AND state <> 'closed' ORDER BY begun_at"
        )
        return [Batch(*row) for row in self._db.execute(query, (round_index,))]

    def overview(self) -> list[BatchOverview]:
        """All batches of the run of which the provider may have done something, oldest first."""
        return [BatchOverview(*row) for row in self._db.execute(_OVERVIEW)]

    def remote_ids(self) -> list[str]:
        """The provider's ids of all batches of the run."""
        rows = self._db.execute("SELECT remote_id FROM batches WHERE remote_id IS NOT NULL")
        return [str(remote_id) for (remote_id,) in rows]

    def unsettled(self, key: str) -> dict[str, BatchRow]:
        """Rows of a batch that are still reserved, by request id."""
        query = (
            "SELECT request_id, chunk_id, indices, attempt, continuation"
            " FROM batch_rows JOIN requests USING (request_id)"
            " WHERE batch_key = ? AND requests.state = 'reserved'"
        )
        rows = self._db.execute(query, (key,))
        return {str(r): BatchRow(str(r), str(c), tuple(json.loads(i)), int(a), str(how)) for r, c, i, a, how in rows}

    def attempts(self, chunk_ids: Sequence[str]) -> dict[str, int]:
        """How often rows of these chunks were in a batch of which no answer came."""
        query = (
            "SELECT chunk_id, max(attempt) FROM batch_rows JOIN requests USING (request_id)"
            " WHERE state IN ('released', 'unknown') AND chunk_id IN (SELECT value FROM json_each(?)) GROUP BY chunk_id"
        )
        return {str(c): int(n) for c, n in self._db.execute(query, (json.dumps(list(chunk_ids)),))}
