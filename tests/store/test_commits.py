"""Commits are numbered and made once: a writer whose lock did not hold is refused, and a crash leaves a whole table."""

import contextlib
import errno
import itertools
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from omniopd.store import commits, files
from omniopd.store.commits import Commit
from omniopd.store.errors import BusyError, StorageError
from omniopd.store.layout import RoundDir
from omniopd.store.schema import SCORES
from omniopd.store.table import Table
from omniopd.store.worker import ALONE, Worker
from support.tables import newest

SETTINGS = {"score.phi": "edit"}


def begun(folder, worker=ALONE):
    table = Table(folder, SCORES, worker)
    table.begin(SETTINGS)
    return table


def keys(folder):
    return sorted(key for (key,) in Table(folder, SCORES).existing_keys())


@pytest.mark.parametrize("worker", [ALONE, Worker(1, 2)])
def test_of_two_writers_without_a_lock_the_earlier_is_refused_and_no_committed_row_is_lost(tmp_path, rows, worker):
    zombie = begun(tmp_path, worker)
    zombie.append(rows(*(f"z{i}" for i in range(10))))
    writer = begun(tmp_path, worker)
    for i in range(10):
        writer.append(rows(f"w{i}"))
        with pytest.raises(BusyError, match=r"Another process writes .* now, so this one is refused"):
            zombie.append(rows(f"late{i}"))
        with pytest.raises(BusyError):
            zombie.finish()
        with pytest.raises(BusyError):
            zombie.replace([], SETTINGS)
    assert keys(tmp_path) == sorted([*(f"z{i}" for i in range(10)), *(f"w{i}" for i in range(10))])
    assert not writer.complete
    writer.finish()
    assert [len(list(tmp_path.glob(name))) for name in ("manifest*", ".*.tmp")] == [2, 0]


def test_the_rows_that_a_refused_writer_left_are_adopted_once_by_the_next(tmp_path, rows):
    zombie, writer = begun(tmp_path), begun(tmp_path)
    with pytest.raises(BusyError):
        zombie.append(rows("a", "b"))
    writer.append(rows("b", "c"))
    assert keys(tmp_path) == ["b", "c"]
    begun(tmp_path)
    assert sorted(Table(tmp_path, SCORES).read(["chunk_id"])["chunk_id"].to_pylist()) == ["a", "b", "c"]


def test_a_writer_whose_table_was_begun_anew_is_refused(tmp_path, rows):
    zombie = begun(tmp_path / "t")
    zombie.append(rows("a"))
    shutil.rmtree(tmp_path / "t")  # as reset does
    with pytest.raises(BusyError):
        zombie.append(rows("b"))
    writer = begun(tmp_path / "t")
    writer.append(rows("c"))
    with pytest.raises(BusyError):
        zombie.append(rows("d"))
    assert keys(tmp_path / "t") == ["c"]


@pytest.mark.parametrize("commits_between", range(5))
def test_a_writer_that_slept_in_its_commit_is_refused_however_far_the_other_got(
    tmp_path, rows, monkeypatch, commits_between
):
    """The number that it takes may be free again: the other one tidies up behind itself."""
    zombie = begun(tmp_path)
    create = files.create

    def late(path, content):
        monkeypatch.setattr(files, "create", create)
        writer = begun(tmp_path)
        for i in range(commits_between):
            writer.append(rows(f"w{i}"))
        return create(path, content)

    monkeypatch.setattr(files, "create", late)
    with pytest.raises(BusyError):
        zombie.append(rows("z"))
    assert keys(tmp_path) == [*(f"w{i}" for i in range(commits_between)), "z"], "z was there to be adopted"


def test_a_stage_whose_lock_does_nothing_ends_with_the_refusal(tmp_path, rows, monkeypatch):
    monkeypatch.setattr(files, "_locked", lambda file: True)
    first, second = RoundDir(tmp_path, 0), RoundDir(tmp_path, 0)
    with first.lock("score"), second.lock("score"):
        tables = [begun(round_.path / "t") for round_ in (first, second)]
        with pytest.raises(BusyError):
            tables[0].append(rows("a"))
        tables[1].append(rows("b"))


