# pyright: strict
"""Money. Every request is reserved at its worst case before it is sent and settled from the bill afterwards.

One SQLite file (WAL, synchronous=FULL). The invariant, under any concurrency and any crash:

    settled + reserved <= budget

An answer is stored in the same transaction that settles it (the outbox), and leaves the outbox only once its rows are
in the rollouts table; so an answer that was paid for is never asked for again. A reservation that a dead process left
behind is an unknown outcome and is charged in full, unless it is a row of a batch that the provider still works on.
"""

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .errors import TableError

NANO = 1_000_000_000
"""Dollars are kept as whole nano-dollars, so that sums are exact."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (
    request_id        TEXT PRIMARY KEY,
    round             INTEGER NOT NULL,
    teacher           TEXT NOT NULL,
    state             TEXT NOT NULL CHECK (state IN ('reserved', 'settled', 'released', 'unknown')),
    reserved_nusd     INTEGER NOT NULL,
    reserved_tokens   INTEGER NOT NULL,
    charged_nusd      INTEGER NOT NULL DEFAULT 0,
    charged_tokens    INTEGER NOT NULL DEFAULT 0,
    prompt_tokens     INTEGER NOT NULL DEFAULT 0,
    cached_tokens     INTEGER NOT NULL DEFAULT 0,
    completion_tokens INTEGER NOT NULL DEFAULT 0,
    cache_write_tokens INTEGER NOT NULL DEFAULT 0,
    price_source      TEXT NOT NULL DEFAULT '',
    reserved_at       REAL NOT NULL,
    closed_at         REAL
) STRICT;
CREATE TABLE IF NOT EXISTS outbox (request_id TEXT PRIMARY KEY, round INTEGER NOT NULL, payload BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS forecasts (round INTEGER PRIMARY KEY, payload TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS batches (
    batch_key         TEXT PRIMARY KEY,
    round             INTEGER NOT NULL,
    state             TEXT NOT NULL CHECK (state IN ('intended', 'creating', 'created', 'closed')),
    remote_id         TEXT,
    intended_at       REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS batch_rows (
    request_id        TEXT PRIMARY KEY,
    batch_key         TEXT NOT NULL,
    chunk_id          TEXT NOT NULL,
    indices           TEXT NOT NULL,
    attempt           INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS batch_rows_of ON batch_rows (batch_key);
"""

_RELEASE_UNSENT = """
UPDATE requests SET state = 'released', closed_at = ? WHERE state = 'reserved' AND request_id IN
    (SELECT request_id FROM batch_rows JOIN batches USING (batch_key) WHERE batches.state = 'intended')
"""
"""The provider never heard of a batch that was only intended."""

_FORGET_ROWS = "DELETE FROM batch_rows WHERE batch_key "

_CHARGE_LOST = """
UPDATE requests SET state = 'unknown', charged_nusd = reserved_nusd, charged_tokens = reserved_tokens, closed_at = ?
WHERE state = 'reserved' AND request_id NOT IN
    (SELECT request_id FROM batch_rows JOIN batches USING (batch_key) WHERE batches.state <> 'closed')
"""

_ADDED = {"cache_write_tokens": "INTEGER NOT NULL DEFAULT 0", "price_source": "TEXT NOT NULL DEFAULT ''"}
"""Columns that the first ledgers did not have."""


@dataclass(frozen=True)
class Budget:
    """Hard caps; None is no cap."""

    nusd: int | None = None
    tokens: int | None = None

    @classmethod
    def of(cls, usd: float | None, tokens: int | None) -> "Budget":
        return cls(None if usd is None else round(usd * NANO), tokens)


@dataclass(frozen=True)
class Reservation:
    """The worst case of one request."""

    request_id: str
    round: int
    teacher: str
    nusd: int
    tokens: int
    price_source: str = ""
    """Whose price the dollars are: a table with its version, or the user."""


