"""Whose ledger it is: one writer a run, and a ledger that is not the run's latest is refused before money is spent."""

import contextlib
import shutil
import sqlite3
import subprocess

import pytest

from omniopd.store.errors import BusyError, TableError
from omniopd.store.layout import RunDir
from omniopd.store.ledger import Budget, Caps, Ledger, Reservation, Settlement
from omniopd.store.ledger_read import read_totals
from omniopd.store.ledger_repair import SOURCE, rebuild_ledger
from omniopd.store.usage import Usage
from support.disks import fill, mounted

WAY_OUT = r"Restore it from a copy, or rebuild it from the rollouts: omniopd audit .*run --rebuild-ledger\."


@pytest.fixture
def run(tmp_path):
    return RunDir(tmp_path / "run")


def spend(run, *names, round_index=0, tokens=30, rows=True):
    """Requests of two rollouts each that were answered, settled at `tokens` and 70 nano-dollars, and written."""
    ledger = Ledger(run.ledger, Caps(round_index=round_index))
    ids = [ledger.run_id + name for name in names]
    ledger.commit([Reservation(id_, round_index, "m", 100, 90, "teacher.price") for id_ in ids], [])
    ledger.commit([], [Settlement(id_, "settled", Usage(tokens - 7, 5, 7), 70) for id_ in ids])
    ledger.close()
    if rows:
        write(run, ids, round_index, tokens)
    return ids


def write(run, ids, round_index=0, tokens=30):
    table = run.round(round_index).rollouts
    table.begin({"teacher.model": "m"})
    table.append(
        [
            {"chunk_id": f"chunk of {id_}", "rollout_index": i, "status": "ok", "text": "x", "request_id": id_,
             "prompt_tokens": (tokens - 7) // 2 + (i < (tokens - 7) % 2), "cached_tokens": (3, 2)[i],
             "cache_write_tokens": 0, "completion_tokens": (4, 3)[i], "cost_usd": 35e-9}
            for id_ in ids for i in range(2)
        ]
    )  # fmt: skip


def copy_of_ledger(run, name):
    with sqlite3.connect(run.ledger) as db:  # what was committed may still stand in the log beside it
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    return shutil.copy(run.ledger, run.path / name)


def put_in_place(run, copy):
    for path in run.path.glob("ledger.sqlite*"):
        path.unlink()
    shutil.copy(copy, run.ledger)


@pytest.mark.parametrize("killed", [False, True], ids=["closed", "killed"])
def test_what_a_run_cost_is_read_where_nothing_can_be_written(run, tmp_path, killed):
    """An archive, or a colleague's run; of an audit that was killed, the latest bills stand in the log."""
    spend(run, "a", rows=False)
    archive = tmp_path / "archive"
    archive.mkdir()
    ledger = Ledger(run.ledger)
    ledger.commit([Reservation(ledger.run_id + "b", 0, "m", 100, 90)], [])
    for suffix in ("", "-wal") if killed else ():
        shutil.copy(f"{run.ledger}{suffix}", archive)
    ledger.close()
    if not killed:
        shutil.copy(run.ledger, archive)
    with mounted(tmp_path / "seen", "--bind", str(archive)) as seen:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(seen)], check=True)
        totals = read_totals(seen / "ledger.sqlite")
    assert (totals.requests, totals.charged_tokens, totals.reserved_tokens) == (2, 30, 90)
    assert len(list(archive.iterdir())) == 1 + killed


@pytest.mark.parametrize("whole", [True, False])
def test_what_a_run_cost_is_read_on_a_full_disk(run, tmp_path, whole):
    """Also where it was full before the ledger had all its tables."""
    spend(run, "a", rows=False)
    if not whole:
        with contextlib.closing(sqlite3.connect(run.ledger)) as db:
            db.executescript("DROP TABLE lessons; DROP TABLE outbox; DELETE FROM requests")
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=1m", "tmpfs") as folder:
        shutil.copy(run.ledger, folder)
        fill(folder)
        assert read_totals(folder / "ledger.sqlite").charged_tokens == (30 if whole else 0)