def test_many_processes_that_begin_and_append_at_once_lose_no_row_that_was_committed(tmp_path, rows):
    children = []
    for child in range(4):
        if (pid := os.fork()) == 0:
            for i in range(20):
                with contextlib.suppress(BusyError):
                    begun(tmp_path).append(rows(f"{child}-{i}"))
                    (tmp_path / f"told-{child}-{i}").touch()
                time.sleep(child / 100)
            os._exit(0)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    told = {path.name.removeprefix("told-") for path in tmp_path.glob("told-*")}
    written = Table(tmp_path, SCORES).read(["chunk_id"])["chunk_id"].to_pylist()
    assert len(told) >= 4
    assert told <= set(written)
    begun(tmp_path)
    assert len(written) == len(set(written))


_STEPS = ("open", "fsync", "rename", "replace", "link", "unlink")


def killed_after(calls, act):
    """Run `act` in a process that is killed before its n-th call into the system; whether it was."""
    pid = os.fork()
    if pid == 0:
        left = calls

        def counted(function):
            def call(*args, **kwargs):
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)

            return call

        for name in _STEPS:
            setattr(os, name, counted(getattr(os, name)))
        act()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def test_a_kill_between_any_two_steps_of_a_commit_leaves_a_whole_table_and_files_that_nobody_names(tmp_path, rows):
    for calls in itertools.count():
        folder = tmp_path / str(calls)
        table = begun(folder)
        table.append(rows("a"))
        killed = killed_after(calls, lambda table=table: table.append(rows("b")))
        reader = Table(folder, SCORES)
        reader.verify()
        assert keys(folder) in (["a"], ["a", "b"])
        after = begun(folder)
        assert keys(folder) in (["a"], ["a", "b"]), "what was renamed is adopted"
        after.append(rows("c"))
        named = {part.name for part in after.manifest.parts}
        assert {path.name for path in folder.iterdir()} == named | {path.name for path in folder.glob("manifest-*")}
        assert len(list(folder.glob("manifest-*"))) == 2
        if not killed:
            break
    assert calls > 8


def test_a_run_of_before_there_were_numbers_opens_and_goes_on(tmp_path, rows):
    table = begun(tmp_path)
    table.append(rows("a"))
    newest(tmp_path).rename(tmp_path / "manifest.json")
    for path in tmp_path.glob("manifest-*"):
        path.unlink()
    assert keys(tmp_path) == ["a"]
    with pytest.raises(BusyError):
        table.append(rows("b"))
    begun(tmp_path).append(rows("c"))
    assert keys(tmp_path) == ["a", "b", "c"], "b's part was adopted"
    assert not (tmp_path / "manifest.json").exists()


def test_a_reader_that_found_a_commit_which_is_gone_looks_again(tmp_path, rows, monkeypatch):
    table = begun(tmp_path)
    read_bytes = Path.read_bytes

    def late(path):
        monkeypatch.setattr(Path, "read_bytes", read_bytes)
        for key in "abc":
            table.append(rows(key))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", late)
    assert Table(tmp_path, SCORES).manifest.rows == 3


def test_a_file_system_without_hard_links_is_named(tmp_path, monkeypatch):
    def refuse(path, target):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    with pytest.raises(StorageError, match="on a file system without hard links"):
        begun(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_commit_is_named_by_its_number_and_worker():
    assert Commit(Worker(1, 4), 12).name == "manifest-00000012.shard-0001-of-0004.json"
    assert Worker.of_file(Commit(Worker(1, 4), 12).name) == Worker(1, 4)
    assert Commit(ALONE).name == "manifest.json"
    assert commits.newest(Path("/nowhere")) == {}
