# pyright: strict
"""Money. Every request is reserved at its worst case before it is sent and settled from the bill afterwards.

One SQLite file (WAL, synchronous=FULL). A bill is charged in full, whatever was reserved for it. The invariant, under
any concurrency and any crash:

    settled + reserved <= budget, unless a provider bills more than a request's worst case;
    then nothing new is reserved until settled + reserved + the next worst case <= budget again

So bills exceed the budget at most by what the requests that were already in flight overran. What a bill teaches about
the worst case raises later reservations at once (worst_case.py).

An answer is stored in the same transaction that settles it (the outbox), and leaves the outbox only once its rows are
in the rollouts table; so an answer that was paid for is never asked for again. A reservation that a dead process left
behind is an unknown outcome and is charged in full, unless it is a row of a batch that the provider still works on.
"""

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from . import ledger_file
from .batch_book import BatchBook, BatchOverview, BatchRow
from .storage import storing
from .usage import NO_USAGE, Usage
from .worst_case import WorstCase

NANO = 1_000_000_000
"""Dollars are kept as whole nano-dollars, so that sums are exact."""

_CHARGE_LOST = """
UPDATE requests SET state = 'unknown', charged_nusd = reserved_nusd, charged_tokens = reserved_tokens, closed_at = ?
WHERE state = 'reserved' AND request_id NOT IN
    (SELECT request_id FROM batch_rows JOIN batches USING (batch_key) WHERE batches.state <> 'closed')
"""

_RESERVE = """
INSERT INTO requests (request_id, round, teacher, state, reserved_nusd, reserved_tokens, price_source,
    prompt_estimate, completion_estimate, reserved_at, kind)
SELECT value ->> 0, value ->> 1, value ->> 2, 'reserved', value ->> 3, value ->> 4, value ->> 5,
    value ->> 6, value ->> 7, value ->> 8,
    value ->> 9
FROM json_each(?)
"""

_SETTLE = """
UPDATE requests SET state = new ->> 1, charged_nusd = new ->> 2, charged_tokens = new ->> 3, prompt_tokens = new ->> 4,
    cached_tokens = new ->> 5, completion_tokens = new ->> 6, cache_write_tokens = new ->> 7, closed_at = new ->> 8
FROM (SELECT value AS new FROM json_each(?)) WHERE request_id = new ->> 0 AND state = 'reserved'
"""

_BILLS = """
SELECT prompt_estimate, completion_estimate, max(prompt_tokens), max(completion_tokens), count(*) FROM requests
WHERE state = 'settled' AND teacher = ? AND prompt_estimate > 0 GROUP BY 1, 2
"""

_STORE = """
INSERT INTO outbox (request_id, round, payload) SELECT value ->> 0, value ->> 1, CAST(value ->> 2 AS BLOB)
FROM json_each(?)
"""


@dataclass(frozen=True)
class Budget:
    """Hard caps; None is no cap."""

    nusd: int | None = None
    tokens: int | None = None

    @classmethod
    def of(cls, usd: float | None, tokens: int | None) -> "Budget":
        return cls(None if usd is None else round(usd * NANO), tokens)


@dataclass(frozen=True)
class Caps:
    """What an audit may spend: the lowest of three caps holds."""

    run: Budget = Budget()
    """On the whole run."""
    round: Budget = Budget()
    """On what the round `round_index` is of it."""
    teacher: Budget = Budget()
    """On what the teacher `teacher_model` is of it, in all rounds."""
    round_index: int = 0
    teacher_model: str = ""


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
    kind: Literal["rollouts", "check"] = "rollouts"
    """What it asks for: a check (`omniopd check`) leaves no row in any table."""
    estimate: Usage = NO_USAGE
    """The dialect's own worst case, beside which a bill is instructive; zeros teach nothing."""


@dataclass(frozen=True)
class _Charge:
    """What a reserved request costs."""

    reservation: Reservation
    nusd: int
    tokens: int


@dataclass(frozen=True)
class Settlement:
    """The end of one request.

    `settled`: answered and billed. `released`: refused by the server, so not billed. `unknown`: no whole answer came
    back, or none that says what it cost, so it is charged as reserved. `payload` holds the answer's rows and is kept in
    the outbox.
    """

    request_id: str
    state: Literal["settled", "released", "unknown"]
    usage: Usage = NO_USAGE
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
    checks: int
    """Of the requests: those of `omniopd check`."""

    @property
    def spoken_for_nusd(self) -> int:
        return self.charged_nusd + self.reserved_nusd

    @property
    def spoken_for_tokens(self) -> int:
        return self.charged_tokens + self.reserved_tokens


