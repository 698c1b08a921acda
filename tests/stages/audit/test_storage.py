"""A disk that is full, read-only or gone, and too many open files: one line, and nothing that was paid for is lost."""

import asyncio
import functools
import os
import resource
import subprocess
from pathlib import Path

import pytest
from aiohttp import web

from omniopd.stages.audit.stage import audit
from omniopd.store.errors import StorageError
from omniopd.store.ledger import Ledger
from omniopd.store.ledger_read import read_totals
from omniopd.store.storage import Spare
from omniopd.store.table import Table
from support.disks import fill, mounted
from support.processes import Command, finish
from support.runs import write_run

CONCURRENCY = 8


def settings(teacher):
    return {"base_url": teacher.base_url, "max_concurrency": CONCURRENCY}


@pytest.fixture
def run(make_run, teacher, generated):
    return generated(make_run(teacher=settings(teacher)))


def assert_complete_and_bought_once(run, teacher):
    chunks = run.round(0).chunks.manifest.rows
    rows = run.round(0).rollouts.read().to_pylist()
    keys = {(row["chunk_id"], row["rollout_index"]) for row in rows}
    assert len(keys) == len(rows) == 4 * chunks
    assert {row["status"] for row in rows} == {"ok"}
    assert teacher.answered == teacher.requests == chunks
    totals = read_totals(run.ledger)
    assert (totals.unknown, totals.requests) == (0, chunks)


def test_a_disk_that_fills_up_ends_the_stage_and_each_answer_in_flight_is_kept(tmp_path, teacher, generated):
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=24m", "tmpfs") as disk:
        run = generated(write_run(disk / "run", teacher=settings(teacher)))
        filler = []

        def behave(body, number):
            if number == 9:
                filler.append(fill(disk))

        teacher.behave = behave
        with pytest.raises(StorageError, match=r"disk is full.* Free some space there, then run the same") as caught:
            audit(run, 0, run.config())
        assert caught.value.exit_code == 3
        assert 10 <= teacher.answered < run.round(0).chunks.manifest.rows
        assert not run.round(0).rollouts.complete
        filler[0].unlink()
        teacher.behave = lambda body, number: None
        audit(run, 0, run.config())
        assert_complete_and_bought_once(run, teacher)
        assert not list(run.path.glob(".ledger.spare")), "space is kept only while a teacher is asked"


def test_a_disk_that_is_full_from_the_start_sends_nothing(tmp_path, teacher, generated):
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=24m", "tmpfs") as disk:
        run = generated(write_run(disk / "run", teacher=settings(teacher)))
        finish("plan", run.path)
        filler = fill(disk)
        done = Command("audit", run.path, "--no-check").wait()
        assert (done.returncode, done.stderr.count("\n")) == (3, 1), done.stderr
        assert "No space left on device. Free some space there, then run the same command again" in done.stderr
        # Room for the tables and the ledger, and none for what is in flight.
        os.truncate(filler, filler.stat().st_size - (2 << 20))
        done = Command("audit", run.path, "--no-check").wait()
        assert done.returncode == 3
        assert ".ledger.spare: No space left on device" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
        assert teacher.requests == 0
        filler.unlink()
        audit(run, 0, run.config())
        assert_complete_and_bought_once(run, teacher)


def test_a_run_on_a_read_only_file_system_is_one_line(run, tmp_path, teacher):
    with mounted(tmp_path / "seen", "--bind", str(run.path)) as seen:
        # A bind mount takes its flags only when it is mounted again.
        subprocess.run(["mount", "-o", "remount,ro,bind", str(seen)], check=True)
        for command in ("generate", "audit", "score", "train"):
            done = Command(command, seen).wait()
            assert (done.returncode, done.stderr.count("\n")) == (3, 1), done.stderr
            assert "Read-only file system. Mount it writable" in done.stderr
    assert teacher.requests == 0


