"""What a refusal of the operating system is told as."""

import errno
import os
import pickle
import shutil
import sqlite3

import pytest

from omniopd.store import files
from omniopd.store.errors import StorageError
from omniopd.store.storage import Spare, storage_error, storing


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, "Free some space there"),
        (errno.EDQUOT, "Free some space there"),
        (errno.EROFS, "Mount it writable"),
        (errno.EACCES, "permission to write"),
        (errno.EPERM, "permission to write"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ENFILE, "ulimit -n"),
        (errno.EIO, "full or damaged"),
        (errno.EFBIG, "ulimit -f"),
    ],
    ids=errno.errorcode.get,
)
def test_what_the_system_refuses_is_one_line_with_a_name_and_what_to_do(number, hint):
    told = storage_error(OSError(number, os.strerror(number), "/there/part"))
    assert told is not None
    assert str(told).startswith(f"/there/part: {os.strerror(number)}. ")
    assert hint in told.hint
    assert "\n" not in str(told)
    assert told.exit_code == 3


@pytest.mark.parametrize(
    ("statement", "said", "hint"),
    [
        ("PRAGMA max_page_count = 1; CREATE TABLE t (x); CREATE TABLE u (x)", "database or disk is full", "Free some"),
        ("PRAGMA query_only = 1; CREATE TABLE t (x)", "attempt to write a readonly database", "Mount it writable"),
        ("ATTACH '/nowhere/at/all' AS other", "unable to open database: /nowhere/at/all", "permission to write"),
    ],
)
def test_what_sqlite_says_of_the_disk_is_told_the_same_way(tmp_path, statement, said, hint):
    db = sqlite3.connect(":memory:")
    with pytest.raises(sqlite3.Error) as caught:
        db.executescript(statement)
    told = storage_error(caught.value, tmp_path)
    assert str(told).startswith(f"{tmp_path}: {said}. ")
    assert hint in str(told)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError('IO Error: cannot write "/there": No space left on device'),
         'IO Error: cannot write "/there": No space left on device. Free some space there'),
        (shutil.Error([("/a", "/b", f"[Errno 28] No space left on device: {'/long' * 50}")]),
         "No space left on device. Free some space there"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598\nmore"),
         "Input/output error. See whether the disk is full or damaged"),
    ],
    ids=["DuckDB", "shutil", "torch"],
)  # fmt: skip
def test_libraries_that_repeat_the_systems_words_are_understood(error, said):
    assert str(storage_error(error)) == f"{said}, then run the same command again."


class Failure(BaseException):
    """As torch's CheckpointException."""


def test_an_error_that_is_no_exception_is_told_too(tmp_path):
    with pytest.raises(StorageError, match="No space left on device"), storing(tmp_path):
        raise Failure("ranks 0\nRuntimeError: [Errno 28] No space left on device")
    with pytest.raises(KeyboardInterrupt), storing(tmp_path):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/there"),
        sqlite3.IntegrityError("UNIQUE constraint failed"),
        RuntimeError("Permission denied"),
        StorageError("told", "before"),
        ValueError(""),
    ],
    ids=repr,
)
def test_other_errors_are_left_alone(error):
    assert storage_error(error) is None
    with pytest.raises(type(error)) as caught, storing("/here"):
        raise error
    assert caught.value is error


def test_a_missing_permission_is_told_only_where_it_is_about_a_file(tmp_path):
    error = PermissionError(errno.EPERM, "Operation not permitted")  # of a signal to another's process, say
    assert storage_error(error) is None
    with pytest.raises(StorageError, match="Give yourself permission"), storing(tmp_path):
        raise error


def test_a_storage_error_is_an_os_error_that_travels_between_processes():
    told = storage_error(OSError(errno.ENOSPC, "No space left on device", "/there"))
    again = pickle.loads(pickle.dumps(told))
    assert isinstance(again, OSError)
    assert (str(again), again.hint) == (str(told), told.hint)


def test_a_small_file_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def refuse(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match=r"manifest\.json: No space left on device"):
        files.write_text(tmp_path / "manifest.json", "{}")


def test_spare_space_is_there_until_it_is_given_up(tmp_path):
    beside = tmp_path / "ledger.sqlite"
    with Spare(beside, 5000) as spare:
        kept = tmp_path / ".ledger.spare"
        assert kept.stat().st_size == 5000
        spare.release()
        assert not kept.exists()
    with Spare(beside, 5000):
        assert kept.exists()
    assert not kept.exists()
