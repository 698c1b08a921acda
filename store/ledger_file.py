# pyright: strict
"""The ledger's file: its schema, who may write it, and whether it is this run's latest.

Beside it lies `.ledger.json` with the run's id and how often the ledger was opened; both stand in the ledger too, and
the ids of requests begin with the run's id. So a ledger that is missing, empty, another run's or an older copy is
noticed before money is spent under it, and rollouts that were taken over from another run are not mistaken for its own.
"""

import contextlib
import json
import shutil
import sqlite3
import tempfile
import uuid
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import orjson

from . import files
from .errors import BusyError, StorageError, TableError
from .layout import RunDir
from .storage import storage_error, storing

SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (
    request_id        TEXT PRIMARY KEY,
    round             INTEGER NOT NULL,
    teacher           TEXT NOT NULL,
    kind              TEXT NOT NULL DEFAULT 'rollouts' CHECK (kind IN ('rollouts', 'check')),
    state             TEXT NOT NULL CHECK (state IN ('reserved', 'settled', 'released', 'unknown')),
    reserved_nusd     INTEGER NOT NULL,
    reserved_tokens   INTEGER NOT NULL,
    prompt_estimate   INTEGER NOT NULL DEFAULT 0,
    completion_estimate INTEGER NOT NULL DEFAULT 0,
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
CREATE TABLE IF NOT EXISTS identity (run_id TEXT NOT NULL, openings INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS compared_parts (name TEXT PRIMARY KEY) STRICT;
CREATE TABLE IF NOT EXISTS lessons (teacher TEXT NOT NULL, status INTEGER NOT NULL, said TEXT NOT NULL) STRICT;
"""
"""The last table is there where all are. `kind`: what was asked for; a check leaves no rollout. `compared_parts`: parts
of the rollouts tables all of whose requests the ledger knows. `lessons`: refusals that have changed the form of a
teacher's requests, oldest first."""

LOCK = ".ledger.lock"
"""Beside a ledger that is being written."""

_PATIENCE_S = 0.2
"""For who only looks whether it is being written."""

_IDS_AT_A_TIME = 65536


@dataclass(frozen=True)
class Identity:
    """Whose ledger it is, and how often it was opened."""

    run_id: str
    """16 hexadecimal digits, with which the ids of the run's requests begin."""
    openings: int

    @classmethod
    def new(cls) -> "Identity":
        return cls(uuid.uuid4().hex[:16], 0)


@contextlib.contextmanager
def held(path: Path, holder: str) -> Generator[None]:
    """Keep other processes from writing a ledger. `holder`: what it is held for, which they are told.

    Raises:
        BusyError: another process writes it.
    """
    lock = path.with_name(LOCK)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.exclusive(lock, "an audit", _PATIENCE_S))
        except BusyError as error:
            raise BusyError(
                f"Another process audits this run ({lock.read_text(encoding='utf-8')}), and a budget is spent by one.",
                "Wait for it, or stop it, and try again.",
            ) from error
        lock.write_text(holder, encoding="utf-8")
        yield


def connect(path: Path) -> sqlite3.Connection:
    """Open a ledger's database, whoever's it is.

    Raises:
        TableError: it is no database.
        StorageError: it cannot be opened or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with storing(path):
        # The audit stage hands the connection to the one thread that commits.
        db = sqlite3.connect(path, check_same_thread=False, timeout=30)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
    except sqlite3.DatabaseError as error:
        db.close()
        told = storage_error(error, path)
        raise told or TableError(f"{path} is damaged: {error}.", _way_out(path)) from error
    return db


@contextlib.contextmanager
def to_read(path: Path) -> Generator[sqlite3.Connection]:
    """A ledger that another process may be writing, or that nobody can write: in an archive, in a colleague's run, on a
    full disk.

    Raises:
        TableError: it is no database.
        StorageError: it cannot be read.
    """
    with contextlib.ExitStack() as stack:
        try:
            db = stack.enter_context(contextlib.closing(connect(path)))
            with storing(path):
                db.execute("SELECT count(*) FROM sqlite_master")
        except StorageError:  # SQLite makes files beside a database that it reads
            stack.close()
            log = path.with_name(f"{path.name}-wal")
            if log.is_file() and log.stat().st_size:  # of a process that was killed, with the latest bills
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                with storing(path):
                    copies = [Path(shutil.copy(file, folder)) for file in (path, log)]
                db = stack.enter_context(contextlib.closing(connect(copies[0])))
            else:
                address = f"{path.absolute().as_uri()}?immutable=1"
                db = stack.enter_context(contextlib.closing(sqlite3.connect(address, uri=True)))
        yield db


def open_checked(path: Path) -> tuple[sqlite3.Connection, Identity, list[str]]:
    """Open a run's ledger to write it. Returns the database, whose it is, and the parts of the rollouts tables that
    were compared with it just now: both to be noted by `note_opening`.

    Raises:
        TableError: it is missing, empty, damaged, another run's, or an older copy.
    """
    known = read_identity(path)
    if known is not None and not path.is_file():
        raise TableError(f"{path} is missing, and this run has spent before.", _way_out(path))
    with contextlib.ExitStack() as stack:
        db = stack.enter_context(contextlib.closing(connect(path)))
        db.executescript(SCHEMA)
        own = own_identity(db)
        if known is not None and own is None:
            raise TableError(f"{path} is empty, and this run has spent before.", _way_out(path))
        if known is not None and own is not None:
            _compare_identities(path, known, own)
        # A run that was copied without its hidden files has the ledger's word only.
        identity = own or Identity.new()
        parts = _compare_rollouts(db, path, identity)
        stack.pop_all()
    return db, identity, parts


def note_opening(db: sqlite3.Connection, path: Path, identity: Identity, parts: Sequence[str]) -> None:
    """Count an opening, in the ledger and then beside it: a crash between them leaves the ledger ahead, not behind."""
    now = Identity(identity.run_id, identity.openings + 1)
    with db:
        db.execute("DELETE FROM identity")
        db.execute("INSERT INTO identity VALUES (?, ?)", (now.run_id, now.openings))
        db.executemany("INSERT OR IGNORE INTO compared_parts VALUES (?)", [(name,) for name in parts])
    files.write_text(_identity_file(path), json.dumps(asdict(now)) + "\n")


def read_identity(path: Path) -> Identity | None:
    """What lies beside a ledger; None where it was never opened.

    Raises:
        TableError: it is damaged.
    """
    file = _identity_file(path)
    try:
        return Identity(**json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise TableError(f"{file} is damaged.", "Delete it: the ledger beside it holds the same.") from error


def own_identity(db: sqlite3.Connection) -> Identity | None:
    """What a ledger says of itself; None where it was never opened."""
    row = db.execute("SELECT run_id, openings FROM identity").fetchone()
    return None if row is None else Identity(*row)


def _identity_file(path: Path) -> Path:
    return path.with_name(".ledger.json")


def _compare_identities(path: Path, known: Identity, own: Identity) -> None:
    if own.run_id != known.run_id:
        raise TableError(f"{path} is the ledger of another run.", _way_out(path))
    if own.openings < known.openings:
        raise TableError(
            f"{path} is an older copy: it was opened {own.openings} times, and this run's {known.openings} times.",
            _way_out(path),
        )


def _compare_rollouts(db: sqlite3.Connection, path: Path, identity: Identity) -> list[str]:
    """Look up the run's requests of all rollouts that were not looked up before. Returns the parts that hold them.

    Raises:
        TableError: the ledger does not know one; or a table is damaged.
    """
    compared = {str(name) for (name,) in db.execute("SELECT name FROM compared_parts")}
    # pyarrow has no types, so that those of a table's batches would be unknown.
    tables: list[Any] = [round_.rollouts for round_ in RunDir(path.parent).rounds()]
    unknown = 0
    for table in tables:
        for batch in table.batches(_IDS_AT_A_TIME, ["request_id"], compared):
            ids = cast("set[str | None]", set(batch["request_id"].to_pylist()))
            unknown += _unknown(db, [id_ for id_ in ids if id_ is not None and id_.startswith(identity.run_id)])
    if unknown:
        raise TableError(
            f"{path} is an older copy: {unknown} requests of the rollouts tables are not in it.", _way_out(path)
        )
    return [name for table in tables for part in table.manifest.parts if (name := part.name) not in compared]


def _unknown(db: sqlite3.Connection, ids: Sequence[str]) -> int:
    """How many of these requests the ledger does not know."""
    query = "SELECT count(*) FROM json_each(?) WHERE value NOT IN (SELECT request_id FROM requests)"
    return int(db.execute(query, (orjson.dumps(ids),)).fetchone()[0])


def _way_out(path: Path) -> str:
    return f"Restore it from a copy, or rebuild it from the rollouts: omniopd audit {path.parent} --rebuild-ledger."