def test_two_rounds_of_a_run_cannot_spend_at_once_and_the_second_is_told_of_the_first(run):
    ledger = Ledger(run.ledger, Caps(round_index=3))
    with pytest.raises(BusyError, match=r"Another process audits this run \(round 3, process \d+\).*Wait for it"):
        Ledger(run.ledger, Caps(round_index=4))
    with pytest.raises(BusyError, match="round 3"):
        rebuild_ledger(run)
    ledger.close()
    Ledger(run.ledger, Caps(round_index=4)).close()


def test_a_ledger_that_is_refused_is_not_held(run):
    spend(run, "a")
    run.ledger.unlink()
    for _ in range(2):
        with pytest.raises(TableError, match="is missing"):
            Ledger(run.ledger)


def test_a_deleted_ledger_is_refused_though_nothing_was_answered_yet(run):
    spend(run, rows=False)
    for path in run.path.glob("ledger.sqlite*"):
        path.unlink()
    with pytest.raises(TableError, match="is missing, and this run has spent before. " + WAY_OUT):
        Ledger(run.ledger)
    assert not run.ledger.exists()


def test_an_emptied_ledger_is_refused_and_can_be_looked_at(run):
    spend(run, "a")
    for path in run.path.glob("ledger.sqlite-*"):
        path.unlink()
    run.ledger.write_bytes(b"")
    assert read_totals(run.ledger).requests == 0
    with pytest.raises(TableError, match="is empty, and this run has spent before. " + WAY_OUT):
        Ledger(run.ledger)


def test_an_older_copy_is_refused_by_the_openings_since_it_was_made(run):
    spend(run, "a")
    copy = copy_of_ledger(run, "copy")
    spend(run, "b", rows=False)
    put_in_place(run, copy)
    with pytest.raises(TableError, match="older copy: it was opened 1 times, and this run's 2 times. " + WAY_OUT):
        Ledger(run.ledger)


def test_a_copy_made_while_an_audit_ran_is_refused_by_the_rollouts_written_since(run):
    spend(run, "a", round_index=0)
    copy = copy_of_ledger(run, "copy")
    prefix = spend(run, "b", rows=False)[0].removesuffix("b")
    put_in_place(run, copy)
    with sqlite3.connect(run.ledger) as db:
        db.execute("UPDATE identity SET openings = 2")
    db.close()
    write(run, [f"{prefix}b", f"{prefix}c"], round_index=1)
    with pytest.raises(TableError, match="2 requests of the rollouts tables are not in it. " + WAY_OUT):
        Ledger(run.ledger)


def test_another_runs_ledger_is_refused(run, tmp_path):
    other = RunDir(tmp_path / "other")
    spend(run, "a")
    spend(other, "a")
    put_in_place(run, copy_of_ledger(other, "copy"))
    with pytest.raises(TableError, match="is the ledger of another run. " + WAY_OUT):
        Ledger(run.ledger)


@pytest.mark.parametrize("hidden", [True, False])
def test_a_run_that_was_copied_goes_on(run, tmp_path, hidden):
    spend(run, "a")
    copy = RunDir(tmp_path / "copy")
    ignore = None if hidden else shutil.ignore_patterns(".*")
    shutil.copytree(run.path, copy.path, ignore=ignore)
    ledger = Ledger(copy.ledger, Caps(Budget(tokens=100)))
    assert ledger.left.tokens == 70
    ledger.close()
    copy.ledger.unlink()
    with pytest.raises(TableError, match="is missing"):
        Ledger(copy.ledger)


def test_rollouts_that_were_taken_over_from_another_run_are_not_looked_for(run, tmp_path):
    donor = RunDir(tmp_path / "donor")
    spend(donor, "a")
    run.round(0).rollouts.link(donor.round(0).rollouts)
    ledger = Ledger(run.ledger)
    assert ledger.totals().requests == 0
    ledger.close()
    for path in run.path.glob("ledger.sqlite*"):
        path.unlink()
    rebuilt = rebuild_ledger(run)
    assert (rebuilt.added, rebuilt.tokens) == (0, 0), "they were not billed to this run"