@dataclass(frozen=True)
class Usage:
    """What the server billed, in tokens of the teacher."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cache_write_tokens: int = 0
    """Of the prompt tokens: written to the cache, which some providers charge extra."""

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Settlement:
    """The end of one request.

    `settled`: answered and billed. `released`: refused by the server, so not billed. `unknown`: no whole answer came
    back, so it is charged as reserved. `payload` holds the answer's rows and is kept in the outbox.
    """

    request_id: str
    state: Literal["settled", "released", "unknown"]
    usage: Usage = Usage()
    nusd: int = 0
    payload: bytes | None = None


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

    @property
    def spoken_for_nusd(self) -> int:
        return self.charged_nusd + self.reserved_nusd

    @property
    def spoken_for_tokens(self) -> int:
        return self.charged_tokens + self.reserved_tokens


@dataclass(frozen=True)
class BatchRow:
    """A request of a batch, and the rollouts that it is to bring."""

    request_id: str
    chunk_id: str
    indices: tuple[int, ...]
    attempt: int


@dataclass(frozen=True)
class Batch:
    """A batch that is not closed. `creating`: the provider may have it; `created`: it has."""

    key: str
    state: Literal["intended", "creating", "created"]
    remote_id: str | None
    intended_at: float


class Ledger:
    """The ledger of one run. One process writes at a time (the audit stage holds the lock)."""

    def __init__(self, path: Path, budget: Budget, round_index: int = 0, round_budget: Budget = Budget()) -> None:
        """`budget` caps the run, and `round_budget` what the round `round_index` adds to it."""
        self._db = _open(path)
        self._db.executescript(_SCHEMA)
        _add_columns(self._db)
        with self._db:
            self._db.execute(_RELEASE_UNSENT, (time.time(),))
            self._db.execute(_FORGET_ROWS + "IN (SELECT batch_key FROM batches WHERE state = 'intended')")
            self._db.execute("UPDATE batches SET state = 'closed' WHERE state = 'intended'")
            self._db.execute(_CHARGE_LOST, (time.time(),))
        run, round_ = self.totals(), self.totals(round_index)
        self._nusd, self._tokens = run.spoken_for_nusd, run.spoken_for_tokens
        # The round's cap, moved to where it lies on the run's scale: of the two, the lower holds, since only this round
        # spends from here on.
        before_nusd, before_tokens = self._nusd - round_.spoken_for_nusd, self._tokens - round_.spoken_for_tokens
        self.budget = Budget(
            _lower(budget.nusd, round_budget.nusd, before_nusd),
            _lower(budget.tokens, round_budget.tokens, before_tokens),
        )

    def close(self) -> None:
        self._db.close()

    def commit(
        self,
        reservations: Sequence[Reservation],
        settlements: Sequence[Settlement],
        batch: tuple[str, int, Mapping[str, BatchRow]] | None = None,
    ) -> list[bool]:
        """Settle and reserve in one durable transaction. Returns which reservations the budget covers, in order.

        A refused reservation leaves no trace. With a batch (its key, its round, its rows by request), what is reserved
        belongs to it from the start.
        """
        now = time.time()
        nusd, tokens = self._nusd, self._tokens
        granted: list[bool] = []
        with self._db:
            for settlement in settlements:
                freed = self._settle(settlement, now)
                nusd, tokens = nusd - freed[0], tokens - freed[1]
            for r in reservations:
                fits = _fits(nusd + r.nusd, self.budget.nusd) and _fits(tokens + r.tokens, self.budget.tokens)
                granted.append(fits)
                if fits:
                    nusd, tokens = nusd + r.nusd, tokens + r.tokens
                    self._db.execute(
                        "INSERT INTO requests (request_id, round, teacher, state, reserved_nusd, reserved_tokens,"
                        " price_source, reserved_at) VALUES (?, ?, ?, 'reserved', ?, ?, ?, ?)",
                        (r.request_id, r.round, r.teacher, r.nusd, r.tokens, r.price_source, now),
                    )
            if batch is not None:
                self._intend(*batch, [r.request_id for r, fits in zip(reservations, granted, strict=True) if fits], now)
        self._nusd, self._tokens = nusd, tokens
        return granted

    def _settle(self, settlement: Settlement, now: float) -> tuple[int, int]:
        """Close one request; returns the part of its reservation (nano-dollars, tokens) that is free again."""
        row = self._db.execute(
            "SELECT round, reserved_nusd, reserved_tokens FROM requests WHERE request_id = ? AND state = 'reserved'",
            (settlement.request_id,),
        ).fetchone()
        round_index, reserved_nusd, reserved_tokens = int(row[0]), int(row[1]), int(row[2])
        if settlement.state == "unknown":
            charged_nusd, charged_tokens = reserved_nusd, reserved_tokens
        else:
            # The request asked for no more than was reserved: a server that claims more is not believed.
            charged_nusd = min(settlement.nusd, reserved_nusd)
            charged_tokens = min(settlement.usage.tokens, reserved_tokens)
        usage = settlement.usage
        self._db.execute(
            "UPDATE requests SET state = ?, charged_nusd = ?, charged_tokens = ?, prompt_tokens = ?,"
            " cached_tokens = ?, completion_tokens = ?, cache_write_tokens = ?, closed_at = ? WHERE request_id = ?",
            (
                *(settlement.state, charged_nusd, charged_tokens, usage.prompt_tokens),
                *(usage.cached_tokens, usage.completion_tokens, usage.cache_write_tokens, now),
                settlement.request_id,
            ),
        )
        if settlement.payload is not None:
            self._db.execute(
                "INSERT INTO outbox (request_id, round, payload) VALUES (?, ?, ?)",
                (settlement.request_id, round_index, settlement.payload),
            )
        return reserved_nusd - charged_nusd, reserved_tokens - charged_tokens

    def note_forecast(self, round_index: int, forecast: Mapping[str, Any]) -> None:
        """Keep what was predicted of a round, the first time that it is."""
        with self._db:
            self._db.execute("INSERT OR IGNORE INTO forecasts VALUES (?, ?)", (round_index, json.dumps(forecast)))

    # -- batches

    def _intend(self, key: str, round_: int, rows: Mapping[str, BatchRow], granted: Sequence[str], now: float) -> None:
        if not granted:
            return
        self._db.execute("INSERT INTO batches VALUES (?, ?, 'intended', NULL, ?)", (key, round_, now))
        self._db.executemany(
            "INSERT INTO batch_rows VALUES (?, ?, ?, ?, ?)",
            [(r, key, rows[r].chunk_id, json.dumps(rows[r].indices), rows[r].attempt) for r in granted],
        )

    def batch_is(self, key: str, state: Literal["creating", "created", "closed"], remote_id: str | None = None) -> None:
        """Write down how far a batch is, before the next step is taken."""
        with self._db:
            self._db.execute(
                "UPDATE batches SET state = ?, remote_id = coalesce(?, remote_id) WHERE batch_key = ?",
                (state, remote_id, key),
            )

    def drop_batch(self, key: str) -> None:
        """Close a batch of which the provider has done nothing: it counts as no attempt."""
        with self._db:
            self._db.execute(_FORGET_ROWS + "= ?", (key,))
            self._db.execute("UPDATE batches SET state = 'closed' WHERE batch_key = ?", (key,))

    def open_batches(self, round_index: int) -> list[Batch]:
        """Batches of a round that are not closed, oldest first."""
        query = (
            "SELECT batch_key, state, remote_id, intended_at FROM batches WHERE round = ? AND state <> 'closed'"
            " ORDER BY intended_at"
        )
        return [Batch(*row) for row in self._db.execute(query, (round_index,))]

    def remote_ids(self) -> list[str]:
        """The provider's ids of all batches of the run."""
        rows = self._db.execute("SELECT remote_id FROM batches WHERE remote_id IS NOT NULL")
        return [str(remote_id) for (remote_id,) in rows]

    def unsettled_rows(self, key: str) -> dict[str, BatchRow]:
        """Rows of a batch that are still reserved, by request id."""
        query = (
            "SELECT request_id, chunk_id, indices, attempt FROM batch_rows JOIN requests USING (request_id)"
            " WHERE batch_key = ? AND requests.state = 'reserved'"
        )
        rows = self._db.execute(query, (key,))
        return {str(r): BatchRow(str(r), str(c), tuple(json.loads(i)), int(a)) for r, c, i, a in rows}

    def attempts(self, chunk_ids: Sequence[str]) -> dict[str, int]:
        """How often rows of these chunks were in a batch of which no answer came."""
        query = (
            "SELECT chunk_id, max(attempt) FROM batch_rows JOIN requests USING (request_id)"
            " WHERE state IN ('released', 'unknown') AND chunk_id IN (SELECT value FROM json_each(?)) GROUP BY chunk_id"
        )
        return {str(c): int(n) for c, n in self._db.execute(query, (json.dumps(list(chunk_ids)),))}

    # -- answers

    def outbox(self, round_index: int, limit: int) -> list[tuple[str, bytes]]:
        """Answers of a round that are not known to be in the rollouts table, oldest first."""
        rows = self._db.execute(
            "SELECT request_id, payload FROM outbox WHERE round = ? ORDER BY rowid LIMIT ?", (round_index, limit)
        ).fetchall()
        return [(str(request_id), bytes(payload)) for request_id, payload in rows]

    def clear_outbox(self, request_ids: Sequence[str]) -> None:
        """Forget answers whose rows are now in the rollouts table."""
        with self._db:
            self._db.executemany("DELETE FROM outbox WHERE request_id = ?", [(r,) for r in request_ids])

    @property
    def left(self) -> Budget:
        """What the budget still covers; None is no cap."""
        nusd, tokens = self.budget.nusd, self.budget.tokens
        return Budget(None if nusd is None else nusd - self._nusd, None if tokens is None else tokens - self._tokens)

    def totals(self, round_index: int | None = None) -> Totals:
        """Sums over a round, or over the run."""
        return _totals(self._db, round_index)