def full(ledger):
    """SQLite's own word that no page is left, on any disk."""
    (pages,) = ledger._db.execute("PRAGMA page_count").fetchone()
    ledger._db.execute(f"PRAGMA max_page_count = {pages}")


async def late(teacher, body, request):
    """A good answer, after the one that it was sent with."""
    await asyncio.sleep(0.3)
    teacher.answered += 1
    return web.json_response(teacher.answer(body))


def test_a_full_ledger_settles_what_is_in_flight_in_the_spare_space_and_reserves_nothing(run, teacher, monkeypatch):
    ledgers, released = [], []
    opened, release = Ledger.__init__, Spare.release

    def remember(ledger, *arguments):
        opened(ledger, *arguments)
        ledgers.append(ledger)

    def free(spare):
        released.append(teacher.answered)
        release(spare)
        if ledgers[-1].path.exists():
            ledgers[-1]._db.execute("PRAGMA max_page_count = 1000000")

    monkeypatch.setattr(Ledger, "__init__", remember)
    monkeypatch.setattr(Spare, "release", free)

    def behave(body, number):
        if number == 9:
            full(ledgers[-1])
        return functools.partial(late, teacher, body) if number > 9 else None

    teacher.behave = behave
    with pytest.raises(StorageError, match=r"ledger\.sqlite: database or disk is full\. Free some space"):
        audit(run, 0, run.config())
    asked = teacher.requests
    assert asked == teacher.answered < run.round(0).chunks.manifest.rows
    assert released[0] < asked, "answers came after the disk was full"
    teacher.behave = lambda body, number: None
    audit(run, 0, run.config())
    assert_complete_and_bought_once(run, teacher)


def test_a_table_that_cannot_be_written_ends_the_stage_and_its_answers_wait_in_the_ledger(run, teacher, monkeypatch):
    monkeypatch.setattr("omniopd.stages.audit.outbox._SECONDS_BETWEEN_PARTS", 0.02)
    append = Table.append

    def refuse(table, rows):
        if table.spec.name == "rollouts":
            raise StorageError("/there: No space left on device.", "Free some space there.")
        return append(table, rows)

    monkeypatch.setattr(Table, "append", refuse)
    with pytest.raises(StorageError, match="Free some space"):
        audit(run, 0, run.config(("teacher.max_concurrency=1",)))
    assert teacher.answered < run.round(0).chunks.manifest.rows, "nothing is bought for a table that takes nothing"
    monkeypatch.setattr(Table, "append", append)
    audit(run, 0, run.config())
    assert_complete_and_bought_once(run, teacher)


def test_too_many_open_files_are_one_line_with_the_limit_and_nothing_is_bought_twice(run, teacher):
    process = []

    def behave(body, number):
        if number == 3:  # not a descriptor more than it has now
            has = len(list(Path(f"/proc/{process[0].pid}/fd").iterdir()))
            resource.prlimit(process[0].pid, resource.RLIMIT_NOFILE, (has, has))

    teacher.behave = behave
    process.append(Command("audit", run.path, "--no-check", "--set", "teacher.max_concurrency=16"))
    done = process[0].wait()
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert (
        "oo many open files. Raise the limit of open files (ulimit -n), or lower teacher.max_concurrency"
        in (done.stderr.splitlines()[-1])
    )
    teacher.behave = lambda body, number: None
    finish("audit", run.path, "--no-check")
    rows = run.round(0).rollouts.read().to_pylist()
    assert len({(row["chunk_id"], row["rollout_index"]) for row in rows}) == len(rows)
    assert len(rows) == 4 * run.round(0).chunks.manifest.rows == 4 * teacher.answered
    assert read_totals(run.ledger).unknown == 0


def test_the_audit_may_have_as_many_files_open_as_the_system_allows(run, teacher, monkeypatch):
    asked = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: asked.append((kind, limits)))
    audit(run, 0, run.config())
    assert asked == [(resource.RLIMIT_NOFILE, (4096, 4096))]