Cover = Callable[[int, int, Budget], None]
"""Called with nano-dollars and tokens that a run has settled and reserved in all, and with what it may."""


class Ledger:
    """The ledger of one run, opened to be written: one process does at a time, whatever round it audits."""

    def __init__(self, path: Path, caps: Caps = Caps(), cover: Cover | None = None) -> None:
        """
        Args:
            path: `ledger.sqlite` of a run directory.
            caps: Of the audit that spends from here on; none is no cap.
            cover: Told before anything is reserved what the run comes to with it; where it raises, nothing is.

        Raises:
            BusyError: another process has opened it.
            TableError: it is missing, empty, damaged, another run's, or an older copy.
            StorageError: it cannot be written.
        """
        self.path = path
        self._cover = cover
        with contextlib.ExitStack() as stack, storing(path):
            stack.enter_context(ledger_file.held(path, f"round {caps.round_index}, process {os.getpid()}"))
            self._db, identity, parts = ledger_file.open_checked(path)
            stack.callback(self._db.close)
            self.batches = BatchBook(self._db)
            with self._db:
                self.batches.release_unsent()
                self._db.execute(_CHARGE_LOST, (time.time(),))
            ledger_file.note_opening(self._db, path, identity, parts)
            self._held = stack.pop_all()
        self.run_id = identity.run_id
        """What the ids of new requests have to begin with."""
        self.worst_case = self._learned(caps.teacher_model)
        self._open = {r.request_id: r for r in self._reserved()}
        run = self.totals()
        self._nusd, self._tokens = run.spoken_for_nusd, run.spoken_for_tokens
        # The other caps, moved to where they lie on the run's scale: the lowest holds, since only this round and this
        # teacher spend from here on.
        budget = caps.run
        round_totals, teacher_totals = self.totals(caps.round_index), self.totals(teacher=caps.teacher_model)
        for part, cap in ((round_totals, caps.round), (teacher_totals, caps.teacher)):
            budget = Budget(
                _lower(budget.nusd, cap.nusd, self._nusd - part.spoken_for_nusd),
                _lower(budget.tokens, cap.tokens, self._tokens - part.spoken_for_tokens),
            )
        self.budget: Budget = budget

    def close(self) -> None:
        self._held.close()

    def _learned(self, teacher: str) -> WorstCase:
        """What the teacher's bills so far say about the next ones."""
        worst_case = WorstCase()
        for prompt, completion, most_prompt, most_completion, bills in self._db.execute(_BILLS, (teacher,)):
            worst_case.observe(Usage(prompt, 0, completion), Usage(most_prompt, 0, most_completion), bills)
        return worst_case

    def _reserved(self) -> list[Reservation]:
        """What is reserved when the ledger is opened: rows of open batches."""
        query = (
            "SELECT request_id, round, teacher, reserved_nusd, reserved_tokens, price_source, prompt_estimate,"
            " completion_estimate FROM requests WHERE state = 'reserved'"
        )
        rows = self._db.execute(query).fetchall()
        return [Reservation(*row[:6], estimate=Usage(row[6], 0, row[7])) for row in rows]

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
        charges = [self._charge(settlement) for settlement in settlements]
        nusd = self._nusd + sum(charge.nusd - charge.reservation.nusd for charge in charges)
        tokens = self._tokens + sum(charge.tokens - charge.reservation.tokens for charge in charges)
        granted: list[bool] = []
        for r in reservations:
            fits = _fits(nusd + r.nusd, self.budget.nusd) and _fits(tokens + r.tokens, self.budget.tokens)
            granted.append(fits)
            nusd, tokens = (nusd + r.nusd, tokens + r.tokens) if fits else (nusd, tokens)
        covered = [r for r, fits in zip(reservations, granted, strict=True) if fits]
        if covered and self._cover is not None:
            self._cover(nusd, tokens, self.budget)
        with self._db:
            self._close_requests(settlements, charges, now)
            rows = [
                (
                    *(r.request_id, r.round, r.teacher, r.nusd, r.tokens, r.price_source),
                    *(r.estimate.prompt_tokens, r.estimate.completion_tokens, now, r.kind),
                )
                for r in covered
            ]
            self._many(_RESERVE, rows)
            if batch is not None:
                self.batches.intend(*batch, [r.request_id for r in covered], now)
        for settlement in settlements:
            estimate = self._open.pop(settlement.request_id).estimate
            if settlement.state == "settled" and estimate.prompt_tokens:
                self.worst_case.observe(estimate, settlement.usage)
        self._open.update((r.request_id, r) for r in covered)
        self._nusd, self._tokens = nusd, tokens
        return granted

    def _charge(self, settlement: Settlement) -> _Charge:
        """What a request costs in the end."""
        reservation = self._open[settlement.request_id]
        if settlement.state == "unknown":
            return _Charge(reservation, reservation.nusd, reservation.tokens)
        return _Charge(reservation, settlement.nusd, settlement.usage.tokens)

    def _close_requests(self, settlements: Sequence[Settlement], charges: Sequence[_Charge], now: float) -> None:
        rows = [
            (
                *(s.request_id, s.state, charge.nusd, charge.tokens, s.usage.prompt_tokens, s.usage.cached_tokens),
                *(s.usage.completion_tokens, s.usage.cache_write_tokens, now),
            )
            for s, charge in zip(settlements, charges, strict=True)
        ]
        if self._many(_SETTLE, rows) != len(rows):
            raise sqlite3.IntegrityError("a request that was settled is not reserved")
        answers = [
            (s.request_id, charge.reservation.round, s.payload.decode())
            for s, charge in zip(settlements, charges, strict=True)
            if s.payload is not None
        ]
        self._many(_STORE, answers)

    def record(self, released: Settlement, round_index: int) -> None:
        """Put the rows of a request that was settled without them into the outbox."""
        if released.payload is not None:
            with self._db:
                self._many(_STORE, [(released.request_id, round_index, released.payload.decode())])

    def _many(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> int:
        """Run a statement over rows that it reads as JSON. One step of SQLite for all of them: at each step the
        interpreter's lock changes hands, which costs more than the step. Returns how many rows were changed."""
        return self._db.execute(statement, (orjson.dumps(rows),)).rowcount if rows else 0

    def note_forecast(self, round_index: int, forecast: Mapping[str, Any]) -> None:
        """Keep what was predicted of a round, the first time that it is."""
        with self._db:
            self._db.execute("INSERT OR IGNORE INTO forecasts VALUES (?, ?)", (round_index, json.dumps(forecast)))

    def note_lesson(self, teacher: str, status: int, said: str) -> None:
        """Keep a refusal that has changed the form of a teacher's requests.

        Args:
            teacher: Digest of whom and how it was asked.
        """
        with self._db:
            self._db.execute("INSERT INTO lessons VALUES (?, ?, ?)", (teacher, status, said))

    def lessons(self, teacher: str) -> list[tuple[int, str]]:
        """Status and text of the refusals that have changed the form of a teacher's requests, oldest first."""
        return self._db.execute(
            "SELECT status, said FROM lessons WHERE teacher = ? ORDER BY rowid", (teacher,)
        ).fetchall()

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
            self._many("DELETE FROM outbox WHERE request_id IN (SELECT value ->> 0 FROM json_each(?))",
                       [(request_id,) for request_id in request_ids])  # fmt: skip

    @property
    def left(self) -> Budget:
        """What the budget still covers, negative where bills exceeded it; None is no cap."""
        nusd, tokens = self.budget.nusd, self.budget.tokens
        return Budget(None if nusd is None else nusd - self._nusd, None if tokens is None else tokens - self._tokens)

    def totals(self, round_index: int | None = None, teacher: str | None = None) -> Totals:
        """Sums over a round, over a teacher, or over the run."""
        return _totals(self._db, round_index, teacher)


def read_totals(path: Path, round_index: int | None = None) -> Totals:
    """Sums of a ledger that another process may be writing; zeros where there is none yet."""
    with _reading(path) as db:
        return Totals(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0) if db is None else _totals(db, round_index)


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


@contextlib.contextmanager
def _reading(path: Path) -> Generator[sqlite3.Connection | None]:
    """A ledger that another process may be writing; None where there is none yet, where it was emptied, or where the
    disk was full before it was whole."""
    if not path.is_file() or path.stat().st_size == 0:
        yield None
        return
    with ledger_file.to_read(path) as db:
        yield db if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'lessons'").fetchone() else None


def _totals(db: sqlite3.Connection, round_index: int | None, teacher: str | None = None) -> Totals:
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


def _lower(run: int | None, round_: int | None, before: int) -> int | None:
    """The cap that holds: the run's, or the round's on top of what was spent before it."""
    caps = [cap for cap in (run, None if round_ is None else before + round_) if cap is not None]
    return min(caps, default=None)


def _fits(amount: int, cap: int | None) -> bool:
    return cap is None or amount <= cap