def read_totals(path: Path, round_index: int | None = None) -> Totals:
    """Sums of a ledger that another process may be writing; zeros where there is none yet."""
    if not path.is_file():
        return Totals(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    db = _open(path)
    try:
        _add_columns(db)
        return _totals(db, round_index)
    finally:
        db.close()


def read_forecast(path: Path, round_index: int) -> dict[str, Any] | None:
    """What was predicted of a round; None where nothing was."""
    if not path.is_file():
        return None
    db = _open(path)
    try:
        db.executescript(_SCHEMA)
        row = db.execute("SELECT payload FROM forecasts WHERE round = ?", (round_index,)).fetchone()
    finally:
        db.close()
    return None if row is None else json.loads(row[0])


def read_price_sources(path: Path) -> list[str]:
    """Whose prices the requests of a ledger were counted at."""
    if not path.is_file():
        return []
    db = _open(path)
    try:
        _add_columns(db)
        rows = db.execute("SELECT DISTINCT price_source FROM requests WHERE price_source <> '' ORDER BY 1").fetchall()
    finally:
        db.close()
    return [str(source) for (source,) in rows]


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    # The audit stage hands the connection to the one thread that commits.
    db = sqlite3.connect(path, check_same_thread=False, timeout=30)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
    except sqlite3.DatabaseError as error:
        db.close()
        raise TableError(
            f"{path} is damaged: {error}.", "Restore it from a copy: it is the record of the spend."
        ) from error
    return db


def _totals(db: sqlite3.Connection, round_index: int | None) -> Totals:
    where, values = ("", ()) if round_index is None else (" WHERE round = ?", (round_index,))
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
    )
    columns = ", ".join(f"coalesce({expression}, 0)" for expression in sums)
    row = db.execute(f"SELECT count(*), {columns} FROM requests{where}", values).fetchone()
    return Totals(*(int(value) for value in row))


def _add_columns(db: sqlite3.Connection) -> None:
    """Bring a ledger of an earlier version up to date."""
    present = {str(row[1]) for row in db.execute("PRAGMA table_info(requests)")}
    for name, declaration in _ADDED.items():
        if name not in present:
            db.execute(f"ALTER TABLE requests ADD COLUMN {name} {declaration}")


def _lower(run: int | None, round_: int | None, before: int) -> int | None:
    """The cap that holds: the run's, or the round's on top of what was spent before it."""
    caps = [cap for cap in (run, None if round_ is None else before + round_) if cap is not None]
    return min(caps, default=None)


def _fits(amount: int, cap: int | None) -> bool:
    return cap is None or amount <= cap