def test_rollouts_are_looked_up_once(run, monkeypatch):
    spend(run, "a", "b")
    Ledger(run.ledger).close()
    with sqlite3.connect(run.ledger) as db:
        names = {name for (name,) in db.execute("SELECT name FROM compared_parts")}
    db.close()
    assert names == {part.name for part in run.round(0).rollouts.manifest.parts}
    monkeypatch.setattr("omniopd.store.ledger_file._unknown", lambda db, ids: pytest.fail("looked up again"))
    Ledger(run.ledger).close()


@pytest.mark.parametrize("loss", ["deleted", "emptied", "damaged", "another run's"])
def test_a_lost_ledger_is_rebuilt_from_the_bills_of_the_rollouts(run, tmp_path, loss):
    spend(run, "a", "b", round_index=0)
    spend(run, "c", round_index=1, tokens=101)
    before = read_totals(run.ledger), read_totals(run.ledger, 1)
    for path in run.path.glob("ledger.sqlite*"):
        path.unlink()
    if loss == "another run's":
        other = RunDir(tmp_path / "other")
        spend(other, "x")
        put_in_place(run, copy_of_ledger(other, "copy"))
    elif loss != "deleted":
        run.ledger.write_bytes(b"" if loss == "emptied" else b"no database" * 1000)
    with pytest.raises(TableError, match="--rebuild-ledger"):
        Ledger(run.ledger)
    rebuilt = rebuild_ledger(run)
    assert (rebuilt.added, rebuilt.unbilled, rebuilt.tokens, rebuilt.nusd) == (3, 0, 161, 210)
    assert (read_totals(run.ledger), read_totals(run.ledger, 1)) == before
    assert (rebuilt.set_aside is not None) == (loss != "deleted")
    caps = Caps(Budget(tokens=200), teacher=Budget(tokens=180), teacher_model="m")
    ledger = Ledger(run.ledger, caps)
    assert ledger.left.tokens == 19, "the teacher's cap counts them as well"
    ledger.close()
    assert rebuild_ledger(run).added == 0


def test_a_rebuilt_older_copy_keeps_what_it_knows_and_settles_what_was_open(run):
    ledger = Ledger(run.ledger)
    prefix = ledger.run_id
    lost, asked = f"{prefix}lost", f"{prefix}asked"
    ledger.commit([Reservation(lost, 0, "m", 100, 90), Reservation(asked, 0, "m", 100, 90)], [])
    ledger.commit([], [Settlement(lost, "unknown")])
    copy = copy_of_ledger(run, "copy")
    ledger.commit([], [Settlement(asked, "settled", Usage(23, 5, 7), 70)])
    ledger.close()
    write(run, [asked])
    spend(run, "new")
    put_in_place(run, copy)
    rebuilt = rebuild_ledger(run)
    assert (rebuilt.added, rebuilt.set_aside) == (2, None)
    assert read_totals(run.ledger).charged_tokens == 90 + 30 + 30
    with sqlite3.connect(run.ledger) as db:
        states = dict(db.execute("SELECT request_id, state FROM requests").fetchall())
        sources = dict(db.execute("SELECT request_id, price_source FROM requests").fetchall())
    db.close()
    assert states == {lost: "unknown", asked: "settled", f"{prefix}new": "settled"}
    assert sources[f"{prefix}new"] == SOURCE
    Ledger(run.ledger).close()


def test_what_failed_or_had_no_bill_is_counted_and_said(run):
    (id_,) = spend(run, "a", rows=False)
    table = run.round(0).rollouts
    table.begin({})
    table.append([{"chunk_id": "c", "rollout_index": 0, "status": "failed", "request_id": id_}])
    for path in run.path.glob("ledger.sqlite*"):
        path.unlink()
    rebuilt = rebuild_ledger(run)
    assert (rebuilt.added, rebuilt.unbilled, rebuilt.tokens) == (1, 1, 0)
    assert "1 of them without a known bill" in str(rebuilt)
    Ledger(run.ledger).close()
